"""Static features: what happened to a user, an item or a category within 1 and 7 UTC days, known a day later (T+1).

The day is the unit of correction: its counts are made of all its events at once and replace what was there, and sums
of several days are added up from the days' counts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Final

import polars as pl

from rtrec_ray.features.seen import MINUTE_MS

DAY_MS: Final = 86_400_000
VERSION: Final = 1
"""Of the values' meaning, as a feature view has one."""

ENTITIES: Final = {"user": "user_id", "item": "item_id", "category": "category_id"}
"""Entity → the field of an event that names it."""

COUNTED: Final = ("impression", "click", "view", "favorite", "cart", "consult", "comment", "search")
"""The types of events, each counted by itself."""

WINDOWS: Final = {"1d": 1, "7d": 7}
"""Suffix of a value's name → days of its window."""

LONGEST: Final = dt.timedelta(days=max(WINDOWS.values()) - 1)
"""From the first day to the last of the longest window."""

KEY: Final = ("entity", "key")
COUNT_SCHEMA: Final = pl.Schema(
    {"day": pl.Date, "entity": pl.String, "key": pl.Int64, **dict.fromkeys(COUNTED, pl.Int64)}
)
RATE: Final = "click_rate"
VALUES: Final = tuple(f"{name}_{suffix}" for suffix in WINDOWS for name in (*COUNTED, RATE))
VALUE_SCHEMA: Final = pl.Schema(
    {
        "entity": pl.String,
        "key": pl.Int64,
        **{name: pl.Float64 if name.startswith(RATE) else pl.Int64 for name in VALUES},
    }
)


def day_of(ts_ms: int) -> dt.date:
    """The UTC day of an event time.

    >>> day_of(1_767_225_599_999), day_of(1_767_225_600_000)
    (datetime.date(2025, 12, 31), datetime.date(2026, 1, 1))
    """
    return dt.date(1970, 1, 1) + dt.timedelta(days=ts_ms // DAY_MS)


def start_ms(day: dt.date) -> int:
    """The first ms of a UTC day, event time.

    >>> start_ms(dt.date(2026, 1, 1))
    1767225600000
    """
    return (day - dt.date(1970, 1, 1)).days * DAY_MS


def first_minute(day: dt.date) -> int:
    """The first minute of a UTC day, minutes since 1970."""
    return start_ms(day) // MINUTE_MS


def complete_day(watermark_ms: int) -> dt.date:
    """The last day that is over by event time.

    >>> complete_day(start_ms(dt.date(2026, 1, 2)))
    datetime.date(2026, 1, 1)
    """
    return day_of(watermark_ms) - dt.timedelta(days=1)


def window_of(day: dt.date) -> tuple[dt.date, dt.date]:
    """First and last day of the longest window as of the end of `day`."""
    return day - LONGEST, day


def day_counts(events: pl.DataFrame) -> pl.DataFrame:
    """The counts by day, entity and key (COUNT_SCHEMA, in any order) of events that count, each one row.

    `events`: `ts`, `event_type` and the fields of ENTITIES. An event counts for each entity that it names; a search
    hardly names an item.
    """
    dated = events.lazy().with_columns(day=pl.from_epoch(pl.col("ts") // DAY_MS, time_unit="d"))
    counts = [(pl.col("event_type") == name).sum().cast(pl.Int64).alias(name) for name in COUNTED]
    of_entities = [
        dated.filter(pl.col(field).is_not_null())
        .group_by("day", pl.col(field).alias("key"))
        .agg(counts)
        .select("day", pl.lit(entity).alias("entity"), "key", *COUNTED)
        for entity, field in ENTITIES.items()
    ]
    return pl.concat(of_entities).collect()


def added_up(counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Counts of parts of the events as the counts of all of them, COUNT_SCHEMA."""
    return pl.concat([COUNT_SCHEMA.to_frame(), *counts]).group_by("day", *KEY).agg(pl.col(COUNTED).sum())


def static_values(counts: pl.DataFrame, *, as_of_day: dt.date) -> pl.DataFrame:
    """The values (VALUE_SCHEMA) as of the end of `as_of_day`, of each key with an event in the longest window.

    `counts`: COUNT_SCHEMA, a row for each day, entity and key, also of days outside the window. A count is the sum over
    the last 1 and 7 days. The click rate is clicks / impressions of the window as they are, null without an impression:
    0 would say that something was shown and never clicked. Clicks count on the day they happen, so a rate may be over
    1 where the impression was the evening before. It is not smoothed: pulling a rate of few impressions towards a prior
    (Richardson, Dominowska and Ragno, WWW 2007, section 3) takes a prior over all keys, by which every event would
    change every key's value; a model that wants one has both counts beside the rate.
    """
    first, last = window_of(as_of_day)
    inside = counts.lazy().filter(pl.col("day").is_between(first, last))
    sums = [
        pl.col(name).filter(pl.col("day") > as_of_day - dt.timedelta(days=days)).sum().alias(f"{name}_{suffix}")
        for suffix, days in WINDOWS.items()
        for name in COUNTED
    ]
    rates = [_rate(suffix).alias(f"{RATE}_{suffix}") for suffix in WINDOWS]
    return inside.group_by(KEY).agg(sums).with_columns(rates).select(VALUE_SCHEMA.names()).collect()


def whole_keys(portions: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Rows ordered by KEY, cut anew so that no key's rows lie in two portions.

    >>> rows = pl.DataFrame({"entity": ["item"] * 3, "key": [1, 2, 2]})
    >>> [portion["key"].to_list() for portion in whole_keys([rows[:2], rows[2:]])]
    [[1], [2, 2]]
    """
    held: list[pl.DataFrame] = []
    for portion in portions:
        rows = pl.concat([*held, portion])
        last = pl.all_horizontal(pl.col(name) == rows[name][-1] for name in KEY)
        held = [rows.filter(last)]
        if held[0].height < rows.height:
            yield rows.filter(~last)
    yield from held


def _rate(suffix: str) -> pl.Expr:
    impressions = pl.col(f"impression_{suffix}")
    return pl.when(impressions > 0).then(pl.col(f"click_{suffix}") / impressions)
