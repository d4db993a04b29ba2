"""A log in memory, with the same manners as a real one: for tests, and to try an idea without a broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from rtrec_ray.clock import wall_ms
from rtrec_ray.errors import KafkaUnavailable
from rtrec_ray.kafka.base import (
    EARLIEST,
    MAX_RECORD_BYTES,
    KafkaOptions,
    RecordBatch,
    TopicPartition,
    TopicSpec,
    check_size,
)
from rtrec_ray.kafka.partitioner import partition_of
from rtrec_ray.kafka.stamps import STAMPS, ensure


class _Record(NamedTuple):
    key: bytes
    value: bytes | None
    timestamp_ms: int


class MemoryBroker:
    """The log. Shared by all clients of a test; `stop` and `start` take it away and bring it back, records and all.

    >>> broker = MemoryBroker(partitions=1)
    >>> broker.producer().send("behavior", key=b"1", value=b"{}")
    >>> broker.records("behavior")
    [b'{}']
    """

    def __init__(self, *, partitions: int = 4, now_ms: Callable[[], int] = wall_ms) -> None:
        self._partitions = partitions
        self._now_ms = now_ms
        self._log: dict[str, list[list[_Record]]] = {}
        self._stamps: dict[str, str] = {}
        self._changed = threading.Condition()
        self._up = True

    def stop(self) -> None:
        """Go away: every call of a client raises KafkaUnavailable."""
        with self._changed:
            self._up = False
            self._changed.notify_all()

    def start(self) -> None:
        """Come back with all records."""
        with self._changed:
            self._up = True

    def records(self, topic: str) -> list[bytes | None]:
        """All values of a topic, partition by partition."""
        with self._changed:
            return [record.value for partition in self._log.get(topic, []) for record in partition]

    def keys(self, topic: str) -> list[bytes]:
        """All keys of a topic, partition by partition."""
        with self._changed:
            return [record.key for partition in self._log.get(topic, []) for record in partition]

    def append(self, topic: str, partition: int, value: bytes | None, *, timestamp_ms: int | None = None) -> int:
        """Write past the producer, into a chosen partition at a chosen time; answers the offset."""
        with self._changed:
            log = self._topic(topic)[partition]
            log.append(_Record(b"", value, self._now_ms() if timestamp_ms is None else timestamp_ms))
            self._changed.notify_all()
            return len(log) - 1

    def consumer(self) -> MemoryConsumer:
        """A new reader of this log."""
        return MemoryConsumer(self)

    def producer(self, *, max_record_bytes: int = MAX_RECORD_BYTES) -> MemoryProducer:
        """A new writer to this log."""
        return MemoryProducer(self, max_record_bytes=max_record_bytes)

    def admin(self) -> MemoryAdmin:
        """A new administrator of this log."""
        return MemoryAdmin(self)

    def _topic(self, topic: str, *, partitions: int | None = None) -> list[list[_Record]]:
        if topic not in self._log:
            self._log[topic] = [[] for _ in range(partitions or self._partitions)]
        return self._log[topic]

    def require_up(self) -> None:
        """Raise KafkaUnavailable while the broker is stopped."""
        if not self._up:
            raise KafkaUnavailable("the in-memory broker is stopped")

    def write(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Append each record to the partition of its key."""
        with self._changed:
            self.require_up()
            logs, now_ms = self._topic(topic), self._now_ms()
            for key, value in zip(keys, values, strict=True):
                logs[partition_of(key, partitions=len(logs))].append(_Record(key, value, now_ms))
            self._changed.notify_all()

    def end(self, part: TopicPartition) -> int:
        """The offset after the partition's last record."""
        with self._changed:
            self.require_up()
            return len(self._topic(part.topic)[part.partition])

    def read(self, positions: Mapping[TopicPartition, int], *, max_records: int, timeout_s: float) -> list[RecordBatch]:
        """At most `max_records` records from these positions on, in the order given; waits for the first one."""
        with self._changed:
            batches = self._take(positions, max_records)
            if not batches and timeout_s > 0:
                self._changed.wait(timeout_s)
                batches = self._take(positions, max_records)
            return batches

    def _take(self, positions: Mapping[TopicPartition, int], max_records: int) -> list[RecordBatch]:
        self.require_up()
        batches: list[RecordBatch] = []
        for part, start in positions.items():
            records = self._topic(part.topic)[part.partition][start : start + max_records]
            if records:
                batches.append(_batch(part, start, records))
                max_records -= len(records)
        return batches

    def make(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Make the missing topics; answers their names. Raises ConfigInvalid, see Admin."""
        with self._changed:
            self.require_up()
            return ensure(
                specs,
                is_there=self._log.__contains__,
                make=self._make,
                # A topic that the first write made is stamped here.
                stamps=lambda topic: self._stamps.get(topic, "LogAppendTime"),
                options=KafkaOptions(),
            )

    def _make(self, specs: Sequence[TopicSpec]) -> list[str]:
        for spec in specs:
            self._topic(spec.topic, partitions=spec.partitions)
            self._stamps[spec.topic] = spec.settings.get(STAMPS, "LogAppendTime")
        return [spec.topic for spec in specs]

    def count(self, topic: str) -> int | None:
        """The topic's number of partitions; None if there is no such topic."""
        with self._changed:
            self.require_up()
            return len(self._log[topic]) if topic in self._log else None


def _batch(part: TopicPartition, start: int, records: Sequence[_Record]) -> RecordBatch:
    return RecordBatch(
        topic=part.topic,
        partition=part.partition,
        offsets=np.arange(start, start + len(records), dtype=np.int64),
        values=[record.value for record in records],
        stamps_ms=np.fromiter((record.timestamp_ms for record in records), dtype=np.int64, count=len(records)),
        next_offset=start + len(records),
    )


class MemoryConsumer:
    """Consumer of a MemoryBroker."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._positions = {part: 0 if offset == EARLIEST else offset for part, offset in positions.items()}
        self._paused = set()

    def poll(self, *, max_records: int, timeout_s: float) -> list[RecordBatch]:
        wanted = {part: offset for part, offset in self._positions.items() if part not in self._paused}
        batches = self._broker.read(wanted, max_records=max_records, timeout_s=timeout_s)
        for batch in batches:
            part = TopicPartition(topic=batch.topic, partition=batch.partition)
            # Behind the others from now on: a full partition must not starve its neighbours.
            del self._positions[part]
            self._positions[part] = batch.next_offset
        return batches

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {part: self._broker.end(part) for part in partitions}

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._paused -= set(partitions)

    def close(self) -> None:
        self._positions = {}


class MemoryProducer:
    """Producer of a MemoryBroker: a record is written, and so acknowledged, at once."""

    def __init__(self, broker: MemoryBroker, *, max_record_bytes: int) -> None:
        self._broker = broker
        self._limit = max_record_bytes

    def send(self, topic: str, *, key: bytes, value: bytes | None) -> None:
        self.send_many(topic, [key], [value])

    def send_many(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        check_size(topic, values, limit=self._limit)
        self._broker.write(topic, keys, values)

    def deliver(
        self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None], *, timeout_s: float | None = None
    ) -> None:
        self.send_many(topic, keys, values)

    def flush(self, *, timeout_s: float | None = None) -> None:
        self._broker.require_up()

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True, slots=True)
class MemoryAdmin:
    """Admin of a MemoryBroker."""

    broker: MemoryBroker

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        return self.broker.make(specs)

    def partitions(self, topic: str) -> int | None:
        return self.broker.count(topic)

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
