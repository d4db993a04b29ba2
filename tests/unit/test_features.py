"""Definitions, duplicates, profiles and late events, case by case."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.events import BEHAVIOR_SCHEMA, PROFILE_SCHEMA
from rtrec_ray.eventtime.aggregate import Newest
from rtrec_ray.eventtime.identity import hash_events, hash_ids
from rtrec_ray.features.compute import compute
from rtrec_ray.features.definition import Aggregation, Condition, FeatureView
from rtrec_ray.features.file import load_definitions, parse_definitions
from rtrec_ray.features.merge import merge
from rtrec_ray.features.profiles import ProfileVersions, attribute
from rtrec_ray.features.seen import MINUTE_MS, Seen
from rtrec_ray.features.stream import FeatureStream, tiles_of
from rtrec_ray.features.text import to_texts
from rtrec_ray.stores.features.values import KeptLists

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "configs" / "features.yaml").read_text()
DEFINITIONS = parse_definitions(TEXT)
BASE = 1_767_225_600_000
MINUTE = 60_000

SMALL = """\
tile: 10s
horizon: 40m
retention: 70m
views:
  - name: seen
    version: 1
    keys: [user_id]
    window: 5m
    source: {event_type: view}
    aggregations:
      n: {count: events}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("tile: 10s", "tile: 10", 1, "duration"),
        ("tile: 10s", "tile: 0s", 1, "duration"),
        ("tile: 10s", "tile: 7s", 8, "multiple of the tile"),
        ("horizon: 40m", "horizon: 14m", 2, "longest window"),
        ("retention: 70m", "retention: 44m", 3, "retention must"),
        ("retention: 70m", "retain: 70m", 3, 'unknown key "retain"'),
        ("horizon: 40m\n", "", 1, '"horizon" is missing'),
        ("name: seen", "name: Seen-5", 5, "not a name"),
        ("version: 1", "version: 0", 6, "1 or more"),
        ("version: 1", "version: one", 6, "whole number"),
        ("keys: [user_id]", "keys: user_id", 7, "a list"),
        ("keys: [user_id]", "keys: [usr_id]", 7, "usr_id"),
        ("keys: [user_id]", "keys: [user_id, user_id]", 7, "different forms"),
        ("window: 5m", "windw: 5m", 8, 'unknown key "windw"'),
        ("event_type: view", "event_type: vieww", 9, "vieww"),
        ("event_type: view", "event_typ: view", 9, "event_typ"),
        ("event_type: view", "item_id: x", 9, "whole number"),
        ("event_type: view", "event_type: []", 9, "at least one value"),
        ("name: seen", "name: time_ms", 5, "a column beside"),
        ("version: 1", "version: 2147483648", 6, "2147483647 or less"),
        ("keys: [user_id]", "keys: [user_id|user_id]", 7, "a field twice"),
        ("event_type: view", "event_type: retract", 9, '"retract" is none of'),
        ("n: {count: events}", '"": {count: events}', 11, "needs a name"),
        ("event_type: view", r'query: "\ud800"', 9, "invalid Unicode"),
        ("n: {count: events}", "n: {count: event}", 11, '"events"'),
        ("n: {count: events}", "n: {sum: query}", 11, "dwell_ms"),
        ("n: {count: events}", "n: {sum: dwell_ms, limit: 3}", 11, "limit"),
        ("n: {count: events}", "n: {top_k: item_id}", 11, "limit"),
        ("n: {count: events}", "n: {distinct: item_id, repeats: true}", 11, "repeats"),
        ("n: {count: events}", "n: {last_n: item_id, limit: 3, repeats: maybe}", 11, "expected one of true, false"),
        ("n: {count: events}", "n: {where: {event_type: view}}", 11, "exactly one"),
        ("n: {count: events}", "n: {count: events}\n      n: {sum: dwell_ms}", 12, "twice"),
        ("n: {count: events}", "n: [", 11, "not YAML"),
        pytest.param("n: {count: events}", "n: " + "[" * 100_000, 11, "more than 100 levels", id="deep"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(old, new, line, what):
    assert SMALL.count(old) == 1
    with pytest.raises(DefinitionInvalid) as caught:
        parse_definitions(SMALL.replace(old, new), source="f.yaml")
    assert f"f.yaml, line {line}:" in caught.value.message
    assert what in caught.value.message


def test_the_faults_of_all_views_and_aggregations_are_named_at_once():
    second = SMALL[SMALL.index("  - name") :].replace("version: 1", "version: one")
    broken = SMALL.replace("n: {count: events}", "n: {count: event}\n      m: {sum: query}\n      k: {count: events}")
    with pytest.raises(DefinitionInvalid) as caught:
        parse_definitions(broken + second, source="f.yaml")
    lines = caught.value.line().splitlines()
    assert [line[: line.index(": ")] for line in lines] == [f"f.yaml, line {number}" for number in (11, 12, 15)]
    assert all(line.endswith("(correct the file)") for line in lines)


def test_a_fault_of_a_view_hides_none_of_its_aggregations():
    broken = SMALL.replace("window: 5m", "window: 7s").replace("n: {count: events}", "n: {count: event}")
    with pytest.raises(DefinitionInvalid) as caught:
        parse_definitions(broken, source="f.yaml")
    assert [line[: line.index(": ")] for line in caught.value.line().splitlines()] == [
        "f.yaml, line 8",
        "f.yaml, line 11",
    ]


def test_a_search_for_the_word_retract_is_a_search():
    found = parse_definitions(SMALL.replace("{event_type: view}", "{query: retract}"))
    assert found.views[0].source == (Condition(field="query", values=("retract",)),)


def test_an_event_counts_once_under_a_key_that_two_forms_give():
    view = parse_definitions(SMALL.replace("[user_id]", "[user_id, item_id, user_id|item_id, country|gender]")).views[0]
    plain = [{"user_id": 5, "item_id": 5}, {"user_id": 5, "item_id": 6}, {"user_id": 6, "item_id": None}]
    events = pl.DataFrame([{"event_id": "e", "ts": BASE, "event_type": "view", **each} for each in plain])
    found = compute(view, events.with_columns(country=pl.lit("5"), gender=pl.lit("6")), tile_ms=10_000)
    counts: Counter[str] = Counter()
    for key, state in found.select("key", "state").iter_rows():
        counts[key] += json.loads(state)[0]
    assert counts == {"5": 2, "6": 2, "5|5": 1, "5|6": 3}


def test_a_second_view_of_one_name_and_an_empty_file_are_refused():
    with pytest.raises(DefinitionInvalid, match='second view "seen"'):
        parse_definitions(SMALL + SMALL[SMALL.index("  - name") :])
    with pytest.raises(DefinitionInvalid, match="empty"):
        parse_definitions("# nothing\n")
    with pytest.raises(DefinitionInvalid, match="cannot be read"):
        load_definitions(ROOT / "no-such-file.yaml")


def test_a_file_may_define_no_view_at_all():
    definitions = parse_definitions("tile: 10s\nhorizon: 40m\nretention: 70m\nviews: []\n")
    stream = FeatureStream(definitions, disorder_ms=0, seen=Seen(), profiles=PROFILE_SCHEMA.to_frame())
    assert stream.take(frame({"event_type": "view"}))["late"] == 0
    assert stream.tiles() == {}


def test_the_shipped_views_are_those_of_the_contract():
    assert {(view.name, view.window_ms // MINUTE) for view in DEFINITIONS.views} == {
        ("user_browse_5m", 5),
        ("user_browse_1m", 1),
        ("category_top_items_10m", 10),
        ("top_viewed_30m", 30),
        ("top_queries_30m", 30),
        ("segment_page_top_ads", 10),
    }


def frame(*events):
    rows = [
        {"event_id": f"e{n}", "ts": BASE, "user_id": 1, "event_type": "view", **each} for n, each in enumerate(events)
    ]
    return pl.DataFrame(rows, schema=BEHAVIOR_SCHEMA)


def stream(**state):
    fresh = {"seen": Seen(), "profiles": PROFILE_SCHEMA.to_frame(), **state}
    return FeatureStream(DEFINITIONS, disorder_ms=5_000, **fresh)


def test_tiles_of_many_streams_are_those_of_each_whatever_views_it_has():
    def rows(of_stream):
        # Entries of one state come in any order; the name of a view without its version.
        return {
            view: sorted(
                f"{key} {start} {merge(DEFINITIONS.view(view[:-2]), [(start, state)]) or state}"
                for key, start, state in tiles.rows()
            )
            for view, tiles in of_stream.items()
        }

    def of(*views, **more):
        known = replace(DEFINITIONS, views=tuple(DEFINITIONS.view(name) for name in views), **more)
        return FeatureStream(known, disorder_ms=5_000, seen=Seen(), profiles=PROFILE_SCHEMA.to_frame())

    all_views = [view.name for view in DEFINITIONS.views]
    streams = [of(*all_views), of(*all_views), of("top_queries_30m"), of(*all_views), of(), of("user_browse_1m")]
    for number, each in enumerate(streams):
        if number != 3:  # which has had nothing to do
            taken = [
                {"event_id": f"e{n}", "ts": BASE + 3_000 * n, "user_id": n % 3, "item_id": n} for n in range(number + 9)
            ]
            searches = [{"event_id": "s", "event_type": "search", "query": f"q{number}"}]
            each.take(frame(*taken, *searches))
            each.settle()
            retracted = {"event_id": "e1", "event_type": "view", "ts": BASE + 3_000, "user_id": 1, "item_id": 1}
            retraction = {"event_type": "retract", "ts": BASE + 9_000, "retracts": json.dumps(retracted)}
            each.take(
                frame({"event_id": "new", "user_id": number}, retraction, *searches, {"event_id": "s2", **searches[0]})
            )
    together = tiles_of(streams)
    assert [rows(tiles) for tiles in together] == [rows(each.tiles()) for each in streams]
    assert together[3] == together[4] == {}
    assert [len(tiles) for tiles in together] == [6, 6, 1, 0, 0, 1]
    gone = [state for state in together[0]["user_browse_1m@1"]["state"] if state.startswith("[-1,")]
    assert len(gone) == 1


def test_a_watermark_that_went_on_while_idle_makes_old_events_late():
    taken = stream()
    taken.take(frame({"ts": BASE}))
    taken.advance(watermark_ms=BASE + 41 * MINUTE)
    taken.advance(watermark_ms=BASE)  # it never moves back
    counts = taken.take(frame({"ts": BASE + MINUTE - 1}, {"ts": BASE + MINUTE}, {"ts": BASE + 41 * MINUTE}))
    assert (counts["late"], counts["beyond_horizon"], counts["corrected"]) == (2, 1, 1)


def test_a_new_owner_judges_lateness_as_the_old_one_did():
    counts = stream(watermark_ms=BASE + 41 * MINUTE).take(frame({"ts": BASE}))
    assert counts["beyond_horizon"] == 1


def test_hashes_are_forgotten_only_when_their_minute_is_beyond_the_horizon():
    taken = stream()
    taken.take(frame({"ts": BASE}))
    for ahead, known in ((40 * MINUTE, 1), (41 * MINUTE - 1, 1), (41 * MINUTE, 0)):
        taken.advance(watermark_ms=BASE + ahead)
        taken.forget()
        assert len(taken.seen) == known, ahead


def test_a_profile_behind_the_watermark_is_counted_and_changes_nothing_of_events_already_taken():
    click = {"event_type": "click", "item_type": "ad", "item_id": 5, "page_id": 3}
    profile = pl.DataFrame([(1, BASE, "CN", "f", None, None)], schema=PROFILE_SCHEMA, orient="row")
    taken = stream()
    assert taken.take(frame({**click, "ts": BASE + MINUTE}))["without_profile"] == 1
    assert taken.take_profiles(profile)["late_profile"] == 1
    assert taken.take(frame({**click, "ts": BASE + MINUTE, "event_id": "second"}))["without_profile"] == 0
    (row,) = taken.tiles()["segment_page_top_ads@1"].rows()
    assert (row[0], merge(DEFINITIONS.view("segment_page_top_ads"), [row[1:]])) == ("CN|f|3", {"top": [[5, 1]], "last": [5]})  # fmt: skip  # noqa: E501


def test_the_last_sent_of_two_profiles_of_one_time_holds():
    versions = ProfileVersions(PROFILE_SCHEMA.to_frame(), asked_from_ms=0)
    for country in ("CN", "IN"):
        versions.take(pl.DataFrame([(1, 5, country, "f", None, None)], schema=PROFILE_SCHEMA, orient="row"))
    events = pl.DataFrame({"user_id": [1, 1, 2], "ts": [5, 4, 5]})
    found = attribute(events, versions.of(events["user_id"])).sort("user_id", "ts")
    assert found["country"].to_list() == [None, "IN", None]


def test_a_duplicate_is_known_by_its_id_within_its_minute():
    seen = Seen()
    ids = hash_ids(pl.Series(["a", "a", "b", "a"]))
    assert seen.first_time(np.array([0, MINUTE_MS - 1, 1, MINUTE_MS]), ids).tolist() == [True, False, True, True]
    assert seen.first_time(np.array([5]), ids[:1]).tolist() == [False]


def test_what_is_new_is_told_once_it_is_settled_no_more_and_can_be_loaded():
    seen, again = Seen(), Seen()
    seen.first_time(np.array([0, MINUTE_MS]), hash_ids(pl.Series(["a", "b"])))
    again.load(seen.new())
    assert again.first_time(np.array([1, MINUTE_MS]), hash_ids(pl.Series(["a", "c"]))).tolist() == [False, True]
    seen.settle()
    assert seen.new() == []
    assert again.new() == [(MINUTE_MS, hash_ids(pl.Series(["c"])).tobytes())]


def test_hashes_are_loaded_a_minute_at_a_time_whether_unique_or_not():
    random, minutes, n = np.random.default_rng(7), 50, 2_000
    first = [random.integers(0, 2**63, n, dtype=np.uint64) & ~np.uint64(1) for _ in range(minutes)]
    # Twice the same, as when a user moved from one partition to another.
    rows = ((minute * MINUTE_MS, first[minute].tobytes()) for minute in range(minutes) for _ in range(2))
    seen = Seen()
    tracemalloc.start()
    seen.load(rows)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for minute, hashes in enumerate(first):
        assert seen.came(np.full(n, minute * MINUTE_MS), hashes).all()
        assert not seen.first_time(np.full(n, minute * MINUTE_MS), hashes).any()
        assert not seen.came(np.full(n, minute * MINUTE_MS), hashes + np.uint64(2)).any()
    assert peak < 1.2 * kept


def test_the_hash_of_an_id_does_not_depend_on_its_neighbours_and_is_the_same_for_ever():
    ids = ["", "a", "e7-12345", "é", "x" * 64, "x" * 65, "x" * 5_000, "a\0", "a" * 8, "a" * 9]
    together = hash_ids(pl.Series(ids))
    assert together.tolist() == [int(hash_ids(pl.Series([each]))[0]) for each in ids]
    assert len(set(together.tolist())) == len(ids)
    assert hash_ids(pl.Series(ids)[3:7]).tolist() == together[3:7].tolist()
    # Written to tables: a change would count the events of the last 40 minutes twice.
    assert together[2] == 0x4837743ED71EB914
    assert hash_events(pl.Series([7]), pl.Series(["e7-12345"])).tolist() == [0x2BFC95DA8E2CB4C2]


def test_a_count_without_a_condition_counts_every_event():
    counted = Aggregation(name="n", kind="count")
    view = FeatureView(name="v", version=1, keys=((),), window_ms=10, source=(), aggregations=(counted,))
    events = frame(*({"event_type": "click", "item_id": item} for item in range(3)))
    for taken, sign, n in ((events, 1, 3), (events[:2], -1, -2)):
        (row,) = compute(view, taken, tile_ms=10_000, sign=sign).rows()
        assert json.loads(row[2]) == [n, n]


@pytest.mark.parametrize("cuts", [[], [1], [2], [1, 2]])
def test_a_retraction_before_its_event_means_the_same_wherever_a_batch_ends(cuts):
    """Even one that tells the event otherwise than it came."""
    click = {"event_type": "click", "user_id": 1, "category_id": 1, "ts": BASE}
    carried = json.dumps({**click, "event_id": "a", "item_id": 8})
    retraction = {"event_id": "r", "event_type": "retract", "retracts": carried}
    events = frame({**click, "event_id": "c", "item_id": 9}, retraction, {**click, "event_id": "a", "item_id": 7})
    taken = stream()
    for start, end in itertools.pairwise([0, *cuts, 3]):
        taken.take(events[start:end])
    rows = taken.tiles()["category_top_items_10m@1"].select("tile_start_ms", "state").rows()
    assert merge(DEFINITIONS.view("category_top_items_10m"), rows) == {"top": [[9, 1]]}


def test_a_retraction_takes_one_of_two_events_of_an_id_and_time():
    newest = Newest(limit=None, repeats=True)
    newest.add([[0, "e", 5, 0, "e", 5]], [0])
    newest.add([[0, "e", None]], [0])
    assert newest.value() == [5]


@pytest.mark.parametrize(
    ("carried", "differs"), [({}, 0), ({"dwell_ms": 900}, 1), ({"item_id": None}, 1), ({"event_type": "click"}, 1)]
)
def test_what_is_taken_back_of_an_event_that_waits_for_the_same_commit_is_what_was_counted_of_it(carried, differs):
    taken = stream()
    event = {"event_id": "a", "event_type": "view", "ts": BASE, "user_id": 1, "item_id": 5, "dwell_ms": 3}
    gone = {**event, "event_id": "r", "event_type": "retract", "retracts": json.dumps({**event, **carried})}
    taken.take(frame(event, {**event, "event_id": "b", "user_id": 2}, gone))
    assert +taken.match() == Counter({"retract_differs": differs} if differs else {})
    assert not +taken.match()
    rows = taken.tiles()["user_browse_5m@1"]
    states = [(start, state) for key, start, state in rows.iter_rows() if key == "1"]
    assert merge(DEFINITIONS.view("user_browse_5m"), states) is None


def test_what_was_taken_back_is_told_from_what_came_also_by_the_next_owner():
    seen, again = Seen(), Seen()
    ts_ms, ids = np.array([0, 0, MINUTE_MS]), hash_ids(pl.Series(["a", "b", "a"]))
    assert not seen.taken_back(ts_ms, ids).any()
    assert seen.take_back(ts_ms[:1], ids[:1]).tolist() == [True]
    assert seen.take_back(ts_ms[:1], ids[:1]).tolist() == [False]
    assert not seen.came(ts_ms, ids).any()
    assert seen.first_time(ts_ms, ids).all()
    again.load(seen.new())
    for owner in (seen, again):
        assert owner.taken_back(ts_ms, ids).tolist() == [True, False, False]
        assert owner.came(ts_ms, ids).all()
    again.forget(before_ms=MINUTE_MS)
    assert not again.taken_back(ts_ms, ids).any()


def test_hashes_of_many_ids_do_not_collide():
    numbered = hash_ids(pl.select(pl.format("e7-{}", pl.int_range(200_000))).to_series())
    assert len(np.unique(numbered)) == 200_000
    low = Counter((numbered >> np.uint64(1) & np.uint64(15)).tolist())  # the lowest bit is always 0
    assert max(low.values()) < 1.1 * 200_000 / 16


def test_a_key_too_long_for_an_index_is_left_out_and_a_sum_beyond_64_bits_is_right():
    clicks = frame({"event_type": "click", "item_type": "ad", "item_id": 1, "page_id": 1})
    nothing = pl.lit(None, dtype=pl.String)
    profiled = clicks.with_columns(country=pl.lit("x" * 2_000), gender=pl.lit("f"), city=nothing, age_band=nothing)
    assert compute(DEFINITIONS.view("segment_page_top_ads"), profiled, tile_ms=10_000).height == 0
    long = frame({"dwell_ms": 2**63 - 1}, {"dwell_ms": 2**63 - 1})
    (row,) = compute(DEFINITIONS.view("user_browse_5m"), long, tile_ms=10_000).rows()
    value = merge(DEFINITIONS.view("user_browse_5m"), [row[1:]])
    assert value is not None
    assert value["dwell_ms"] == 2**64 - 2


def test_a_text_that_is_too_long_is_in_no_value_and_its_event_counts_and_is_taken_back():
    longest, too_long = "é" * 500, "é" * 500 + "e"
    kinds = [("by", "count_by", None), ("top", "top_k", 9), ("last", "last_n", 9), ("all", "distinct", None)]
    parts = [Aggregation(name=name, kind=kind, field="query", limit=limit) for name, kind, limit in kinds]
    counted = Aggregation(name="n", kind="count")
    view = FeatureView(name="v", version=1, keys=((),), window_ms=10, source=(), aggregations=(counted, *parts))
    events = frame(
        {"event_id": "a", "query": longest}, {"event_id": "b", "query": too_long}, {"event_id": too_long, "query": "q"}
    )
    added = compute(view, events, tile_ms=10_000).rows()
    assert too_long not in str(added)
    assert merge(view, [row[1:] for row in added]) == {
        "n": 3,
        "by": {longest: 1, "q": 1},
        "top": [["q", 1], [longest, 1]],
        "last": [longest],
        "all": [longest],
    }
    gone = compute(view, events[1:], tile_ms=10_000, sign=-1).rows()
    alone = compute(view, events[:1], tile_ms=10_000).rows()
    assert merge(view, [row[1:] for row in (*added, *gone)]) == merge(view, [row[1:] for row in alone])


def test_a_list_is_decoded_again_when_it_changed_and_only_then():
    kept = KeptLists(most=2)
    (first,) = kept.values([((1, "a"), '{"top":[[7,1]]}')])
    (again,) = kept.values([((1, "a"), '{"top":[[7,1]]}')])
    (other_view,) = kept.values([((2, "a"), '{"top":[]}')])
    (changed,) = kept.values([((1, "a"), '{"top":[[7,2]]}')])
    assert again is first
    assert [first, other_view, changed] == [{"top": [[7, 1]]}, {"top": []}, {"top": [[7, 2]]}]


def test_of_the_lists_that_are_kept_the_one_not_read_for_longest_goes_first():
    kept, text = KeptLists(most=2), '{"top":[]}'
    a, b = kept.values([((1, "a"), text), ((1, "b"), text)])
    kept.values([((1, "a"), text), ((1, "c"), text)])
    assert len(kept) == 2
    assert kept.values([((1, "a"), text)])[0] is a
    assert kept.values([((1, "b"), text)])[0] is not b


def test_views_as_files_are_the_same_views():
    odd = parse_definitions(
        SMALL.replace("window: 5m", "window: 5m\n    cached: true")
        .replace("{event_type: view}", "{page_id: present, query: [present, 'yes', '5'], item_id: [1, 2]}")
        .replace("[user_id]", "[all, user_id|page_id]")
        .replace("n: {count: events}", "n: {last_n: item_id, limit: 3, repeats: true, where: {event_type: view}}")
    )
    old = replace(odd.views[0], version=2, window_ms=120_000)
    for definitions in (DEFINITIONS, odd, replace(odd, views=(old, *odd.views, *DEFINITIONS.views))):
        parsed = [parse_definitions(text) for text in to_texts(definitions)]
        views = [view for each in parsed for view in each.views]
        assert sorted(views, key=lambda view: view.id) == sorted(definitions.views, key=lambda view: view.id)
        times = {(each.tile_ms, each.horizon_ms, each.retention_ms) for each in parsed}
        assert times == {(definitions.tile_ms, definitions.horizon_ms, definitions.retention_ms)}
        versions = [view.version for view in views if view.name == odd.views[0].name]
        assert versions == sorted(versions), "applied one after another, the newest is the last"


def test_a_newer_version_is_read_when_its_first_tile_is_whole_too():
    view = DEFINITIONS.view("user_browse_5m")
    newer = replace(view, version=2)
    began = {"user_browse_5m@2": 100_003}
    both = replace(DEFINITIONS, views=(view, newer), complete_from_ms=began)
    found = [both.view("user_browse_5m", at_ms=at_ms).version for at_ms in (400_003, 409_999, 410_000)]
    assert found == [1, 1, 2]
