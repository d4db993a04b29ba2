"""A base version and the increments on it, as the run that makes them holds it in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from rtrec_ray.registry.base import ModelCenter, ModelVersion, fallen
from training.dataset import SampleBatch
from training.definition import ModelDefinition
from training.loop import Learner, State
from training.publish import Exporter, fetch

__all__ = ["Chain", "begin_chain", "newest_of_chain"]

_LOOK_BACK = 200  # versions; more than an hour of them


@dataclass(slots=True, kw_only=True)
class Chain:
    """Where the run is. `root`: the base version; `parent`: the last published one; `position`: commit_seq trained to;
    `lsn`: from where on the write-ahead log has all that comes after it, None when that is not known.

    `definition`: with the steps of increments; the exporter has the base's own, so that the next start finds what this
    one found. `base` scores as the base does and is never trained; None where the run only learns (workers after the
    first).
    """

    root: str
    parent: ModelVersion
    position: int
    lsn: int | None
    trained_to_ms: int
    definition: ModelDefinition
    learner: Learner
    exporter: Exporter
    base: Learner
    rows_trained: int = 0
    steps_left_out: int = 0

    def moved(self) -> bool:
        """Whether anything was taken in since the last published version."""
        return self.position > self.parent.draft.to_seq

    def took(self, batch: SampleBatch) -> None:
        """Note that a batch of the ledger was taken in."""
        self.position = int(batch.commit_seq[-1])
        self.trained_to_ms = max(self.trained_to_ms, int(batch.event_time_ms.max()))
        self.rows_trained += int((~batch.held_out).sum())


def newest_of_chain(center: ModelCenter) -> ModelVersion | None:
    """The version to go on from: the newest on the champion's base that may yet serve; None without a champion.

    A version that still waits for the gate counts: it is this run's own last word, and what it was trained on must not
    be trained on twice. One that stands on a version which was rolled back does not. Raises RegistryUnavailable.
    """
    champion = center.champion()
    if champion is None:
        return None
    chain = [
        version
        for version in center.list(limit=_LOOK_BACK)
        if version.root == champion.root and version.status != "rejected"
    ]
    newest_first = sorted(chain, key=lambda version: (version.draft.to_seq, int(version.version)), reverse=True)
    return next((version for version in newest_first if fallen(center, version.version) is None), champion)


def begin_chain(
    center: ModelCenter, version: ModelVersion, *, strategy: Callable[[], tf.distribute.Strategy | None]
) -> Chain:
    """Load what is needed to go on from `version`. Raises ModelRejected, RegistryUnavailable."""
    definition, card, state = fetch(center, version.version)
    increments = definition.for_increments()
    learner = Learner(increments, base_rate=card.base_rate, strategy=strategy())
    learner.restore(state)
    base = Learner(increments, base_rate=card.base_rate)  # of the learner's batch size, whose batches it scores
    base.restore(_base_state(center, version, state))
    return Chain(
        root=version.root,
        parent=version,
        position=card.to_seq,
        lsn=version.draft.to_lsn,
        trained_to_ms=card.trained_to_ms,
        definition=increments,
        learner=learner,
        exporter=Exporter(definition, base_rate=card.base_rate),
        base=base,
    )


def _base_state(center: ModelCenter, version: ModelVersion, own: State) -> State:
    return own if version.root == version.version else fetch(center, version.root)[2]
