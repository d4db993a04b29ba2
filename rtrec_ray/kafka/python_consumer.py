"""Consumer over kafka-python: for places without a C library, at about 50,000 records a second."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

import kafka
import numpy as np
from kafka import errors

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import ConfigInvalid, KafkaUnavailable
from rtrec_ray.kafka.base import EARLIEST, KafkaOptions, RecordBatch, TopicPartition
from rtrec_ray.kafka.python_client import common_settings, quiet, translated, translating

log = logging.getLogger(__name__)

_PROBE_EVERY_S: Final = 1.0


class PythonConsumer:
    """Consumer with explicit positions. It connects at its first use: kafka-python does so when it is made."""

    def __init__(self, options: KafkaOptions) -> None:
        translated(options.client)  # a setting that cannot be used is refused at once
        self._options = options
        self._made: Any = None
        self._wanted: dict[Any, int] = {}
        self._positions: dict[Any, int] = {}
        self._probed_s = 0.0
        self._down = False

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._wanted = {self._place(part): offset for part, offset in positions.items()}
        if self._made is not None:
            self._apply(self._made)

    def poll(self, *, max_records: int, timeout_s: float) -> list[RecordBatch]:
        deadline = monotonic_s() + timeout_s
        while True:
            batches = self._poll_once(max_records, max(0.0, deadline - monotonic_s()))
            if batches or monotonic_s() >= deadline:
                break
        if not batches and self._wanted:
            self._probe()
        return batches

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        parts = {part: self._place(part) for part in partitions}
        with translating("asking for the log's end failed"):
            ends = self._client().end_offsets(list(parts.values()), timeout_ms=self._timeout_ms())
        return {part: ends[place] for part, place in parts.items()}

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self._client().pause(*map(self._place, partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._client().resume(*map(self._place, partitions))

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            with translating("closing failed"):
                made.close(autocommit=False, timeout_ms=1_000)

    def _client(self) -> Any:
        if self._made is None:
            quiet()
            with translating("connecting failed"):
                self._made = kafka.KafkaConsumer(**self._settings())
                self._apply(self._made)
        return self._made

    def _settings(self) -> dict[str, object]:
        return {
            **common_settings(self._options),
            "group_id": None,
            "enable_auto_commit": False,
            # A position outside the log must not silently become another one.
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "allow_auto_create_topics": False,
            "fetch_max_wait_ms": 100,
            "fetch_max_bytes": self._options.fetch_bytes,
            "max_partition_fetch_bytes": 4 << 20,
        }

    def _apply(self, client: Any) -> None:
        client.resume(*client.paused())  # a pause outlives an assignment
        client.assign(list(self._wanted))
        for place, offset in self._wanted.items():
            if offset == EARLIEST:
                client.seek_to_beginning(place)
            else:
                client.seek(place, offset)
        self._positions = dict(self._wanted)

    def _place(self, part: TopicPartition) -> Any:
        return kafka.TopicPartition(self._options.physical(part.topic), part.partition)

    def _timeout_ms(self) -> int:
        return round(self._options.timeout_s * 1000)

    def _poll_once(self, max_records: int, timeout_s: float) -> list[RecordBatch]:
        client = self._client()
        with translating("reading failed"):
            try:
                found = client.poll(timeout_ms=round(timeout_s * 1000), max_records=max_records)
            except errors.OffsetOutOfRangeError as error:
                self._move_into_log(error.args[0])
                return []
        return [batch for place in self._positions if (batch := self._batch(place, found.get(place, []))) is not None]

    def _batch(self, place: Any, run: list[Any]) -> RecordBatch | None:
        next_offset = self._next_offset(place, run)
        if not run and next_offset == self._positions[place]:
            return None
        self._positions[place] = next_offset
        self._down = False
        return RecordBatch(
            topic=self._options.logical(place.topic),
            partition=place.partition,
            offsets=np.fromiter((record.offset for record in run), dtype=np.int64, count=len(run)),
            values=[record.value for record in run],
            stamps_ms=np.fromiter((record.timestamp for record in run), dtype=np.int64, count=len(run)),
            next_offset=next_offset,
        )

    def _next_offset(self, place: Any, run: list[Any]) -> int:
        # The markers that a transaction leaves move the client's position without a record.
        with translating("asking for a position failed"):
            position = self._client().position(place, timeout_ms=0) if self._positions[place] != EARLIEST else None
        known = self._positions[place] if not run else run[-1].offset + 1
        return max(known, position) if position is not None else known

    def _move_into_log(self, offsets: Mapping[Any, int]) -> None:
        for place, position in offsets.items():
            low = self._client().beginning_offsets([place], timeout_ms=self._timeout_ms())[place]
            if position >= low:
                raise ConfigInvalid(
                    f"topic {place.topic} [{place.partition}] ends before the committed position {position}",
                    mend="the topic was made anew, or kafka.bootstrap names another cluster than before",
                )
            log.warning(
                "records_expired",
                extra={"topic": place.topic, "partition": place.partition, "from": position, "to": low},
            )
            self._positions[place] = low
            self._client().seek(place, low)

    def _probe(self) -> None:
        """An empty answer may mean that nobody answers."""
        if not self._down and monotonic_s() < self._probed_s + _PROBE_EVERY_S:
            return
        self._probed_s = monotonic_s()
        self._down = True
        place = next(iter(self._wanted))
        with translating("Kafka does not answer"):
            if place not in self._client().end_offsets([place], timeout_ms=1_000):
                raise KafkaUnavailable(f"Kafka has no partition {place.partition} of topic {place.topic}")
        self._down = False
