"""Consumer over confluent-kafka (librdkafka): the data path, over ten times as fast as the pure-Python client."""

# ruff: noqa: SLF001 - librdkafka's own error codes are public names that begin with an underscore

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import confluent_kafka as rdkafka
import numpy as np

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import ConfigInvalid, KafkaUnavailable, RtrecError
from rtrec_ray.kafka.base import EARLIEST, KafkaOptions, RecordBatch, TopicPartition
from rtrec_ray.kafka.librdkafka import ERROR, MEND, common_settings, make_client, raise_unavailable

log = logging.getLogger(__name__)

_DOWN: Final = frozenset({ERROR._ALL_BROKERS_DOWN, ERROR._AUTHENTICATION, ERROR._RESOLVE, ERROR._SSL})
_OUTSIDE: Final = frozenset({ERROR._AUTO_OFFSET_RESET, ERROR.OFFSET_OUT_OF_RANGE})
_ABSENT: Final = frozenset({ERROR.UNKNOWN_TOPIC_OR_PART, ERROR._UNKNOWN_TOPIC, ERROR._UNKNOWN_PARTITION})
# A partition that was just made, or whose broker just went, has no leader for a moment.
_LEADERLESS: Final = frozenset({ERROR.NOT_LEADER_FOR_PARTITION, ERROR.LEADER_NOT_AVAILABLE})
_LEADER_WAIT_S: Final = 0.1
_STAMP: Final = itemgetter(1)  # of the kind of a time stamp and the stamp


class ConfluentConsumer:
    """Consumer with explicit positions; `fetch_bytes` of the options bounds what it reads ahead."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._trouble: RtrecError | None = None
        self._down = ""
        self._positions: dict[tuple[str, int], int] = {}
        self._client: Any = make_client(rdkafka.Consumer, self._settings())
        # Asked by the client that reads, a broker answers after the fetch that it holds back while there is nothing
        # new: up to 100 ms for each partition.
        self._asking: Any = make_client(rdkafka.Consumer, self._settings())

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._positions = {self._place(part): offset for part, offset in positions.items()}
        self._trouble = None
        start = {EARLIEST: rdkafka.OFFSET_BEGINNING}
        parts = [rdkafka.TopicPartition(*place, start.get(offset, offset)) for place, offset in self._positions.items()]
        self._client.assign(parts)
        self._client.resume(parts)  # a pause outlives an assignment

    def poll(self, *, max_records: int, timeout_s: float) -> list[RecordBatch]:
        deadline = monotonic_s() + timeout_s
        while True:
            self._raise_trouble()
            batches = self._batches(self._consume(max_records, max(0.0, deadline - monotonic_s())))
            if batches or monotonic_s() >= deadline:
                break
        if batches:
            self._down = ""
        elif self._down:
            self._probe()
        return batches

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {part: self._range(*self._place(part))[1] for part in partitions}

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self._client.pause([rdkafka.TopicPartition(*self._place(part)) for part in partitions])

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._client.resume([rdkafka.TopicPartition(*self._place(part)) for part in partitions])

    def close(self) -> None:
        """Give both clients back. librdkafka sometimes does not return from that (confluent-kafka-python, issue 1667),
        and a stage whose session ended would never begin the next one: such a client is left to itself.
        """
        closing = threading.Thread(target=self._close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(self._options.timeout_s)
        if closing.is_alive():
            log.warning("consumer_not_closed", extra={"waited_s": self._options.timeout_s})

    def _close(self) -> None:
        self._client.close()
        self._asking.close()

    def _settings(self) -> dict[str, Any]:
        return {
            **common_settings(self._options),
            "group.id": "rtrec",  # the client insists on a name; nothing is committed under it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # A position outside the log must not silently become another one.
            "auto.offset.reset": "error",
            # Tells the position behind the markers that a transaction leaves at the log's end.
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,
            # When its queue is full, the client by default waits a second before it fetches again.
            "fetch.queue.backoff.ms": 10,
            "fetch.message.max.bytes": 4 << 20,
            "queued.max.messages.kbytes": max(1, self._options.fetch_bytes >> 10),
            "error_cb": self._noted,
            **self._options.client,
        }

    def _place(self, part: TopicPartition) -> tuple[str, int]:
        return self._options.physical(part.topic), part.partition

    def _noted(self, error: Any) -> None:
        if error.code() in _DOWN:
            self._down = error.str()

    def _consume(self, max_records: int, timeout_s: float) -> list[Any]:
        try:
            # Asked for many, librdkafka waits for all of them until the time-out: wait for one, take what is there.
            messages: list[Any] = self._client.consume(1, timeout_s)
            return messages + self._client.consume(max_records - 1, 0) if messages and max_records > 1 else messages
        except rdkafka.KafkaException as error:
            raise KafkaUnavailable(f"reading failed: {error.args[0]}", mend=MEND) from error

    def _batches(self, messages: list[Any]) -> list[RecordBatch]:
        moved: dict[tuple[str, int], list[Any]] = {}
        ends: dict[tuple[str, int], int] = {}
        for place, records in _runs(messages):
            if any(map(rdkafka.Message.error, records)):
                records = self._without_errors(place, records, ends)
            moved.setdefault(place, []).extend(records)
        return [
            batch for place, run in moved.items() if (batch := self._batch(place, run, ends.get(place))) is not None
        ]

    def _without_errors(self, place: tuple[str, int], run: list[Any], ends: dict[tuple[str, int], int]) -> list[Any]:
        for message in run:
            error = message.error()
            if error is not None and error.code() == ERROR._PARTITION_EOF:
                ends[place] = message.offset()
            elif error is not None:
                self._fail(place, error)
        return [message for message in run if message.error() is None]

    def _batch(self, place: tuple[str, int], run: list[Any], end: int | None) -> RecordBatch | None:
        offsets = np.fromiter(map(rdkafka.Message.offset, run), dtype=np.int64, count=len(run))
        next_offset = int(offsets[-1]) + 1 if run else self._positions.get(place, 0)
        if end is not None:
            next_offset = max(next_offset, end)
        if not run and next_offset == self._positions.get(place):
            return None
        self._positions[place] = next_offset
        return RecordBatch(
            topic=self._options.logical(place[0]),
            partition=place[1],
            offsets=offsets,
            values=list(map(rdkafka.Message.value, run)),
            stamps_ms=np.fromiter(map(_STAMP, map(rdkafka.Message.timestamp, run)), dtype=np.int64, count=len(run)),
            next_offset=next_offset,
        )

    def _fail(self, place: tuple[str, int], error: Any) -> None:
        """Keep an error of a partition for the next poll: the records beside it come first."""
        if error.code() in _OUTSIDE:
            self._move_into_log(place)
        elif error.code() in _ABSENT:
            self._trouble = KafkaUnavailable(
                f"Kafka has no partition {place[1]} of topic {place[0]}", mend="`rtrec up` makes the topics"
            )
        else:
            self._trouble = KafkaUnavailable(f"reading {place[0]} [{place[1]}] failed: {error.str()}", mend=MEND)

    def _move_into_log(self, place: tuple[str, int]) -> None:
        low, high = self._range(*place)
        position = self._positions[place]
        if position > high:
            self._trouble = ConfigInvalid(
                f"topic {place[0]} [{place[1]}] ends at {high}, before the committed position {position}",
                mend="the topic was made anew, or kafka.bootstrap names another cluster than before",
            )
            return
        log.warning("records_expired", extra={"topic": place[0], "partition": place[1], "from": position, "to": low})
        self._positions[place] = low
        self._client.seek(rdkafka.TopicPartition(*place, low))

    def _range(self, topic: str, partition: int) -> tuple[int, int]:
        deadline = monotonic_s() + self._options.timeout_s
        while True:
            try:
                answer = self._asking.get_watermark_offsets(
                    rdkafka.TopicPartition(topic, partition), timeout=max(0.1, deadline - monotonic_s())
                )
            except rdkafka.KafkaException as error:
                if error.args[0].code() not in _LEADERLESS or monotonic_s() > deadline:
                    raise_unavailable(f"asking for the end of {topic} [{partition}] failed", error)
                time.sleep(_LEADER_WAIT_S)
                continue
            if answer is None:
                raise KafkaUnavailable(f"no answer about the end of {topic} [{partition}]", mend=MEND)
            low, high = answer
            return low, high

    def _raise_trouble(self) -> None:
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    def _probe(self) -> None:
        """The client says when the brokers went, not when they came back."""
        try:
            self._client.list_topics(timeout=1.0)
        except rdkafka.KafkaException as error:
            raise KafkaUnavailable(f"Kafka does not answer: {self._down}", mend=MEND) from error
        self._down = ""


def _runs(messages: Iterable[Any]) -> Iterator[tuple[tuple[str, int], list[Any]]]:
    """Stretches of messages of one topic and partition."""
    # The client's own methods are the keys: a function of ours would cost as much as decoding.
    for partition, of_partition in groupby(messages, key=rdkafka.Message.partition):
        for topic, run in groupby(of_partition, key=rdkafka.Message.topic):
            yield (topic, partition), list(run)
