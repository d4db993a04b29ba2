"""A learner's state to a stored model version: SavedModel, weights to go on from, and the card."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from rtrec_ray.errors import ModelRejected
from rtrec_ray.registry.artifact import SAVED_MODEL, WEIGHTS, ModelCard, read_card, write_card
from rtrec_ray.registry.base import Draft, ModelCenter, ModelVersion
from rtrec_ray.registry.changes import ChangeBook
from rtrec_ray.registry.lifecycle import generated, lineage_of
from training.definition import ModelDefinition, definition_from_json
from training.loop import State
from training.model import build_model, raw_specs

__all__ = ["Exporter", "announce", "fetch", "load_state", "publish"]


class Exporter:
    """Writes SavedModels. Keeps one model of its own, so that training goes on meanwhile in another thread."""

    def __init__(self, definition: ModelDefinition, *, base_rate: float) -> None:
        self.definition = definition
        self.base_rate = base_rate
        self._model = build_model(definition, base_rate=base_rate)
        module = tf.Module()
        # Variables only: saving would also trace the Keras model's own signature, which knows no text columns.
        module.kept = [variable.value for variable in self._model.variables]

        @tf.function
        def serve(**columns: Any) -> dict[str, Any]:
            return {"probability": tf.sigmoid(self._model(columns))}

        self._module, self._serve = module, serve.get_concrete_function(**raw_specs(definition))

    def write(self, directory: Path, state: State) -> None:
        """Write saved_model/ and weights.npz into `directory`; `state` as Learner.state gives it."""
        own = [state[f"model/{index:02d}/{v.name}"] for index, v in enumerate(self._model.variables)]
        for variable, value in zip(self._model.variables, own, strict=True):
            variable.assign(value)
        tf.saved_model.save(self._module, str(directory / SAVED_MODEL), signatures={"serving_default": self._serve})
        np.savez(directory / WEIGHTS, **state)  # type: ignore[arg-type]  # names are data here, not keywords


def publish(center: ModelCenter, exporter: Exporter, state: State, draft: Draft) -> ModelVersion:
    """Write the artifact and log it as a new version. Raises ModelRejected for weights that are no numbers."""
    broken = sorted(name for name, values in state.items() if not np.isfinite(values).all())
    if broken:
        raise ModelRejected(f"weights are not finite: {broken[0]}", mend="the run goes on from the last good version")
    card = ModelCard(
        model=exporter.definition.family,
        kind=draft.kind,
        inputs=exporter.definition.model_inputs,
        base_rate=exporter.base_rate,
        created_ms=draft.created_ms,
        trained_to_ms=draft.trained_to_ms,
        to_seq=draft.to_seq,
        configuration=exporter.definition.to_json(),
    )
    with TemporaryDirectory(prefix="rtrec-model-") as folder:
        exporter.write(Path(folder), state)
        write_card(Path(folder), card)
        return center.log_version(Path(folder), draft)


def announce(connections: Announcing, version: ModelVersion) -> None:
    """Tell that a version was made, and write down what made it: once, however often. Raises StoreUnavailable."""
    with closing(connections.model_changes()) as book:
        book.generated(generated(version), lineage_of(version, snapshot=connections.snapshot))


class Announcing(Protocol):
    """The part of Connections that is needed here."""

    @property
    def snapshot(self) -> str | None:
        """See Connections."""
        ...

    def model_changes(self) -> ChangeBook:
        """See Connections."""
        ...


def fetch(center: ModelCenter, version: str) -> tuple[ModelDefinition, ModelCard, State]:
    """What is needed to go on training from a version. Raises ModelRejected, RegistryUnavailable."""
    with TemporaryDirectory(prefix="rtrec-model-") as folder:
        directory = center.download(version, Path(folder))
        card = read_card(directory)
        return definition_from_json(card.configuration), card, load_state(directory)


def load_state(directory: Path) -> State:
    """The arrays of weights.npz by name. Raises ModelRejected when it cannot be read."""
    try:
        with np.load(directory / WEIGHTS, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise ModelRejected(f"the artifact has no readable {WEIGHTS}: {error}") from error
