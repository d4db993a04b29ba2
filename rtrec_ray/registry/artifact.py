"""What a stored model version consists of.

model.json      this card: what serving must know to feed the model
saved_model/    TensorFlow SavedModel: raw columns in, {"probability": (n,)} out
weights.npz     variables of model and optimizer by name, to go on training (plain arrays, nothing that runs)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from rtrec_ray.errors import ModelRejected
from rtrec_ray.features.vector import ModelInput

__all__ = ["CARD", "SAVED_MODEL", "WEIGHTS", "ModelCard", "read_card", "write_card"]

CARD: Final = "model.json"
SAVED_MODEL: Final = "saved_model"
WEIGHTS: Final = "weights.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a reader of the artifact must know.

    `model` is the family; `inputs` the columns of its signature. `base_rate`: share of clicks in the base's training
    samples, in (0, 1). `trained_to_ms`: event time of the newest sample, ms UTC; `to_seq`: its commit_seq.
    `configuration`: the definition it was built from, as JSON text.
    """

    model: str
    kind: str
    inputs: tuple[ModelInput, ...]
    base_rate: float
    created_ms: int
    trained_to_ms: int
    to_seq: int
    configuration: str


def write_card(directory: Path, card: ModelCard) -> None:
    """Write model.json into `directory`."""
    (directory / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card)))


def read_card(directory: Path) -> ModelCard:
    """Read the card of the artifact in `directory`. Raises ModelRejected when it is absent or unreadable."""
    try:
        return msgspec.json.decode((directory / CARD).read_bytes(), type=ModelCard)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelRejected(f"the artifact has no readable {CARD}: {error}") from error
