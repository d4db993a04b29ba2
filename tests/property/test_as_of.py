"""The laws of point-in-time values, against a recomputation in plain Python, row by row."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.events import BEHAVIOR_SCHEMA, PROFILE_SCHEMA
from rtrec_ray.features import as_of as module
from rtrec_ray.features.as_of import as_of, schema_of, value_of
from rtrec_ray.features.counted import EVENT_SCHEMA
from rtrec_ray.features.definition import Aggregation, Condition, FeatureView

TILE, WINDOW, MINUTE = 10, 40, 60_000
BASE = 1_767_225_600_000
PARTITIONS = 2

LONGEST, TOO_LONG = "é" * 500, "é" * 500 + "e"  # a value of 1,000 bytes is kept

VIEWED = (Condition(field="event_type", values=("view",)),)
VIEW = FeatureView(
    name="everything",
    version=1,
    keys=(("user_id",), ("country", "page_id")),
    window_ms=WINDOW,
    source=(Condition(field="event_type", values=("view", "click")),),
    aggregations=(
        Aggregation(name="events", kind="count"),
        Aggregation(name="views", kind="count", where=VIEWED),
        Aggregation(name="dwell", kind="sum", field="dwell_ms", where=VIEWED),
        Aggregation(name="mean_dwell", kind="mean", field="dwell_ms", where=VIEWED),
        Aggregation(name="by_type", kind="count_by", field="item_type"),
        Aggregation(name="top", kind="top_k", field="query", limit=2),
        Aggregation(name="ranked", kind="top_k", field="item_id"),
        Aggregation(name="last", kind="last_n", field="item_id", limit=2),
        Aggregation(name="lasts", kind="last_n", field="item_id", limit=3, repeats=True),
        Aggregation(name="pages", kind="distinct", field="page_id", where=VIEWED),
    ),
)

# Few distinct times on both sides of every edge: they must collide.
times = st.sampled_from([BASE + step for step in (-1, 0, 0, 1, 9, 10, 11, 39, 40, 41, 50, 59_990, 60_000, 60_001)])
late_times = st.sampled_from(
    [BASE + step for step in (0, 1, 9, 10, 11, 20, 39, 40, 41, 45, 50, 51, 90, 60_010, 60_040)]
)
plain_events = st.fixed_dictionaries(
    {
        "event_id": st.sampled_from(["a", "b", "c", "d", "é", TOO_LONG, "\U0001f600", 'q"\\']),
        "event_type": st.sampled_from(["view", "view", "click", "search"]),
        "ts": times,
        "user_id": st.sampled_from([1, 1, 2, 3]),
        "item_id": st.sampled_from([None, 7, 7, 8, 9]),
        "item_type": st.sampled_from([None, "ad", "video"]),
        "page_id": st.sampled_from([None, 3, 4]),
        "dwell_ms": st.sampled_from([None, 0, 5, 2**62]),
        "query": st.sampled_from([None, "b", "a", "é", "\U0001f600", LONGEST, TOO_LONG]),
    }
)
profile_versions = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from([1, 2]),
            "ts": st.sampled_from([BASE, BASE + 10, BASE + 41]),
            "country": st.sampled_from(["CN", "IN", None]),
        }
    ),
    max_size=4,
    unique_by=lambda each: (each["user_id"], each["ts"]),
)
questions = st.lists(
    st.tuples(st.sampled_from(["1", "2", "3", "9", "CN|3", "IN|4", ""]), late_times), min_size=1, max_size=8
)


@st.composite
def logs(draw: st.DrawFn, *, of: Any = plain_events, max_size: int = 14) -> list[dict[str, Any]]:
    """Events in the order of the log, some sent twice, some taken back, before they come or after."""
    log = draw(st.lists(of, max_size=max_size))
    for number, event in enumerate(draw(st.lists(st.sampled_from(log), max_size=4)) if log else []):
        step = draw(st.sampled_from([0, 1, 9, 10, 30, 40, 41]))
        carried = {name: value for name, value in event.items() if value is not None}
        retraction = {"event_id": f"r{number}", "event_type": "retract", "ts": event["ts"] + step, "retracts": carried}
        log.insert(draw(st.integers(0, len(log))), {**retraction, "user_id": event["user_id"]})
    return log


def frame(log: list[dict[str, Any]]) -> pl.DataFrame:
    rows = [
        {
            **{name: event.get(name) for name in BEHAVIOR_SCHEMA.names()},
            "retracts": json.dumps(event["retracts"]) if "retracts" in event else None,
            "partition": event["user_id"] % PARTITIONS,
            "offset": offset,
            "kafka_ts": offset,
        }
        for offset, event in enumerate(log)
    ]
    return pl.DataFrame(rows, schema=EVENT_SCHEMA)


def asked(rows: list[tuple[str, int]], log: list[dict[str, Any]], profiles: list[dict[str, Any]]) -> list[Any]:
    table = pl.DataFrame(rows, schema={"key": pl.String, "time_ms": pl.Int64}, orient="row")
    versions = pl.DataFrame(profiles, schema=PROFILE_SCHEMA)
    found = as_of(VIEW, table, frame(log), versions, tile_ms=TILE)
    assert found.select("key", "time_ms").equals(table)
    assert found.schema == pl.Schema({**table.schema, **schema_of(VIEW)})
    return [value_of(VIEW, row) for row in found.to_dicts()]


# --- the plain recomputation ------------------------------------------------------------------------------------------


def name_of(event: dict[str, Any]) -> tuple[Any, ...]:
    return event["user_id"], event["event_id"], event["ts"] // MINUTE


def expected(key: str, time_ms: int, log: list[dict[str, Any]], profiles: list[dict[str, Any]]) -> Any:
    """The value of one key out of the log's records with a time before the floored one."""
    end = time_ms - time_ms % TILE
    gone = {name_of(each["retracts"]) for each in log if "retracts" in each and each["ts"] < end}
    counting: dict[tuple[Any, ...], dict[str, Any]] = {}
    for event in log:
        if "retracts" not in event:
            counting.setdefault(name_of(event), event)
    mine = [
        event
        for name, event in counting.items()
        if name not in gone
        and end - WINDOW <= event["ts"] < end
        and event["event_type"] in ("view", "click")
        and key in keys_of(event, profiles)
    ]
    return value(mine) if mine else None


def keys_of(event: dict[str, Any], profiles: list[dict[str, Any]]) -> list[str]:
    held = [each for each in profiles if each["user_id"] == event["user_id"] and each["ts"] <= event["ts"]]
    country = max(held, key=lambda each: each["ts"])["country"] if held else None
    segment = [] if None in (country, event["page_id"]) else [f"{country}|{event['page_id']}"]
    return [str(event["user_id"]), *segment]


def value(mine: list[dict[str, Any]]) -> dict[str, Any]:
    views = [event for event in mine if event["event_type"] == "view"]
    dwells = [event["dwell_ms"] for event in views if event["dwell_ms"] is not None]
    queries = Counter(event["query"] for event in mine if event["query"] not in (None, TOO_LONG))
    items = Counter(event["item_id"] for event in mine if event["item_id"] is not None)
    kinds = Counter(event["item_type"] for event in mine if event["item_type"] is not None)
    return {
        "events": len(mine),
        "views": len(views),
        "dwell": sum(dwells),
        "mean_dwell": sum(dwells) / len(dwells) if dwells else None,
        "by_type": dict(sorted(kinds.items())),
        "top": ranked(queries)[:2],
        "ranked": ranked(items),
        "last": list(dict.fromkeys(newest(mine, "item_id")))[:2],
        "lasts": newest(mine, "item_id")[:3],
        "pages": list(dict.fromkeys(newest(views, "page_id"))),
    }


def ranked(counts: Counter[Any]) -> list[list[Any]]:
    return [[value, n] for value, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]


def newest(events: list[dict[str, Any]], name: str) -> list[Any]:
    listed = [event for event in events if event[name] is not None and event["event_id"] != TOO_LONG]
    found = [(event["ts"], event["event_id"], event[name]) for event in listed]
    return [each for _, _, each in sorted(found, reverse=True)]


# --- the laws ---------------------------------------------------------------------------------------------------------


@given(questions, logs(), profile_versions)
def test_every_row_equals_a_plain_recomputation_over_what_came_before_its_time(rows, log, profiles):
    assert asked(rows, log, profiles) == [expected(key, time, log, profiles) for key, time in rows]


@given(questions, logs(), st.data(), profile_versions)
def test_what_happens_at_a_rows_time_or_later_changes_nothing(rows, log, data, profiles):
    newest_ms = max(time for _, time in rows)
    later = st.integers(newest_ms, newest_ms + 5).flatmap(lambda ts: plain_events.map(lambda each: {**each, "ts": ts}))
    future = data.draw(logs(of=later, max_size=6))
    back = [
        {
            "event_id": f"f{number}",
            "event_type": "retract",
            "ts": newest_ms + number,
            "user_id": event["user_id"],
            "retracts": {name: value for name, value in event.items() if value is not None},
        }
        for number, event in enumerate(log)
        if "retracts" not in event and event["ts"] <= newest_ms
    ]
    assert asked(rows, log, profiles) == asked(rows, [*log, *future, *back], profiles)


@given(questions, logs(), st.randoms(use_true_random=False), profile_versions)
def test_neither_the_order_of_rows_nor_that_of_the_read_events_matters(rows, log, random, profiles):
    answers = dict(zip(rows, asked(rows, log, profiles), strict=True))
    shuffled = random.sample(rows, k=len(rows))
    events = frame(log)
    mixed = events.sample(fraction=1.0, shuffle=True, seed=random.randint(0, 99)) if events.height else events
    table = pl.DataFrame(shuffled, schema={"key": pl.String, "time_ms": pl.Int64}, orient="row")
    found = as_of(VIEW, table, mixed, pl.DataFrame(profiles, schema=PROFILE_SCHEMA), tile_ms=TILE)
    assert [value_of(VIEW, row) for row in found.to_dicts()] == [answers[row] for row in shuffled]


@given(questions, logs(), profile_versions)
def test_portions_change_nothing(rows, log, profiles):
    whole = asked(rows, log, profiles)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "PAIRS", 1)
        assert asked(rows, log, profiles) == whole


def event(ts: int, **fields: Any) -> dict[str, Any]:
    none = dict.fromkeys(("item_id", "item_type", "page_id", "dwell_ms", "query"))
    return {"event_id": f"e{ts}", "event_type": "view", "ts": ts, "user_id": 1, **none, **fields}


def test_an_event_at_exactly_the_time_is_not_in_the_value_and_one_a_window_before_is():
    log = [event(BASE), event(BASE + WINDOW - 1), event(BASE + WINDOW)]
    answers = asked([("1", BASE), ("1", BASE + WINDOW), ("1", BASE + WINDOW + TILE)], log, [])
    assert [answer and answer["events"] for answer in answers] == [None, 2, 2]


def test_a_retraction_counts_from_its_own_time_on():
    first = event(BASE)
    back = {"event_id": "r", "event_type": "retract", "ts": BASE + 20, "user_id": 1, "retracts": {"event_id": first["event_id"], "ts": BASE, "user_id": 1, "event_type": "view"}}  # fmt: skip  # noqa: E501
    answers = asked([("1", BASE + 20), ("1", BASE + 29), ("1", BASE + 30)], [first, back], [])
    assert [answer and answer["events"] for answer in answers] == [1, 1, None]


def test_ties_and_repeats_are_settled_as_the_store_settles_them_also_in_portions(monkeypatch):
    same = [
        event(BASE + ts, event_id=text, item_id=item, query=query, item_type=kind, page_id=page)
        for ts, text, item, query, kind, page in (
            (15, "a", 7, "b", "video", 3),
            (15, "c", 8, "a", "ad", 4),
            (15, "b", 9, "c", "ad", 3),
            (12, "d", 9, "b", "video", 4),
            (45, "e", 7, "a", "ad", 3),
            (46, "f", 7, None, None, 3),
        )
    ]
    rows = [("1", BASE + ts) for ts in (20, 49, 50, 50, 60, 100)]
    want = [expected(key, time, same, []) for key, time in rows]
    assert want[2]["lasts"] == [7, 7, 8]
    assert want[2]["last"] == [7, 8]
    assert want[0]["top"] == [["b", 2], ["a", 1]]
    assert want[2]["top"] == [["a", 2], ["b", 2]]
    assert asked(rows, same, []) == want
    monkeypatch.setattr(module, "PAIRS", 1)
    assert asked(rows, same, []) == want
