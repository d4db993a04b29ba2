"""A model version as an artifact becomes a scorer in memory."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rtrec_ray.errors import ModelRejected
from rtrec_ray.features.vector import Columns, ModelInput
from rtrec_ray.registry.artifact import SAVED_MODEL, read_card
from rtrec_ray.registry.base import ModelCenter

log = logging.getLogger(__name__)

OUTPUT: Final = "probability"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorflowScorer:
    """A SavedModel whose signature takes raw columns. `module` keeps its variables alive."""

    version: str
    inputs: Sequence[ModelInput]
    trained_to_ms: int | None
    signature: Any
    module: Any

    def predict(self, columns: Columns, /) -> npt.NDArray[np.float64]:
        """Click probabilities, (n,) float64."""
        return np.asarray(self.signature(**_tensors(columns))[OUTPUT].numpy(), dtype=np.float64).reshape(-1)


def preload() -> None:
    """Import TensorFlow, on one thread a request: a batch of 200 rows gains nothing from more."""
    threading = _tensorflow().config.threading
    try:
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        log.info("tensorflow_runs_already")


def fetch(center: ModelCenter, version: str) -> TensorflowScorer:
    """Download and load a version. Raises RegistryUnavailable, or ModelRejected for what is not a model of ours."""
    with tempfile.TemporaryDirectory(prefix="rtrec-model-") as folder:
        return load(center.download(version, Path(folder)), version=version)


def load(directory: Path, *, version: str) -> TensorflowScorer:
    """Load the artifact in `directory`. Raises ModelRejected."""
    card = read_card(directory)
    tf = _tensorflow()
    try:
        module = tf.saved_model.load(str(directory / SAVED_MODEL))
        signature = module.signatures["serving_default"]
    except Exception as error:
        # TensorFlow has no one error for a broken artifact: OSError, KeyError, ValueError and its own all occur.
        raise ModelRejected(f"model {version} does not load: {type(error).__name__}: {error}") from error
    return TensorflowScorer(
        version=version, inputs=card.inputs, trained_to_ms=card.trained_to_ms, signature=signature, module=module
    )


def _tensors(columns: Columns) -> dict[str, Any]:
    tf = _tensorflow()
    return {name: tf.constant(values) for name, values in columns.items()}


def _tensorflow() -> Any:
    # Importing it takes 5 to 8 s: not before there is a model, and never on the event loop.
    import tensorflow as tf

    return tf
