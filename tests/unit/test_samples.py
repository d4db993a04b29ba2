"""The definition of a sample is checked when it is read, and the parts of the stitcher keep their small laws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.events import BEHAVIOR_SCHEMA, INFERENCE_SCHEMA
from rtrec_ray.samples.columns import KNOWN_SCHEMA, REQUEST_SCHEMA
from rtrec_ray.samples.definition import CLICK, Label, PageRules, SampleDefinition, from_text
from rtrec_ray.samples.file import file_text, load_definition, parse_definition
from rtrec_ray.samples.keys import MAX_REQUEST_ID_BYTES, keyed, requests_of
from rtrec_ray.samples.requests import RequestCache, ranked_items
from rtrec_ray.samples.timeline import Timeline

SHIPPED = Path(__file__).parents[2] / "configs" / "samples.yaml"


def test_the_shipped_definition_has_the_default_times_and_five_labels():
    shipped = load_definition(SHIPPED)
    assert replace(shipped, labels=SampleDefinition().labels) == SampleDefinition()
    assert list(shipped.labels) == ["click", "long_view", "cart", "favorite", "dwell_ms"]


def test_a_file_says_labels_pages_and_the_share_of_negatives_and_survives_being_stored():
    text = """
labels: {click: {event: click}, long: {event: view, at_least: {dwell_ms: 9}}, sum: {event: view, sum: dwell_ms}}
negatives: {keep: 0.5}
pages: {3: {wait_ms: 7, emit: on_close, negatives: {keep: 1}}, 5: {labels: {long: {event: view}, cart: {event: cart}}}}
"""
    found = parse_definition(text)
    assert found.labels == {
        CLICK: Label(event="click"),
        "long": Label(event="view", field="dwell_ms", at_least=9),
        "sum": Label(event="view", field="dwell_ms", summed=True),
    }
    own = {"long": Label(event="view"), "cart": Label(event="cart")}
    assert found.pages == {3: PageRules(wait_ms=7, emit="on_close", negative_rate=1.0), 5: PageRules(labels=own)}
    assert found.on_page(5).labels == {**found.labels, **own}
    assert (found.negative_rate, found.on_page(3).negative_rate, found.on_page(4)) == (
        0.5,
        1.0,
        replace(found, pages={}),
    )
    assert from_text(found.text()) == found
    assert parse_definition(file_text(found)) == found


def test_a_version_means_one_thing_and_holds_from_its_start_on():
    first, second = SampleDefinition(), SampleDefinition(version=2, wait_ms=5)
    timeline = Timeline.of(first).applied(second, from_ms=100)
    rows = pl.DataFrame({"event_time_ms": [99, 100], "page_id": [None, 1]}, schema_overrides={"page_id": pl.Int64})
    waits = rows.select(timeline.value(lambda rules: rules.wait_ms, dtype=pl.Int64)).to_series()
    assert waits.to_list() == [first.wait_ms, 5]
    assert [(rules.version, part.height) for rules, part in timeline.parts(rows)] == [(1, 1), (2, 1)]
    for wrong in (replace(second, wait_ms=6), SampleDefinition(version=0)):
        with pytest.raises(DefinitionInvalid):
            timeline.applied(wrong, from_ms=200)


def test_an_empty_file_is_the_default(tmp_path):
    (tmp_path / "samples.yaml").write_text("# nothing\n")
    assert load_definition(tmp_path / "samples.yaml") == SampleDefinition()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nwait: 5\n", 'line 2: unknown key "wait"'),
        ("wait_ms: soon\n", 'line 1: expected a whole number, not "soon"'),
        ("\nwait_ms: true\n", 'line 2: expected a whole number, not "true"'),
        ("horizon_ms: 5\n", "horizon_ms 5 is shorter than wait_ms 60000"),
        ("wait_ms: -1\n", "wait_ms is -1"),
        ("emit: sometimes\n", "emit is 'sometimes'"),
        ("- wait_ms\n", "expected key: value"),
        ("wait_ms: [\n", "line 1: not YAML: did not find expected node content"),
        ("labels:\n  click: {event: click}\n  x: {event: impression}\n", 'line 3: event is "impression"'),
        ("labels:\n  x: {event: cart}\n", "the label click is not {event: click}"),
        ("labels: {click: {event: click, sum: item_id}}\n", 'line 1: sum is "item_id"'),
        ("negatives: {keep: 0}\n", "keep is 0.0"),
        ("pages:\n  a: {wait_ms: 1}\n", 'line 2: page "a" is not a number'),
        ("pages:\n  7: {horizon_ms: 1}\n", "on page 7 horizon_ms 1 is shorter"),
        ("pages:\n  7: {labels: {click: {event: view}}}\n", "on page 7 the label click is not"),
        ("pages:\n  7:\n    labels: {x: {event: look}}\n", 'line 3: event is "look"'),
    ],
)
def test_a_wrong_definition_names_the_file_the_place_and_the_key(tmp_path, text, said):
    path = tmp_path / "samples.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionInvalid) as error:
        load_definition(path)
    assert said in error.value.message
    assert error.value.message.startswith(str(path))
    assert error.value.mend


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DefinitionInvalid, match=r"absent\.yaml"):
        load_definition(tmp_path / "absent.yaml")


def test_an_event_is_keyed_when_its_request_and_item_can_be_stored():
    ids = ["r", None, "r", "r" * MAX_REQUEST_ID_BYTES, "r" * (MAX_REQUEST_ID_BYTES + 1), ""]
    frame = pl.DataFrame({"request_id": ids, "item_id": [1, 1, None, 1, 1, 1]}, schema_overrides=BEHAVIOR_SCHEMA)
    assert frame.select(keyed().fill_null(False)).to_series().to_list() == [True, False, False, True, False, True]


def test_a_request_belongs_to_the_utc_day_of_its_time():
    row = {"request_id": "r", "user_id": 1, "ts": 1_767_225_599_999, "model_version": "v", "features": "{}"}
    requests = requests_of(pl.DataFrame([row, {**row, "ts": row["ts"] + 1}], schema=INFERENCE_SCHEMA))
    assert requests.schema == REQUEST_SCHEMA
    assert [str(day) for day in requests["event_day"]] == ["2025-12-31", "2026-01-01"]


def known(*ids: str, items: str | None = None, ts: int = 0) -> pl.DataFrame:
    return pl.DataFrame([(r, None, ts, None, items) for r in ids], schema=KNOWN_SCHEMA, orient="row")


def test_the_first_record_of_a_request_wins_and_only_it_is_new():
    cache = RequestCache(keep_ms=10, most=10)
    assert cache.admit(pl.concat([known("a", ts=1), known("a", "b", ts=2)]))["event_time_ms"].to_list() == [1, 2]
    assert cache.admit(known("a", "b", "c", ts=3))["request_id"].to_list() == ["c"]
    assert cache.of(known("a"))["event_time_ms"].to_list() == [1]


def test_the_cache_is_bounded_by_time_and_by_number():
    cache = RequestCache(keep_ms=10, most=2)
    cache.admit(pl.concat([known("a", ts=0), known("b", ts=1), known("c", ts=2), known("d", ts=3)]))
    cache.forget(watermark_ms=None)
    assert cache.of(known("a", "b", "c", "d"))["request_id"].to_list() == ["c", "d"]
    cache.forget(watermark_ms=12)
    assert cache.of(known("a", "b", "c", "d"))["request_id"].to_list() == ["d"]


def test_items_keep_their_own_features_as_text_and_requests_without_items_have_none():
    features = {"rank": 1.5, "tags": ["x", {"y": None}]}
    lists = [json.dumps([{"item_id": 1, "features": features}, {"item_id": 2}, {"item_id": 1}]), None, "[]"]
    frame = pl.concat([known(name, items=items) for name, items in zip("abc", lists, strict=True)])
    rows = {(r, i): own for r, i, *_, own in ranked_items(frame).rows()}
    assert json.loads(rows.pop(("a", 1))) == features
    assert rows == {("a", 2): None}
    assert ranked_items(known("a")).is_empty()
