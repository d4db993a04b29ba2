"""A recorded log, whatever its form, as records in the order in which they are to be written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import KEY_FIELD, decode, keys_of
from rtrec_ray.kafka.deadletter import Fault

ORDER: Final = (ITEM, PROFILE, INFERENCE, BEHAVIOR)
"""Topics in the order in which records of equal time are written: what others are joined to comes first."""


class Spoilt(NamedTuple):
    """A record that the pipeline will refuse. `line`: from 1, within its file."""

    line: int
    fault: Fault

    def __str__(self) -> str:
        return f"line {self.line}: {self.fault}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """n records in event-time order.

    `ts_ms`: (n,) int64 ascending; that of a record without a usable time is its predecessor's. `topic`: (n,) index into
    ORDER. `sound`: (n,) whether the pipeline will take the record. `spoilt`: the others, by line.
    """

    ts_ms: npt.NDArray[np.int64]
    topic: npt.NDArray[np.int8]
    sound: npt.NDArray[np.bool_]
    keys: list[bytes]
    values: list[bytes]
    spoilt: list[Spoilt]

    def __len__(self) -> int:
        return len(self.values)

    def span_ms(self) -> tuple[int, int] | None:
        """First and last event time of sound behaviour and inference records; None without any."""
        timed = self.ts_ms[self.sound & (self.topic >= ORDER.index(INFERENCE))]
        return (int(timed[0]), int(timed[-1])) if len(timed) else None

    def without_spoilt(self) -> Recording:
        """The sound records only."""
        kept = np.flatnonzero(self.sound)
        return replace(
            self,
            ts_ms=self.ts_ms[kept],
            topic=self.topic[kept],
            sound=self.sound[kept],
            keys=[self.keys[index] for index in kept],
            values=[self.values[index] for index in kept],
        )

    def shifted(self, by_ms: int) -> Recording:
        """The same log, `by_ms` later. Spoilt records stay as they are."""
        values = [
            _shifted(value, by_ms) if sound else value for value, sound in zip(self.values, self.sound, strict=True)
        ]
        return replace(self, ts_ms=self.ts_ms + by_ms, values=values)


class Raw(NamedTuple):
    """Undecoded records of one topic. `line`: (n,) from 1 within the file; `file`: which file, by its turn."""

    topic: str
    values: list[bytes]
    line: npt.NDArray[np.int64]
    file: int = 0

    @property
    def place(self) -> npt.NDArray[np.int64]:
        """Where each record stands in the log as it was recorded: (n,), ascending."""
        return self.line + (self.file << 40)


def arrange(raws: Sequence[Raw], *, latest_ms: int) -> Recording:
    """Check records and put them into event-time order."""
    raws = [raw for raw in raws if raw.values]
    if not raws:
        raise ConfigInvalid("the log is empty", mend="give a file with at least one record")
    parts = [_checked(raw, latest_ms=latest_ms) for raw in raws]
    ts_ms, sound = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ts_ms", "sound"))
    topic = np.concatenate([np.full(len(part.sound), ORDER.index(part.topic), dtype=np.int8) for part in parts])
    place = np.concatenate([raw.place for raw in raws])
    ts_ms = _filled(ts_ms, sound, place)
    order = np.lexsort((place, topic, ts_ms))
    keys = [key for part in parts for key in part.keys]
    values = [value for raw in raws for value in raw.values]
    return Recording(
        ts_ms=ts_ms[order],
        topic=topic[order],
        sound=sound[order],
        keys=[keys[index] for index in order],
        values=[values[index] for index in order],
        spoilt=sorted((spoilt for part in parts for spoilt in part.spoilt), key=lambda spoilt: spoilt.line),
    )


class _Checked(NamedTuple):
    topic: str
    ts_ms: npt.NDArray[np.int64]
    sound: npt.NDArray[np.bool_]
    keys: list[bytes]
    spoilt: list[Spoilt]


def _checked(raw: Raw, *, latest_ms: int) -> _Checked:
    decoded = decode(record_batch(raw.topic, 0, raw.values), latest_ms=lambda _wall_ms: latest_ms)
    good = decoded.frame["offset"].to_numpy()
    ts_ms, sound = np.zeros(len(raw.values), dtype=np.int64), np.zeros(len(raw.values), dtype=np.bool_)
    ts_ms[good], sound[good] = decoded.frame["ts"].to_numpy(), True
    # A record without a readable key goes anywhere: the pipeline refuses it in any partition.
    keys = [b"%d" % line for line in raw.line]
    for index, key in zip(good, keys_of(decoded.frame[KEY_FIELD[raw.topic]]), strict=True):
        keys[index] = key
    spoilt = [
        Spoilt(int(raw.line[letter.offset]), Fault(reason=letter.reason, field=letter.field)) for letter in decoded.dead
    ]
    return _Checked(raw.topic, ts_ms, sound, keys, spoilt)


def _filled(
    ts_ms: npt.NDArray[np.int64], sound: npt.NDArray[np.bool_], place: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Give records without a usable time that of the record before them in the file, the first ones that after them."""
    order = np.argsort(place, kind="stable")
    known = pl.Series(np.where(sound, ts_ms, 0)[order]).set(pl.Series(~sound[order]), None)
    filled = np.empty_like(ts_ms)
    filled[order] = known.forward_fill().backward_fill().fill_null(0).to_numpy()
    return filled


def _shifted(value: bytes, by_ms: int) -> bytes:
    record: dict[str, Any] = json.loads(value)
    record["ts"] += by_ms
    original = record.get("retracts")
    if isinstance(original, dict) and isinstance(original.get("ts"), int):
        original["ts"] += by_ms
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
