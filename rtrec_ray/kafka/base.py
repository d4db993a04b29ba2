"""The port: how the rest of the system reads and writes the log, whatever client carries it.

Topic names here are the logical ones of `rtrec_ray.events`; an adapter appends `KafkaOptions.suffix` on the way out and
takes it off on the way in. Positions are explicit: no consumer group moves a partition, because its owner is decided by
a lease in PostgreSQL and its position is committed there with the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt

from rtrec_ray.errors import ConfigInvalid, RecordTooLarge
from rtrec_ray.events import DEAD_LETTER

EARLIEST: Final = -2
"""As a position: the oldest record that the log still holds."""

MAX_RECORD_BYTES: Final = 1 << 20
"""The largest value a producer sends, bytes. A broker takes 1 MiB by default, key and framing included."""

MAX_DEAD_LETTER_BYTES: Final = 2 << 20
"""The largest dead letter, bytes: base64 makes a record of 1 MiB 1.34 MiB long. Its topic is made to take that."""

Library = Literal["confluent", "kafka-python"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """Where Kafka is and how it is spoken to.

    `client`: further settings for the client under librdkafka's property names, such as `security.protocol`,
    `sasl.username` or `ssl.ca.location`; secrets come from the environment. `suffix` is appended to every topic name.
    `partitions` is for topics made by `rtrec up`; an existing topic keeps its own number.
    """

    bootstrap: str = "127.0.0.1:9092"
    library: Library = "confluent"
    client: Mapping[str, str] = field(default_factory=dict)
    partitions: int = 4
    replication: int = 1
    suffix: str = ""
    timeout_s: float = 10.0
    max_record_bytes: int = MAX_RECORD_BYTES
    fetch_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        if self.library not in get_args(Library):
            raise ConfigInvalid(
                f"kafka.library: {self.library!r} is not known", mend=f"use one of {', '.join(get_args(Library))}"
            )

    def physical(self, topic: str) -> str:
        """The topic's name on the broker.

        >>> KafkaOptions(suffix="-tiny").physical("behavior")
        'behavior-tiny'
        """
        return topic + self.suffix

    def logical(self, topic: str) -> str:
        """The topic's name in this system.

        >>> KafkaOptions(suffix="-tiny").logical("behavior-tiny")
        'behavior'
        """
        return topic.removesuffix(self.suffix)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TopicPartition:
    """One partition of one topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic to be made. `settings`: Kafka's own topic settings, such as `retention.ms`."""

    topic: str
    partitions: int
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordBatch:
    """Records of one partition in the log's order.

    `offsets`: (n,) int64, ascending, with gaps where the log has them. `values`: n raw values, None for a tombstone.
    `stamps_ms`: (n,) int64, when each was written, ms of wall time UTC; -1 where Kafka does not know.
    `next_offset`: where reading goes on; a batch without records only moves this, past what a transaction left behind.

    >>> batch = record_batch("behavior", 0, [b"{}", None], first_offset=7, timestamp_ms=1_000)
    >>> len(batch), batch.offsets.tolist(), batch.next_offset, batch.stamps_ms.tolist()
    (2, [7, 8], 9, [1000, 1000])
    """

    topic: str
    partition: int
    offsets: npt.NDArray[np.int64]
    values: list[bytes | None]
    stamps_ms: npt.NDArray[np.int64]
    next_offset: int

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indexes: npt.NDArray[np.int64]) -> RecordBatch:
        """The same batch with only the records at these indexes. indexes: (k,) ascending."""
        return RecordBatch(
            topic=self.topic,
            partition=self.partition,
            offsets=self.offsets[indexes],
            values=[self.values[index] for index in indexes],
            stamps_ms=self.stamps_ms[indexes],
            next_offset=self.next_offset,
        )

    def since(self, offset: int) -> RecordBatch:
        """The same batch without the records below `offset`."""
        skip = int(np.searchsorted(self.offsets, offset))
        return RecordBatch(
            topic=self.topic,
            partition=self.partition,
            offsets=self.offsets[skip:],
            values=self.values[skip:],
            stamps_ms=self.stamps_ms[skip:],
            next_offset=self.next_offset,
        )


def record_batch(
    topic: str, partition: int, values: Sequence[bytes | None], *, first_offset: int = 0, timestamp_ms: int = 0
) -> RecordBatch:
    """A batch out of plain values at consecutive offsets, all written at `timestamp_ms`."""
    offsets = np.arange(first_offset, first_offset + len(values), dtype=np.int64)
    return RecordBatch(
        topic=topic,
        partition=partition,
        offsets=offsets,
        values=list(values),
        stamps_ms=np.full(len(values), timestamp_ms, dtype=np.int64),
        next_offset=first_offset + len(values),
    )


class Consumer(Protocol):
    """Reads partitions from explicit positions. Used by one thread."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read exactly these partitions from these offsets on (`EARLIEST` is allowed); replaces what was assigned."""
        ...

    def poll(self, *, max_records: int, timeout_s: float) -> list[RecordBatch]:
        """At most `max_records` records, as soon as there are any; an empty list after `timeout_s` without.

        Raises KafkaUnavailable while the brokers are away; poll again, the positions are kept.
        """
        ...

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last readable record of each. Raises KafkaUnavailable."""
        ...

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these until they are resumed."""
        ...

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver these again, from where they stopped."""
        ...

    def close(self) -> None:
        """Give the connections back. Closing twice is harmless."""
        ...


class Producer(Protocol):
    """Writes records, each acknowledged by all in-sync replicas. May be shared by threads."""

    def send(self, topic: str, *, key: bytes, value: bytes | None) -> None:
        """Queue one record; waits while the queue is full.

        Raises RecordTooLarge, or KafkaUnavailable when the queue stays full for the time-out.
        """
        ...

    def send_many(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Queue many records in order. As `send`; nothing is queued if one of them is too large."""
        ...

    def deliver(
        self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None], *, timeout_s: float | None = None
    ) -> None:
        """Send these and wait until exactly these are acknowledged.

        Raises KafkaUnavailable when some were not within the time-out: those may or may not be written later.
        """
        ...

    def flush(self, *, timeout_s: float | None = None) -> None:
        """Wait until everything sent so far is acknowledged.

        Raises KafkaUnavailable when something was refused since the last flush or is not acknowledged in time.
        """
        ...

    def close(self) -> None:
        """Give the connections back; what is not flushed may be lost. Closing twice is harmless."""
        ...


class Admin(Protocol):
    """Makes and looks at topics."""

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Make those that are missing; answers their names. Existing ones stay as they are.

        Raises KafkaUnavailable, and ConfigInvalid for an existing one whose records are stamped otherwise than its spec
        says; where the cluster does not let us ask how they are, that is only logged.
        """
        ...

    def partitions(self, topic: str) -> int | None:
        """How many partitions the topic has; None if there is no such topic. Raises KafkaUnavailable."""
        ...

    def close(self) -> None:
        """Give the connections back. Closing twice is harmless."""
        ...

    def __enter__(self) -> Self:
        """Close at the end of a `with` block."""
        ...

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        ...


def check_size(topic: str, values: Iterable[bytes | None], *, limit: int) -> None:
    """Refuse a record that the topic would not take.

    >>> check_size("behavior", [b"abc"], limit=2)
    Traceback (most recent call last):
    rtrec_ray.errors.RecordTooLarge: a record of 3 bytes for topic behavior is over the limit of 2 bytes
    """
    limit = max(limit, MAX_DEAD_LETTER_BYTES) if topic == DEAD_LETTER else limit
    size = max((len(value) for value in values if value is not None), default=0)
    if size > limit:
        raise RecordTooLarge(
            f"a record of {size} bytes for topic {topic} is over the limit of {limit} bytes",
            mend="send smaller records, or raise kafka.max_record_bytes and the topic's max.message.bytes together",
        )
