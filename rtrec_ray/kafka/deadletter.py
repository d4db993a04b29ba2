"""Records that nobody can use: kept with their place, the reason, the field and the original bytes.

One JSON object each on topic `dead-letter`, key `topic-partition-offset`, so that a record told twice after a crash is
seen to be the same one.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from rtrec_ray.errors import RecordInvalid
from rtrec_ray.events import DEAD_LETTER
from rtrec_ray.kafka.base import MAX_DEAD_LETTER_BYTES, Producer

Reason = Literal[
    "tombstone",  # no value at all
    "empty",  # a value of no bytes
    "not_json",
    "not_unicode",
    "not_an_object",
    "too_deep",  # nested beyond what the decoder follows
    "missing_field",
    "wrong_type",
    "unknown_value",  # of an enumeration, such as event_type
    "out_of_range",  # beyond 64 bits
    "nul_character",  # which PostgreSQL cannot store in a text
    "before_2000",
    "ahead_of_clock",
    "another_user",  # of a retraction: what it takes back is of somebody else
    "before_original",  # of a retraction: older than what it takes back
]

# Room for the other fields and the framing; four characters of base64 carry three bytes.
_LARGEST_VALUE: Final = (MAX_DEAD_LETTER_BYTES - 4096) // 4 * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a record is refused, and for which field (dotted path; None if it is not about one field).

    >>> str(Fault(reason="wrong_type", field="ts"))
    'ts: wrong_type'
    """

    reason: Reason
    field: str | None = None

    def __str__(self) -> str:
        return self.reason if self.field is None else f"{self.field}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A refused record: where it lies, why, and its bytes (None: it had none)."""

    topic: str
    partition: int
    offset: int
    reason: Reason
    field: str | None
    value: bytes | None

    @property
    def key(self) -> bytes:
        """What names the record for good: topic, partition, offset."""
        return f"{self.topic}-{self.partition}-{self.offset}".encode()


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    topic: str
    partition: int
    offset: int
    reason: Reason
    field: str | None
    value_base64: str | None
    value_bytes: int
    at_ms: int


def encode_dead(letter: DeadLetter, *, at_ms: int) -> bytes:
    """The record for topic `dead-letter`. `at_ms`: the wall time of refusing, ms.

    A value larger than the topic takes is cut (`value_bytes` tells its real size); its place names it.
    """
    value = letter.value
    wire = _Wire(
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        reason=letter.reason,
        field=letter.field,
        value_base64=None if value is None else base64.b64encode(value[:_LARGEST_VALUE]).decode(),
        value_bytes=0 if value is None else len(value),
        at_ms=at_ms,
    )
    return msgspec.json.encode(wire)


def decode_dead(value: bytes) -> DeadLetter:
    """Read a record of topic `dead-letter`. Raises RecordInvalid."""
    try:
        wire = msgspec.json.decode(value, type=_Wire)
        original = None if wire.value_base64 is None else base64.b64decode(wire.value_base64, validate=True)
    except ValueError as error:  # msgspec.DecodeError, UnicodeDecodeError and binascii.Error are ValueErrors
        raise RecordInvalid(f"not a dead letter: {error}") from error
    return DeadLetter(
        topic=wire.topic,
        partition=wire.partition,
        offset=wire.offset,
        reason=wire.reason,
        field=wire.field,
        value=original,
    )


def send_dead(producer: Producer, letters: Sequence[DeadLetter], *, at_ms: int) -> None:
    """Queue dead letters; the caller flushes before it commits the positions behind them."""
    if letters:
        producer.send_many(
            DEAD_LETTER,
            [letter.key for letter in letters],
            [encode_dead(letter, at_ms=at_ms) for letter in letters],
        )
