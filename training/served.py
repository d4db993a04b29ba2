"""A stored version as serving runs it: the SavedModel, not the weights, so what is examined is what serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from rtrec_ray.errors import ModelRejected
from rtrec_ray.registry.artifact import SAVED_MODEL, ModelCard, read_card

__all__ = ["ServedModel", "load_served"]

_ROWS = 4_096


class ServedModel:
    """Scores raw columns by the artifact's signature."""

    def __init__(self, loaded: Any, card: ModelCard) -> None:
        self._loaded = loaded  # keeps the variables alive, which the signature alone does not
        self._signature = loaded.signatures["serving_default"]
        self.card = card

    def score(self, columns: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """Probabilities of a click, (n,). Raises ModelRejected when the signature does not take the columns."""
        rows = len(next(iter(columns.values())))
        try:
            parts = [
                self._part({name: column[start : start + _ROWS] for name, column in columns.items()})
                for start in range(0, rows, _ROWS)
            ]
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            raise ModelRejected(f"it does not take the inputs of its card: {str(error).splitlines()[0]}") from error
        return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)

    def _part(self, columns: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return self._signature(**{name: tf.constant(column) for name, column in columns.items()})["probability"].numpy()


def load_served(directory: Path) -> ServedModel:
    """Load the artifact in `directory`. Raises ModelRejected when it does not load."""
    card = read_card(directory)
    try:
        return ServedModel(tf.saved_model.load(str(directory / SAVED_MODEL)), card)
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise ModelRejected(f"the artifact does not load: {str(error).splitlines()[0]}") from error
