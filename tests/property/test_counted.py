"""Partitions that are added change nothing of what the history says: its events are known by their names."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.events import PROFILE_SCHEMA, RETRACT
from rtrec_ray.features.backfill import tiles_before
from rtrec_ray.features.counted import EVENT_SCHEMA, counted, taken_back
from rtrec_ray.features.daily import day_counts
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.merge import merge

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
VIEW = DEFINITIONS.view("user_browse_5m")
BASE = 1_767_225_600_000
MINUTE = 60_000

Event = dict[str, Any]

# Few names, so that they meet: of one user, of two, in a minute and in the next.
_plain = st.fixed_dictionaries(
    {
        "event_id": st.sampled_from(["a", "b"]),
        "event_type": st.sampled_from(["view", "click"]),
        "ts": st.sampled_from([BASE, BASE + 1, BASE + MINUTE]),
        "user_id": st.integers(1, 6),
        "item_id": st.integers(7, 8),
        "dwell_ms": st.integers(0, 2),
    }
)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Events in the order in which Kafka takes them, some twice, some taken back before they come or after."""
    log: list[Event] = draw(st.lists(_plain, max_size=12))
    for each in draw(st.lists(st.sampled_from(log), max_size=5)) if log else []:
        again = {"event_type": RETRACT, "event_id": "r", "retracts": json.dumps(each)} if draw(st.booleans()) else {}
        log.insert(draw(st.integers(0, len(log))), {**each, **again})
    return log


def cut_over(log: list[Event], *, at: int, before: int, after: int) -> pl.DataFrame:
    """The log as the history has it whose users lie in `before` partitions, and from its record `at` on in `after`."""
    offsets: defaultdict[int, int] = defaultdict(int)
    rows = []
    for number, event in enumerate(log):
        partition = event["user_id"] % (before if number < at else after)
        rows.append({**event, "partition": partition, "offset": offsets[partition], "kafka_ts": number})
        offsets[partition] += 1
    return pl.DataFrame(rows, schema=EVENT_SCHEMA)


def standing(events: pl.DataFrame) -> pl.DataFrame:
    retraction = pl.col("event_type") == RETRACT
    found = counted(events.filter(~retraction), taken_back(events.filter(retraction)))
    return found.drop("partition", "offset", "kafka_ts")


def tiles(events: pl.DataFrame, *, read: int) -> dict[tuple[str, int], Any]:
    """What a view has by key and tile that began when `read` records of the log were counted, and was backfilled."""
    known = events.head(read).group_by("partition").len()
    starts = dict.fromkeys(events["partition"].unique(), 0) | dict(known.iter_rows())
    none = PROFILE_SCHEMA.to_frame()
    rows: defaultdict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    found = tiles_before(VIEW, events, none, definitions=DEFINITIONS, starts=starts, from_ms=BASE)
    for frame in found.values():
        for key, start, state in frame.iter_rows():
            rows[key, start].append((start, state))
    return {place: merge(VIEW, states) for place, states in rows.items()}


@given(logs(), st.integers(0, 16), st.integers(1, 3), st.integers(1, 4), st.integers(0, 17))
def test_a_log_over_partitions_that_were_added_says_what_it_says_in_one(
    log: list[Event], at: int, before: int, more: int, read: int
) -> None:
    one = cut_over(log, at=0, before=1, after=1)
    several = cut_over(log, at=at, before=before, after=before + more)
    assert standing(several).sort(pl.all()).equals(standing(one).sort(pl.all()))
    order = ("day", "entity", "key")
    assert day_counts(standing(several)).sort(order).equals(day_counts(standing(one)).sort(order))
    assert tiles(several, read=read) == tiles(one, read=read)


def test_of_copies_the_lowest_offset_counts_in_a_partition_and_over_several_what_kafka_took_first() -> None:
    copy = {"event_id": "a", "event_type": "view", "ts": BASE, "user_id": 1}
    # (partition, offset, kafka_ts): the broker of partition 0 has set its clock back.
    for places, counts in (
        ([(0, 1, 5), (0, 2, 4)], 0),
        ([(0, 1, 5), (0, 2, 3), (1, 9, 4)], 2),
        ([(1, 0, 4), (0, 9, 4)], 1),
    ):
        rows = [
            {**copy, "item_id": number, "partition": partition, "offset": offset, "kafka_ts": kafka_ts}
            for number, (partition, offset, kafka_ts) in enumerate(places)
        ]
        assert standing(pl.DataFrame(rows, schema=EVENT_SCHEMA))["item_id"].to_list() == [counts]
