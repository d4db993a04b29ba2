"""The static features as a port: read by anybody, corrected by one run at a time.

A run notes what came to the history (`Correction.note`), counts the days that are pending anew, each in a transaction
of its own, and at last replaces the values. Whatever it leaves undone when it dies is still pending.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import polars as pl

from rtrec_ray.errors import BeyondRetention
from rtrec_ray.features.daily import DAY_MS, ENTITIES, LONGEST, VALUES, VERSION, WINDOWS, day_of, start_ms

TASK: Final = "daily"
"""Whose lease a run takes."""

VIEWS: Final = {f"daily_{entity}": entity for entity in ENTITIES}
"""Name for `rtrec features get` → entity."""

Value = Mapping[str, int | float | None]
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far the static features have come.

    `offsets`: partition → behaviour offset before which everything in the history is noted. `as_of_day`: the last day
    of the values' windows, None before there are any. `stale`: a day of these windows was counted anew since.
    `kept_from`: nothing is kept of earlier days, and nothing of them is counted; None before a day was dropped.
    """

    offsets: Mapping[int, int] = field(default_factory=dict)
    as_of_day: dt.date | None = None
    stale: bool = False
    kept_from: dt.date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticValues:
    """`values`: of each key asked for, None without an event in the longest window."""

    as_of_day: dt.date | None
    values: Mapping[int, Value | None]


class StaticReader(Protocol):
    """Reads values. Safe to share between threads. Every method raises StoreUnavailable."""

    def static(self, entity: str, keys: Sequence[int], *, as_of_day: dt.date | None = None) -> StaticValues:
        """The values of some keys of an entity ("user", "item", "category"), all of one run.

        `as_of_day`: at the end of an earlier day, by the days' counts as they are now; None, or a day that is later
        than the values, is what the last run left. Raises BeyondRetention when a day of the window is not kept any
        more.
        """
        ...


class Correction(Protocol):
    """One run's side, while it has the lease. Every method raises LeaseLost, StoreUnavailable."""

    def state(self) -> State:
        """How far the runs before have come."""
        ...

    def note(self, *, taken_back: pl.DataFrame, days: Iterable[dt.date], offsets: Mapping[int, int]) -> None:
        """Everything before `offsets` is noted: `taken_back` (NAME_SCHEMA) counts no more, `days` are pending."""
        ...

    def pending(self, *, upto: dt.date) -> list[dt.date]:
        """The pending days up to and with this one, ascending."""
        ...

    def days(self) -> list[dt.date]:
        """All days that have events, or had, ascending."""
        ...

    def add(self, counts: pl.DataFrame) -> None:
        """Put aside counts (COUNT_SCHEMA) of a part of some days' events; they go with the run."""
        ...

    def replace(self, days: Iterable[dt.date]) -> None:
        """Let what was put aside be the counts of these days, which are pending no more; each day at once."""
        ...

    def publish(self, as_of_day: dt.date, *, kept_from: dt.date | None = None) -> int:
        """Replace all values by those as of the end of this day, at once; answers how many keys have one.

        With them goes what is known of the days before `kept_from`; None drops nothing.
        """
        ...


class StaticFeatures(StaticReader, Protocol):
    """All of it."""

    def noted_upto(self) -> Mapping[int, int]:
        """Partition → offset of behaviour below which every retraction is noted, but for the days that are not kept.

        Raises StoreUnavailable.
        """
        ...

    def taken_back(self, *, from_minute: int, to_minute: int) -> pl.DataFrame:
        """Names (NAME_SCHEMA) of the events of these minutes that were taken back, as far as that is noted.

        Raises BeyondRetention when some of these minutes are not kept any more, StoreUnavailable.
        """
        ...

    def begin(self, owner: str) -> AbstractContextManager[Correction]:
        """Begin a run. Raises LeaseHeld while another one goes on, StoreUnavailable."""
        ...


def require_kept(day: dt.date, *, kept_from: dt.date | None) -> None:
    """Refuse what takes the counts or retractions of a day that is not kept any more.

    >>> require_kept(dt.date(2026, 1, 1), kept_from=dt.date(2026, 1, 2))
    Traceback (most recent call last):
    rtrec_ray.errors.BeyondRetention: static features are kept from 2026-01-02 on, and 2026-01-01 is asked for
    """
    if kept_from is not None and day < kept_from:
        raise BeyondRetention(
            f"static features are kept from {kept_from} on, and {day} is asked for",
            mend=f"ask for values as of {kept_from + LONGEST} or later; daily.keep_days says how long days are kept",
        )


def chosen(values: pl.DataFrame, keys: Sequence[int], *, as_of_day: dt.date | None) -> StaticValues:
    """Of one entity's values (`key`, VALUES) those of some keys."""
    rows = {row["key"]: row for row in values.filter(pl.col("key").is_in(list(keys))).to_dicts()}
    found = {key: {name: rows[key][name] for name in VALUES} if key in rows else None for key in keys}
    return StaticValues(as_of_day=as_of_day, values=found)


def list_static() -> list[dict[str, Any]]:
    """The static features in the form of `list_views`."""
    return [
        {
            "name": view,
            "version": VERSION,
            "keys": [ENTITIES[entity]],
            "window_ms": max(WINDOWS.values()) * DAY_MS,
            "tile_ms": DAY_MS,
            "values": list(VALUES),
            "complete_from_ms": None,
        }
        for view, entity in VIEWS.items()
    ]


def read_static(store: StaticReader, view: str, keys: Sequence[str], *, as_of_ms: int | None) -> dict[str, Any]:
    """`rtrec features get` of one of VIEWS as JSON: {"view", "as_of_ms", "version", "values": {KEY: {...} or None}}.

    `as_of_ms` of the answer is the end of the windows, a midnight UTC; None as long as no run has ended. A time asked
    for is floored to its midnight. Raises BeyondRetention, StoreUnavailable.
    """
    numbers = {key: _number(key) for key in keys}
    asked = [number for number in numbers.values() if number is not None]
    found = store.static(VIEWS[view], asked, as_of_day=None if as_of_ms is None else day_of(as_of_ms - DAY_MS))
    return {
        "view": view,
        "as_of_ms": None if found.as_of_day is None else start_ms(found.as_of_day) + DAY_MS,
        "version": VERSION,
        "values": {key: None if number is None else found.values[number] for key, number in numbers.items()},
    }


def _number(key: str) -> int | None:
    """The key as a number; None for a text that is the key of nothing."""
    try:
        number = int(key)
    except ValueError:
        return None
    return number if number in _INT64 else None
