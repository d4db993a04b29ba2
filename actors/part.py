"""One owned partition of a task: its operator, its event time, how far it has read and what it is to commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from actors.operator import BatchOutcome, Operator
from rtrec_ray.clock import wall_ms
from rtrec_ray.eventtime.watermark import Watermark
from rtrec_ray.kafka.base import RecordBatch, TopicPartition
from rtrec_ray.postgres.lease import Lease


@dataclass(slots=True, kw_only=True)
class Part:
    """One owned partition between two commits. `position`: topic → next offset to read; `applied`: ... to commit.

    `wall_ms`: the machine's time, for idleness.
    """

    operator: Operator
    lease: Lease
    watermark: Watermark
    position: dict[str, int]
    applied: dict[str, int]
    counts: Counter[str] = field(default_factory=Counter)
    lag: int = 0
    dirty: bool = False
    wall_ms: Callable[[], int] = wall_ms

    def take(self, batch: RecordBatch) -> None:
        """Apply a batch. Records below `applied` were committed before: they only rebuild the operator's state."""
        outcome = self.operator.apply(batch)
        self.position[batch.topic] = batch.next_offset
        if batch.next_offset > self.applied.get(batch.topic, 0):
            self.applied[batch.topic] = batch.next_offset
            self.dirty = True
        self._observe(batch.topic, outcome)

    def advance(self, *, now_ms: int) -> None:
        """Let event time come to where the watermark stands."""
        before = self.watermark.value_ms
        mark = self.watermark.advance(wall_ms=self.wall_ms(), now_ms=now_ms)
        if mark is not None and not self.rebuilding():
            self.counts.update(self.operator.advance(watermark_ms=mark))
            self.dirty = self.dirty or mark != before
        if mark is None and self.watermark.rests(wall_ms=self.wall_ms()):
            self.dirty = self.operator.rest() or self.dirty

    def rebuilding(self) -> bool:
        """Whether records that were applied before are still being read again."""
        return any(self.position[topic] < offset for topic, offset in self.applied.items())

    def look(self, ends: Mapping[TopicPartition, int], partition: int) -> None:
        """Compare the positions with the log's ends."""
        self.lag = 0
        for topic, position in self.position.items():
            end = ends.get(TopicPartition(topic=topic, partition=partition), position)
            self.lag += max(0, end - position)
            if topic in self.operator.timed:
                self.watermark.looked(topic, at_end=position >= end, wall_ms=self.wall_ms())

    def ahead(self) -> list[str]:
        """Topics whose event time is beyond that of the slowest: those of unknown time are the slowest."""
        times = self.times()
        slowest = min((-1 if ts is None else ts) for ts in times.values())
        return [topic for topic, ts in times.items() if ts is not None and ts > slowest]

    def too_far(self, max_ahead_ms: int | None) -> list[str]:
        """Topics whose event time is further than that beyond the slowest of those that are not idle.

        The slowest is never among them, so reading goes on; one of unknown time bounds nobody.
        """
        known = [ts for ts in self.watermark.active_ms(wall_ms=self.wall_ms()).values() if ts is not None]
        if max_ahead_ms is None or not known:
            return []
        bound = min(known) + max_ahead_ms
        return [topic for topic, ts in self.times().items() if ts is not None and ts > bound]

    def times(self) -> dict[str, int | None]:
        """The largest event time of each topic that the watermark is the minimum over, ms; None for an unknown one."""
        return {topic: self.watermark.max_ts_ms(topic) for topic in self.operator.timed}

    def _observe(self, topic: str, outcome: BatchOutcome) -> None:
        self.counts.update(outcome.counts)
        if topic in self.operator.timed:
            self.watermark.arrived(topic, max_ts_ms=outcome.max_ts_ms)
