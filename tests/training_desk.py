"""The servers of a training run in memory, for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from rtrec_ray.clock import Clock, ManualClock
from rtrec_ray.metadata.memory import MemoryMetadataStore
from rtrec_ray.notification.memory import MemoryNotificationStore
from rtrec_ray.registry.base import Draft, ModelVersion
from rtrec_ray.registry.changes import MemoryChangeBook
from rtrec_ray.registry.memory import MemoryModelCenter
from rtrec_ray.stores.changes.log import MemoryChangeLog, MemorySlots
from rtrec_ray.stores.samples.store import MemorySampleStore
from rtrec_ray.stores.training import MemoryTrainingBook
from tests.sample_rows import START_MS
from training.definition import DcnOptions, ModelDefinition, load_definition
from training.loop import Learner
from training.publish import Exporter, announce, publish

SHIPPED = Path(__file__).parents[1] / "configs" / "model.yaml"


def small_definition(**changes: object) -> ModelDefinition:
    """The shipped definition, small and quick to learn."""
    return msgspec.structs.replace(
        load_definition(SHIPPED),
        batch_rows=64,
        increment_batch_rows=32,
        dcn=DcnOptions(dim=4, cross_layers=1, hidden=(16,), learning_rate=0.01, increment_learning_rate=0.02),
        **changes,
    )


@dataclass
class MemoryConnections:
    """A Connections whose servers are this process's memory; each call answers the same one."""

    root: Path
    snapshot: str | None = "5n4p5h07"
    clock: Clock = field(default_factory=lambda: ManualClock(now_ms=START_MS))

    def __post_init__(self) -> None:
        self._samples = MemorySampleStore()
        self.slots = MemorySlots()
        self._center = MemoryModelCenter(self.root)
        self._events = MemoryNotificationStore(clock=self.clock)
        self._book = MemoryTrainingBook()
        self._metadata = MemoryMetadataStore()
        self._changes = MemoryChangeBook(self._events, self._metadata, clock=self.clock)

    def samples(self) -> MemorySampleStore:
        return self._samples

    def change_log(self, run: str) -> MemoryChangeLog:
        return MemoryChangeLog(self._samples, self.slots, name=run)

    def center(self) -> MemoryModelCenter:
        return self._center

    def events(self) -> MemoryNotificationStore:
        return self._events

    def book(self) -> MemoryTrainingBook:
        return self._book

    def model_changes(self) -> MemoryChangeBook:
        return self._changes

    def metadata(self) -> MemoryMetadataStore:
        return self._metadata


def put_base(
    connections: MemoryConnections,
    definition: ModelDefinition,
    *,
    to_seq: int = 0,
    base_rate: float = 0.15,
    champion: bool = True,
    learner: Learner | None = None,
) -> ModelVersion:
    """Log a base version that has learnt nothing, or what `learner` has; make it the champion."""
    learner = learner or Learner(definition, base_rate=base_rate)
    draft = Draft(
        kind="base",
        model=definition.family,
        from_seq=1,
        to_seq=to_seq,
        trained_to_ms=START_MS,
        created_ms=START_MS,
    )
    exporter = Exporter(definition, base_rate=learner.base_rate)
    version = publish(connections.center(), exporter, learner.state(), draft)
    announce(connections, version)
    return connections.center().set_champion(version.version) if champion else version
