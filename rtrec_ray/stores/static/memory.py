"""The static features in memory: the twin of those in PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import polars as pl

from rtrec_ray.errors import LeaseHeld
from rtrec_ray.features.counted import NAME_SCHEMA
from rtrec_ray.features.daily import (
    COUNT_SCHEMA,
    VALUE_SCHEMA,
    added_up,
    day_of,
    first_minute,
    static_values,
    window_of,
)
from rtrec_ray.features.seen import MINUTE_MS
from rtrec_ray.stores.static.store import TASK, State, StaticValues, chosen, require_kept


@dataclass(slots=True)
class MemoryStaticTables:
    """What a store holds. `pending`: by day; `owner`: of the run that goes on."""

    state: State = field(default_factory=State)
    counts: pl.DataFrame = field(default_factory=COUNT_SCHEMA.to_frame)
    values: pl.DataFrame = field(default_factory=VALUE_SCHEMA.to_frame)
    taken_back: pl.DataFrame = field(default_factory=NAME_SCHEMA.to_frame)
    pending: dict[dt.date, bool] = field(default_factory=dict)
    owner: str | None = None


class MemoryStaticFeatures:
    """StaticFeatures that end with their process."""

    def __init__(self) -> None:
        self._tables = MemoryStaticTables()

    def static(self, entity: str, keys: Sequence[int], *, as_of_day: dt.date | None = None) -> StaticValues:
        """See StaticReader."""
        newest, values = self._tables.state.as_of_day, self._tables.values
        if as_of_day is not None and newest is not None and as_of_day < newest:
            require_kept(window_of(as_of_day)[0], kept_from=self._tables.state.kept_from)
            newest, values = as_of_day, static_values(self._tables.counts, as_of_day=as_of_day)
        return chosen(values.filter(pl.col("entity") == entity), keys, as_of_day=newest)

    def noted_upto(self) -> Mapping[int, int]:
        """See StaticFeatures."""
        return self._tables.state.offsets

    def taken_back(self, *, from_minute: int, to_minute: int) -> pl.DataFrame:
        """See StaticFeatures."""
        require_kept(day_of(from_minute * MINUTE_MS), kept_from=self._tables.state.kept_from)
        return self._tables.taken_back.filter(pl.col("minute") >= from_minute, pl.col("minute") < to_minute)

    @contextmanager
    def begin(self, owner: str) -> Iterator[MemoryCorrection]:
        """See StaticFeatures."""
        if self._tables.owner is not None:
            raise LeaseHeld(f"{TASK}[0] belongs to {self._tables.owner}")
        self._tables.owner = owner
        try:
            yield MemoryCorrection(self._tables)
        finally:
            self._tables.owner = None

    def close(self) -> None:
        """Nothing to give back."""


class MemoryCorrection:
    """Correction of what is in memory."""

    def __init__(self, tables: MemoryStaticTables) -> None:
        self._tables = tables
        self._aside: list[pl.DataFrame] = []

    def state(self) -> State:
        """See Correction."""
        return self._tables.state

    def note(self, *, taken_back: pl.DataFrame, days: Iterable[dt.date], offsets: Mapping[int, int]) -> None:
        """See Correction."""
        tables = self._tables
        tables.taken_back = pl.concat([tables.taken_back, taken_back]).unique()
        tables.pending.update(dict.fromkeys(days, True))
        tables.state = replace(tables.state, offsets=dict(offsets))

    def pending(self, *, upto: dt.date) -> list[dt.date]:
        """See Correction."""
        return sorted(day for day, pending in self._tables.pending.items() if pending and day <= upto)

    def days(self) -> list[dt.date]:
        """See Correction."""
        return sorted(self._tables.pending)

    def add(self, counts: pl.DataFrame) -> None:
        """See Correction."""
        self._aside.append(counts)

    def replace(self, days: Iterable[dt.date]) -> None:
        """See Correction."""
        tables, wanted = self._tables, list(days)
        anew = added_up(self._aside).filter(pl.col("day").is_in(wanted))
        tables.counts = pl.concat([tables.counts.filter(~pl.col("day").is_in(wanted)), anew])
        tables.pending.update(dict.fromkeys(wanted, False))
        if tables.state.as_of_day is not None:
            first, last = window_of(tables.state.as_of_day)
            within = any(first <= day <= last for day in wanted)
            tables.state = replace(tables.state, stale=tables.state.stale or within)
        self._aside.clear()

    def publish(self, as_of_day: dt.date, *, kept_from: dt.date | None = None) -> int:
        """See Correction."""
        tables = self._tables
        tables.values = static_values(tables.counts, as_of_day=as_of_day)
        tables.state = replace(tables.state, as_of_day=as_of_day, stale=False)
        if kept_from is not None:
            self._drop(kept_from)
        return tables.values.height

    def _drop(self, kept_from: dt.date) -> None:
        tables = self._tables
        tables.counts = tables.counts.filter(pl.col("day") >= kept_from)
        tables.pending = {day: pending for day, pending in tables.pending.items() if day >= kept_from}
        tables.taken_back = tables.taken_back.filter(pl.col("minute") >= first_minute(kept_from))
        tables.state = replace(tables.state, kept_from=max(kept_from, tables.state.kept_from or kept_from))
