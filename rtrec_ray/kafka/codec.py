"""Bytes of the log ⇄ columns.

A batch in order is decoded whole: one strict decoder call a record and one list a column, nothing else per event
(benchmarks/bench_codec.py). Only what that refuses is looked at one by one, to name the field. Unknown fields are
ignored, null means absent, and of a repeated key the last one counts, as JSON decoders have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE, RETRACT, SCHEMAS, STRUCTS
from rtrec_ray.kafka.base import RecordBatch
from rtrec_ray.kafka.deadletter import DeadLetter, Fault
from rtrec_ray.kafka.judge import DECODERS, JSON_COLUMNS, OLDEST_MS, json_text, judge

KEY_FIELD: Final = {BEHAVIOR: "user_id", INFERENCE: "user_id", PROFILE: "user_id", ITEM: "item_id"}
"""The field whose decimal text is the record's key."""

LatestMs = Callable[[int], int]
"""Wall time of writing (ms) → the greatest `ts` allowed then. Must not fall as its argument rises.

It is asked about the time Kafka keeps with the record, so that a second reading judges alike.
"""

# By these a record is judged, whoever asks for them: its time, its kind, and whether its objects can be JSON text.
_JUDGED: Final = frozenset({"ts", "event_type", *JSON_COLUMNS})

# What the decoder or the JSON text refuses; the record at fault is then found by `judge`.
_REFUSALS: Final = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
    OverflowError,
    TypeError,
)

_NUL_ESCAPE: Final = rb"\u0000"
_NO_LIMIT_MS: Final = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """`frame`: the columns asked for and `offset` (Int64), in the log's order. `dead`: every other record, named."""

    frame: pl.DataFrame
    dead: list[DeadLetter]


def decode(batch: RecordBatch, *, latest_ms: LatestMs, columns: Collection[str] | None = None) -> Decoded:
    """Decode a batch of any of the four topics, into the columns of its schema; objects and arrays as JSON text.

    `columns`: those that are needed, None for all. Which records are good does not depend on them.

    >>> from rtrec_ray.kafka.base import record_batch
    >>> good = b'{"event_id": "a", "event_type": "click", "ts": 1700000000000, "user_id": 1}'
    >>> decoded = decode(record_batch("behavior", 0, [good, b"{"]), latest_ms=lambda wall_ms: 2**62)
    >>> decoded.frame["offset"].to_list(), decoded.dead[0].offset, decoded.dead[0].reason
    ([0], 1, 'not_json')
    """
    schema = SCHEMAS[batch.topic]
    wanted = [name for name in schema if columns is None or name in columns]
    decoded = _decode(
        batch, latest_ms, pl.Schema({name: schema[name] for name in schema if name in {*wanted, *_JUDGED}})
    )
    return Decoded(frame=decoded.frame.select(*wanted, "offset"), dead=decoded.dead)


def encode(topic: str, frame: pl.DataFrame) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of a frame with (some of) the topic's columns. Absent fields are null or left out.

    >>> encode("item", pl.DataFrame({"item_id": [7], "ts": [0], "title": ["Shoe"]}))
    ([b'7'], [b'{"item_id":7,"ts":0,"title":"Shoe"}'])
    """
    if frame.is_empty():
        return [], []
    present = [name for name in frame.columns if frame[name].null_count() < len(frame)]
    plain = pl.struct(name for name in present if name not in JSON_COLUMNS).struct.json_encode()
    parts: list[pl.Expr] = [plain.str.strip_suffix("}")]
    for name in (name for name in present if name in JSON_COLUMNS):
        parts += [pl.lit(f',"{name}":'), pl.col(name).fill_null("null")]
    values = frame.select(pl.concat_str([*parts, pl.lit("}")]).cast(pl.Binary)).to_series().to_list()
    return keys_of(frame[KEY_FIELD[topic]]), values


def encode_record(topic: str, record: msgspec.Struct) -> tuple[bytes, bytes]:
    """Key and value of one record."""
    return str(getattr(record, KEY_FIELD[topic])).encode(), msgspec.json.encode(record)


def keys_of(ids: pl.Series) -> list[bytes]:
    """IDs as Kafka keys: decimal text.

    >>> keys_of(pl.Series([7, 42]))
    [b'7', b'42']
    """
    return ids.cast(pl.String).cast(pl.Binary).to_list()


def _decode(batch: RecordBatch, latest_ms: LatestMs, schema: pl.Schema) -> Decoded:
    try:
        records = list(map(DECODERS[batch.topic].decode, batch.values))  # type: ignore[arg-type]  # None raises TypeError
        frame = _frame(batch.topic, records, batch.offsets, schema)
    except _REFUSALS:
        return _decode_around(batch, latest_ms, schema)
    suspects = _suspects(batch, frame, latest_ms)
    if not len(suspects):
        return Decoded(frame=frame, dead=[])
    faults = {int(index): fault for index in suspects if (fault := _judge(batch, int(index), latest_ms)) is not None}
    return Decoded(frame=frame[_without(batch, faults)], dead=_dead(batch, faults))


def _frame(topic: str, records: list[Any], offsets: npt.NDArray[np.int64], schema: pl.Schema) -> pl.DataFrame:
    # One call a record for all fields takes half the time of a call for each field asked for.
    contents = zip(*map(msgspec.structs.astuple, records), strict=True) if records else repeat(())
    fields = dict(zip(STRUCTS[topic].__struct_fields__, contents, strict=False))
    columns = [pl.Series(name, _column(name, fields[name]), dtype=dtype, strict=True) for name, dtype in schema.items()]
    return pl.DataFrame([*columns, pl.Series("offset", offsets, dtype=pl.Int64)])


def _column(name: str, contents: Sequence[Any]) -> Sequence[Any]:
    if name in JSON_COLUMNS:
        return [None if content is None else json_text(content) for content in contents]
    return contents


def _suspects(batch: RecordBatch, frame: pl.DataFrame, latest_ms: LatestMs) -> npt.NDArray[np.int64]:
    """Indexes of records that may break a rule of time or text; `judge` has the last word on each."""
    if frame.is_empty():
        return np.empty(0, dtype=np.int64)
    ts_ms = frame["ts"].to_numpy()
    suspect = ts_ms > latest_ms(int(batch.stamps_ms.min()))
    if (oldest_ms := OLDEST_MS.get(batch.topic)) is not None:
        suspect |= ts_ms < oldest_ms
    if batch.topic == BEHAVIOR:
        suspect |= (frame["event_type"] == RETRACT).to_numpy()  # what it carries is an event too
    if _may_have_nul(batch.values):
        suspect |= np.fromiter((_NUL_ESCAPE in value for value in batch.values if value is not None), dtype=np.bool_)
    return np.flatnonzero(suspect)


def _may_have_nul(values: Iterable[bytes | None]) -> bool:
    """Whether any text may have a NUL: JSON has it as this escape only. Few logs have escapes at all."""
    together = b"".join(values)  # type: ignore[arg-type]  # what is None was refused by the decoder
    return b"\\" in together and _NUL_ESCAPE in together


def _decode_around(batch: RecordBatch, latest_ms: LatestMs, schema: pl.Schema) -> Decoded:
    """Decode what the decoder reads as one batch, and judge the others."""
    readable = np.fromiter((_readable(batch.topic, value) for value in batch.values), dtype=np.bool_)
    if readable.all():  # so an object is no JSON text, which only happens beyond 64 bits: let `judge` find the record
        faults = {index: fault for index in range(len(batch)) if (fault := _judge(batch, index, latest_ms)) is not None}
        rest = _decode(batch.take(_without(batch, faults)), latest_ms, schema)
    else:
        faults = {int(index): _judge_unread(batch, int(index)) for index in np.flatnonzero(~readable)}
        rest = _decode(batch.take(np.flatnonzero(readable)), latest_ms, schema)
    dead = sorted([*_dead(batch, faults), *rest.dead], key=attrgetter("offset"))
    return Decoded(frame=rest.frame, dead=dead)


def _readable(topic: str, value: bytes | None) -> bool:
    try:
        DECODERS[topic].decode(value)  # type: ignore[arg-type]  # None raises TypeError
    except _REFUSALS:
        return False
    return True


def _judge_unread(batch: RecordBatch, index: int) -> Fault:
    fault = judge(batch.topic, batch.values[index], latest_ms=_NO_LIMIT_MS)
    return Fault(reason="not_json") if fault is None else fault


def _without(batch: RecordBatch, faults: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.setdiff1d(np.arange(len(batch)), np.fromiter(faults, dtype=np.int64))


def _judge(batch: RecordBatch, index: int, latest_ms: LatestMs) -> Fault | None:
    return judge(batch.topic, batch.values[index], latest_ms=latest_ms(int(batch.stamps_ms[index])))


def _dead(batch: RecordBatch, faults: dict[int, Fault]) -> list[DeadLetter]:
    return [
        DeadLetter(
            topic=batch.topic,
            partition=batch.partition,
            offset=int(batch.offsets[index]),
            reason=fault.reason,
            field=fault.field,
            value=batch.values[index],
        )
        for index, fault in sorted(faults.items())
    ]
