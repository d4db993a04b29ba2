"""A run that corrects the static features: what came to the history since the last one, the days it concerns, the
values.

The history's files of a partition are committed in the order of its offsets, so "behind offset n of partition p" misses
nothing, and compacting files brings up nothing. A retraction names the event it takes back: those are kept by the
event's minute, so that counting a day anew needs no look through all later days.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

import polars as pl
import pyarrow.compute as pc

from rtrec_ray.clock import monotonic_s
from rtrec_ray.events import BEHAVIOR, RETRACT
from rtrec_ray.features.counted import NAME_SCHEMA, PLACE, counted, taken_back
from rtrec_ray.features.daily import COUNT_SCHEMA, COUNTED, DAY_MS, ENTITIES, day_counts, day_of, first_minute, start_ms
from rtrec_ray.features.seen import MINUTE_MS
from rtrec_ray.stores.history.store import HOUR_MS, History, HistoryFile
from rtrec_ray.stores.static.store import Correction, State, StaticFeatures, require_kept

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

PART_SCHEMA: Final = pl.Schema([("unit", pl.Int64()), *COUNT_SCHEMA.items()])
"""Counts of one unit, named by its number."""

NOTED_SCHEMA: Final = pl.Schema([*NAME_SCHEMA.items(), ("partition", pl.Int32()), ("offset", pl.Int64())])
"""An event taken back, and where its retraction is."""

_COUNT_COLUMNS: Final = ("event_id", "event_type", "ts", *ENTITIES.values(), *PLACE)
_DAYS_AT_ONCE: Final = 8  # for each such group the files are looked up anew: old ones are removed after an hour
_MINUTES: Final = HOUR_MS // MINUTE_MS
_EPOCH: Final = dt.date(1970, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """What a run shall do beside counting the days for which something came.

    `complete`: the last day that is over, to which the values may be brought; None: no day is. `days` are counted anew
    in any case; `everything`: as if no run had ever been.
    """

    owner: str
    complete: dt.date | None
    days: tuple[dt.date, ...] = ()
    everything: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run did. `events` that count in its days; `keys` that have a value now, None: the values were not touched.

    `as_of_day`: the last day of the values' windows. `too_old`: days for which something came that counts nowhere, as
    they are not kept any more.
    """

    as_of_day: dt.date | None
    days: tuple[dt.date, ...]
    events: int
    keys: int | None
    seconds: float
    too_old: tuple[dt.date, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Events that are counted by one task: those of `files` with ts in [from_ms, to_ms), whole minutes of a day.

    Whatever has the name of one of them is in the same unit. `rows`: about as many.
    """

    files: tuple[HistoryFile, ...]
    from_ms: int
    to_ms: int
    rows: int


class Counting(Protocol):
    """Where the history is read. Raises StoreUnavailable."""

    def noted(self, portions: Sequence[Sequence[HistoryFile]]) -> Iterable[pl.DataFrame]:
        """What retractions in these files take back, NOTED_SCHEMA."""
        ...

    def counts(self, units: Sequence[Unit]) -> Iterable[pl.DataFrame]:
        """The counts of each unit, PART_SCHEMA; nothing for a unit without events that count."""
        ...


class HereCounting:
    """Counting in this process, one portion after another."""

    def __init__(self, history: History, store: StaticFeatures) -> None:
        self._history = history
        self._store = store

    def noted(self, portions: Sequence[Sequence[HistoryFile]]) -> Iterator[pl.DataFrame]:
        """See Counting."""
        return (read_noted(self._history, portion) for portion in portions)

    def counts(self, units: Sequence[Unit]) -> Iterator[pl.DataFrame]:
        """See Counting."""
        return (count_unit(self._history, self._store, number, unit) for number, unit in enumerate(units))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run over a history and a store. `rows_per_task`: events in memory of one task, about.

    `keep_days`: so many days up to the newest one of the values are kept, those of the longest window at least.
    """

    history: History
    store: StaticFeatures
    counting: Counting
    rows_per_task: int = 1_000_000
    keep_days: int = 35

    def correct(self, order: RunOrder, progress: Progress = lambda done, total: None) -> RunReport:
        """Do what is to do; `progress` is told how many of how many events are read. May be repeated at any time.

        Raises BeyondRetention for a day that is not kept any more, LeaseHeld while another run goes on, LeaseLost,
        StoreUnavailable.
        """
        began_s = monotonic_s()
        with self.store.begin(order.owner) as correction:
            target, kept_from = self._bounds(correction.state(), order)
            too_old = self._note(correction, order, kept_from)
            days = _to_do(correction, order, target=target, kept_from=kept_from)
            events = self._count(correction, days, progress)
            state = correction.state()
            keys = None
            if target is not None and (state.stale or state.as_of_day != target):
                keys = correction.publish(target, kept_from=kept_from)
        seconds = monotonic_s() - began_s
        report = RunReport(as_of_day=target, days=days, events=events, keys=keys, seconds=seconds, too_old=too_old)
        told = {"days": len(days), "events": events, "keys": keys, "too_old": len(too_old)}
        log.info("static_features_corrected", extra=told)
        return report

    def _bounds(self, state: State, order: RunOrder) -> tuple[dt.date | None, dt.date | None]:
        """The day that the values are brought to, and the first that is kept; neither goes back behind earlier runs."""
        target = max((day for day in (state.as_of_day, order.complete) if day is not None), default=None)
        wanted = None if target is None else target - dt.timedelta(days=self.keep_days - 1)
        kept_from = max((day for day in (state.kept_from, wanted) if day is not None), default=None)
        for day in order.days:
            require_kept(day, kept_from=kept_from)
        return target, kept_from

    def _note(self, correction: Correction, order: RunOrder, kept_from: dt.date | None) -> tuple[dt.date, ...]:
        """Find the days for which something came since the last run; answers those that are not kept any more."""
        state = correction.state()
        known = {} if order.everything else state.offsets
        came = behind(self.history.files(BEHAVIOR), known)
        frames = [
            NOTED_SCHEMA.to_frame(),
            *self.counting.noted(list(_portions(((file,) for file in came), self.rows_per_task))),
        ]
        noted = _behind(pl.concat(frames), known)
        minutes = (noted["minute"] // (DAY_MS // MINUTE_MS)).unique()
        days = {day_of(file.min_ts_ms) for file in came} | {_EPOCH + dt.timedelta(days=n) for n in minutes}
        days |= {*order.days, *(correction.days() if order.everything else ())}
        gone = {day for day in days if kept_from is not None and day < kept_from}
        names = noted.select(NAME_SCHEMA.names()).unique()
        # Days end when values are published; until then reads of the past go by what is noted of them.
        if state.kept_from is not None:
            names = names.filter(pl.col("minute") >= first_minute(state.kept_from))
        correction.note(taken_back=names, days=sorted(days - gone), offsets={**known, **ends(came)})
        return tuple(sorted(gone))

    def _count(self, correction: Correction, days: Sequence[dt.date], progress: Progress) -> int:
        files = {day: self.history.files(BEHAVIOR, from_ms=start_ms(day), to_ms=start_ms(day) + DAY_MS) for day in days}
        total = sum(file.row_count for of_day in files.values() for file in of_day)
        events = done = 0
        progress(0, total)
        for begin in range(0, len(days), _DAYS_AT_ONCE):
            group = days[begin : begin + _DAYS_AT_ONCE]
            parts = _Parts(self._units(group))
            for part in self.counting.counts(parts.units):
                correction.add(part.select(COUNT_SCHEMA.names()))
                events += _events(part)
                progress(done + parts.done(part["unit"]), total)
            correction.replace(group)
            done += parts.rows
            progress(done, total)
        return events

    def _units(self, days: Iterable[dt.date]) -> list[Unit]:
        spans = ((start_ms(day), start_ms(day) + DAY_MS) for day in days)
        return [
            unit
            for from_ms, to_ms in spans
            for unit in units(self.history.files(BEHAVIOR, from_ms=from_ms, to_ms=to_ms), max_rows=self.rows_per_task)
        ]


def behind(files: Iterable[HistoryFile], offsets: Mapping[int, int]) -> list[HistoryFile]:
    """Those of the files with a record at or behind their partition's offset; of a partition that is missing, all."""
    return [file for file in files if file.max_offset >= offsets.get(file.partition, -1)]


def ends(files: Iterable[HistoryFile]) -> dict[int, int]:
    """Partition → the offset behind its last record in the files."""
    found: dict[int, int] = {}
    for file in files:
        found[file.partition] = max(found.get(file.partition, 0), file.max_offset + 1)
    return found


def units(files: Iterable[HistoryFile], *, max_rows: int) -> list[Unit]:
    """The files of a day as units of about `max_rows` events; only a minute with more makes a larger one.

    A file has records of one hour. Small hours are put together; of a large one each part reads the files that reach
    into its minutes. Partitions stay together, for copies of an event may lie in two of them.
    """
    hours: defaultdict[int, list[HistoryFile]] = defaultdict(list)
    for file in files:
        hours[file.min_ts_ms // HOUR_MS].append(file)
    ordered = sorted(hours.items())
    small = [of_hour for _, of_hour in ordered if _rows(of_hour) <= max_rows]
    large = [(hour, of_hour) for hour, of_hour in ordered if _rows(of_hour) > max_rows]
    parts = [part for hour, of_hour in large for part in _parts_of_hour(hour * HOUR_MS, of_hour, max_rows=max_rows)]
    return [*map(_together, _portions(small, max_rows)), *parts]


def read_noted(history: History, files: Sequence[HistoryFile]) -> pl.DataFrame:
    """What retractions in these files take back, NOTED_SCHEMA."""
    columns = ("retracts", "partition", "offset")
    found = history.frame(BEHAVIOR, files, columns=columns, where=pc.field("event_type") == RETRACT)
    return taken_back(found).with_columns(found["partition", "offset"]).match_to_schema(NOTED_SCHEMA)


def count_unit(history: History, store: StaticFeatures, number: int, unit: Unit) -> pl.DataFrame:
    """The counts of a unit's events without what was taken back, PART_SCHEMA."""
    ts = pc.field("ts")
    where = (ts >= unit.from_ms) & (ts < unit.to_ms) & (pc.field("event_type") != RETRACT)
    events = history.frame(BEHAVIOR, unit.files, columns=_COUNT_COLUMNS, where=where)
    gone = store.taken_back(from_minute=unit.from_ms // MINUTE_MS, to_minute=unit.to_ms // MINUTE_MS)
    counts = day_counts(counted(events, gone))
    return counts.select(pl.lit(number, dtype=pl.Int64).alias("unit"), *COUNT_SCHEMA.names())


def _to_do(
    correction: Correction, order: RunOrder, *, target: dt.date | None, kept_from: dt.date | None
) -> tuple[dt.date, ...]:
    """The days to count."""
    pending = [] if target is None else correction.pending(upto=target)
    # What became pending before any day was over may be too old by now.
    kept = [day for day in pending if kept_from is None or day >= kept_from]
    return tuple(sorted({*kept, *order.days}))


class _Parts:
    """Which of some units are counted."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.rows = sum(unit.rows for unit in units)
        self._met: set[int] = set()

    def done(self, numbers: pl.Series) -> int:
        """About how many events were read, now that these units have come too."""
        self._met.update(numbers.unique())
        return sum(self.units[number].rows for number in self._met)


def _events(part: pl.DataFrame) -> int:
    """How many events are behind the counts: each has one user and one type."""
    of_users = part.filter(pl.col("entity") == "user").select(pl.sum_horizontal(pl.col(COUNTED).sum()))
    return int(of_users.item())


def _behind(noted: pl.DataFrame, offsets: Mapping[int, int]) -> pl.DataFrame:
    """Those of the rows (NOTED_SCHEMA) at or behind their partition's offset: a file may hold older ones too."""
    of_partitions = pl.DataFrame(
        {"partition": list(offsets), "known": list(offsets.values())},
        schema={"partition": NOTED_SCHEMA["partition"], "known": pl.Int64},
    )
    both = noted.join(of_partitions, on="partition", how="left")
    return both.filter(pl.col("offset") >= pl.col("known").fill_null(0)).drop("known")


def _portions(groups: Iterable[Sequence[HistoryFile]], rows: int) -> Iterator[list[HistoryFile]]:
    """The groups put together to about as many rows."""
    portion: list[HistoryFile] = []
    held = 0
    for group in groups:
        more = _rows(group)
        if portion and held + more > rows:
            yield portion
            portion, held = [], 0
        portion += group
        held += more
    if portion:
        yield portion


def _parts_of_hour(from_ms: int, files: Sequence[HistoryFile], *, max_rows: int) -> list[Unit]:
    rows = _rows(files)
    count = min(-(-rows // max_rows), _MINUTES)
    bounds = [from_ms + n * _MINUTES // count * MINUTE_MS for n in range(count + 1)]
    return [
        Unit(files=tuple(_within(files, start, end)), from_ms=start, to_ms=end, rows=rows // count)
        for start, end in pairwise(bounds)
    ]


def _within(files: Iterable[HistoryFile], from_ms: int, to_ms: int) -> list[HistoryFile]:
    return [file for file in files if file.min_ts_ms < to_ms and file.max_ts_ms >= from_ms]


def _together(files: Sequence[HistoryFile]) -> Unit:
    first = min(file.min_ts_ms for file in files) // HOUR_MS
    last = max(file.max_ts_ms for file in files) // HOUR_MS
    return Unit(files=tuple(files), from_ms=first * HOUR_MS, to_ms=(last + 1) * HOUR_MS, rows=_rows(files))


def _rows(files: Iterable[HistoryFile]) -> int:
    return sum(file.row_count for file in files)
