"""Static features are what one gets by counting, and a correction reaches just the days it can."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.events import RETRACT
from rtrec_ray.features.counted import EVENT_SCHEMA, counted, taken_back
from rtrec_ray.features.daily import (
    COUNT_SCHEMA,
    COUNTED,
    DAY_MS,
    VALUE_SCHEMA,
    added_up,
    day_counts,
    static_values,
    whole_keys,
)
from tests.daily_events import Event, by_key, day, event, plain_counts, plain_values, records, retraction

DAYS = 10
# Few ids and minutes, most of them around a midnight, so that events meet.
_numbers = st.integers(0, 4)
_times = st.builds(
    lambda of_day, ms: max(0, of_day * DAY_MS + ms), st.integers(0, DAYS - 1), st.integers(-90_000, 90_000)
)
_plain = st.builds(
    lambda number, kind, at_ms, user, item: event(number, kind, at_ms=at_ms, user=user, item=item),
    _numbers,
    st.sampled_from(COUNTED),
    _times,
    st.integers(1, 3),
    st.none() | st.integers(8, 10),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Events in any order of arrival, some of them twice, some taken back before or after they come."""
    plain = draw(st.lists(_plain, max_size=15))
    again = draw(st.lists(st.sampled_from(plain), max_size=4)) if plain else []
    gone = draw(st.lists(st.sampled_from(plain), max_size=3)) if plain else []
    back = [retraction(each, after_ms=draw(st.integers(0, 3 * DAY_MS))) for each in gone]
    return draw(st.permutations([*plain, *again, *back]))


def counts_of(events: list[Event]) -> pl.DataFrame:
    frames = records(events).values()
    every = pl.concat([EVENT_SCHEMA.to_frame(), *(frame.select(EVENT_SCHEMA.names()) for frame in frames)])
    retract = pl.col("event_type") == RETRACT
    return day_counts(counted(every.filter(~retract), taken_back(every.filter(retract))))


@given(logs())
def test_day_counts_equal_a_plain_count_of_each_event_once_without_those_taken_back(events: list[Event]) -> None:
    counts = counts_of(events)
    assert counts.schema == COUNT_SCHEMA
    assert by_key(counts, "day", "entity", "key") == plain_counts(events)


@given(logs(), st.integers(0, DAYS + 7))
def test_values_are_the_sums_of_1_and_7_days_and_the_rates_of_these(events: list[Event], at: int) -> None:
    values = static_values(counts_of(events), as_of_day=day(at))
    assert values.schema == VALUE_SCHEMA
    assert by_key(values, "entity", "key") == plain_values(plain_counts(events), as_of_day=day(at))


@given(logs(), _plain)
def test_one_more_event_or_retraction_of_a_day_changes_only_it_and_the_values_of_7_days(
    events: list[Event], late: Event
) -> None:
    of_day = day((late["ts"] - event(0, "view", at_ms=0)["ts"]) // DAY_MS)
    for more in (late, retraction(late, after_ms=2 * DAY_MS)):
        before, after = counts_of(events), counts_of([*events, more])
        elsewhere = pl.col("day") != of_day
        assert by_key(after.filter(elsewhere), "day", "entity", "key") == by_key(
            before.filter(elsewhere), "day", "entity", "key"
        )
        for at in range(DAYS + 7):
            if not of_day <= day(at) <= of_day + dt.timedelta(days=6):
                assert by_key(static_values(after, as_of_day=day(at)), "entity", "key") == by_key(
                    static_values(before, as_of_day=day(at)), "entity", "key"
                )


@given(logs(), st.lists(st.integers(0, 400), max_size=3))
def test_counts_of_parts_add_up_and_portions_cut_anywhere_give_the_same_values(
    events: list[Event], cuts: list[int]
) -> None:
    counts = counts_of(events)
    assert by_key(added_up([counts, counts]), "day", "entity", "key").keys() == plain_counts(events).keys()
    ordered = counts.sort("entity", "key")
    bounds = [0, *sorted(min(cut, ordered.height) for cut in cuts), ordered.height]
    portions = [ordered[start:end] for start, end in pairwise(bounds) if end > start]
    parts = [static_values(rows, as_of_day=day(7)) for rows in whole_keys(portions)]
    assert by_key(pl.concat([VALUE_SCHEMA.to_frame(), *parts]), "entity", "key") == by_key(
        static_values(counts, as_of_day=day(7)), "entity", "key"
    )
    assert sum(part.height for part in parts) == static_values(counts, as_of_day=day(7)).height
