"""The name of each way in which a record can be bad."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode
from rtrec_ray.kafka.judge import judge

NOW_MS = 1_767_225_600_000
HEAD = b'{"event_id":"e","event_type":"click","ts":1767225600000,"user_id":1'
INFERENCE_HEAD = b'{"request_id":"r","user_id":1,"ts":1767225600000,"model_version":"1"'


def event(**fields: Any) -> bytes:
    return json.dumps({"event_id": "e", "event_type": "click", "ts": NOW_MS, "user_id": 1} | fields).encode()


def original(**fields: Any) -> dict[str, Any]:
    return {"event_id": "o", "event_type": "click", "ts": NOW_MS, "user_id": 1} | fields


BAD = [
    (None, "tombstone", None),
    (b"", "empty", None),
    (b" \n", "empty", None),
    (b"{", "not_json", None),
    (HEAD + b"}}", "not_json", None),
    (HEAD + b"}" + HEAD + b"}", "not_json", None),
    (b"\xef\xbb\xbf" + HEAD + b"}", "not_json", None),
    (HEAD + b',"x":NaN}', "not_json", None),
    (HEAD.replace(b'"e"', b'"\xff"') + b"}", "not_unicode", None),
    (HEAD.replace(b'"e"', b'"\\ud800"') + b"}", "not_unicode", None),
    (HEAD.replace(b'"e"', b'"a\0b"') + b"}", "not_json", None),
    (b"[1]", "not_an_object", None),
    (b"null", "not_an_object", None),
    (HEAD + b',"retracts":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "too_deep", None),
    (b'{"event_id":"e","event_type":"click","ts":1767225600000}', "missing_field", "user_id"),
    (event(ts=None), "wrong_type", "ts"),
    (event(ts="now"), "wrong_type", "ts"),
    (event(ts=1.5), "wrong_type", "ts"),
    (event(user_id=True), "wrong_type", "user_id"),
    (event(dwell_ms="3"), "wrong_type", "dwell_ms"),
    (event(event_type="clack"), "unknown_value", "event_type"),
    (event(item_type="book"), "unknown_value", "item_type"),
    (event(user_id=2**63), "out_of_range", "user_id"),
    (event(item_id=-(2**63) - 1), "out_of_range", "item_id"),
    (event(ts=10**30), "out_of_range", "ts"),
    (event(query="a\0b"), "nul_character", "query"),
    (event(retracts={"query": "a\0b"}), "nul_character", "retracts"),
    (event(ts=0), "before_2000", "ts"),
    (event(ts=NOW_MS // 1000), "before_2000", "ts"),
    (event(ts=4_070_908_800_000), "ahead_of_clock", "ts"),
    (event(event_type="retract"), "missing_field", "retracts"),
    (event(event_type="retract", retracts={}), "missing_field", "retracts.event_id"),
    (event(event_type="retract", retracts=original(ts="now")), "wrong_type", "retracts.ts"),
    (event(event_type="retract", retracts=original(item_id=2**63)), "out_of_range", "retracts.item_id"),
    (event(event_type="retract", retracts=original(ts=0)), "before_2000", "retracts.ts"),
    (event(event_type="retract", retracts=original(event_type="retract")), "unknown_value", "retracts.event_type"),
    (event(event_type="retract", retracts=original(user_id=2)), "another_user", "retracts.user_id"),
    (event(event_type="retract", retracts=original(ts=NOW_MS + 1)), "before_original", "ts"),
]

BAD_INFERENCE = [
    (INFERENCE_HEAD + b"}", "missing_field", "features"),
    (INFERENCE_HEAD + b',"features":[]}', "wrong_type", "features"),
    (INFERENCE_HEAD + b',"features":{"a":1e999}}', "out_of_range", "features"),
    (INFERENCE_HEAD + b',"features":{},"items":[{"position":1,"score":1}]}', "missing_field", "items[0].item_id"),
    (
        INFERENCE_HEAD + b',"features":{},"items":[{"item_id":1,"position":1,"score":"a"}]}',
        "wrong_type",
        "items[0].score",
    ),
]


@pytest.mark.parametrize(("value", "reason", "field"), BAD)
def test_a_bad_event_is_dead_for_a_named_reason(value: bytes | None, reason: str, field: str | None) -> None:
    assert_dead(BEHAVIOR, event(), value, reason, field)


@pytest.mark.parametrize(("value", "reason", "field"), BAD_INFERENCE)
def test_a_bad_inference_record_is_dead_for_a_named_reason(value: bytes, reason: str, field: str) -> None:
    assert_dead(INFERENCE, INFERENCE_HEAD + b',"features":{}}', value, reason, field)


def assert_dead(topic: str, good: bytes, value: bytes | None, reason: str, field: str | None) -> None:
    batch = record_batch(topic, 2, [good, value, good], first_offset=5, timestamp_ms=NOW_MS)
    found = decode(batch, latest_ms=lambda wall_ms: wall_ms + 60_000)
    assert found.frame["offset"].to_list() == [5, 7]
    (letter,) = found.dead
    assert (letter.topic, letter.partition, letter.offset, letter.value) == (topic, 2, 6, value)
    assert (letter.reason, letter.field) == (reason, field)


def test_dead_letters_of_a_batch_come_in_the_order_of_the_log() -> None:
    values: list[bytes | None] = [event(ts=0), b"{", event(), event(user_id=2**63), event(query="\0"), None]
    found = decode(record_batch(BEHAVIOR, 0, values), latest_ms=lambda wall_ms: 2**62)
    assert [letter.offset for letter in found.dead] == [0, 1, 3, 4, 5]
    assert found.frame["offset"].to_list() == [2]


def test_a_good_event_has_no_fault() -> None:
    assert judge(BEHAVIOR, event(), latest_ms=NOW_MS) is None
    assert judge(BEHAVIOR, event(event_type="retract", retracts=original()), latest_ms=NOW_MS) is None


def test_profiles_and_items_may_hold_since_ever() -> None:
    assert judge(PROFILE, b'{"user_id":1,"ts":0}', latest_ms=NOW_MS) is None
    assert judge(ITEM, b'{"item_id":1,"ts":0}', latest_ms=NOW_MS) is None


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    value = INFERENCE_HEAD + rb',"features":{"path":"C:\\u0000"}}'
    found = decode(record_batch(INFERENCE, 0, [value]), latest_ms=lambda wall_ms: 2**62)
    assert (len(found.frame), found.dead) == (1, [])


def test_of_a_repeated_key_the_last_counts() -> None:
    found = decode(record_batch(BEHAVIOR, 0, [HEAD + b',"user_id":2}']), latest_ms=lambda wall_ms: 2**62)
    assert found.frame["user_id"].to_list() == [2]


def test_a_batch_without_records_gives_empty_columns() -> None:
    found = decode(record_batch(BEHAVIOR, 0, []), latest_ms=lambda wall_ms: 0)
    assert (len(found.frame), found.dead) == (0, [])


# As a load generator writes them: optional fields are null, times are UTC ms, features are flat.
GENERATED = [
    b'{"event_id":"e7-0","event_type":"impression","ts":1767225600033,"user_id":32281,"item_id":16384,'
    b'"item_type":"video","category_id":28,"page_id":10,"request_id":"r7-0","dwell_ms":null,"query":null}',
    b'{"event_id":"e7-5","event_type":"search","ts":1767225600040,"user_id":9,"item_id":null,'
    b'"item_type":"product","category_id":28,"page_id":10,"request_id":null,"dwell_ms":null,"query":"word1"}',
    b'{"event_id":"e7-9","event_type":"view","ts":1767225600041,"user_id":9,"item_id":5,'
    b'"item_type":"ad","category_id":2,"page_id":1,"request_id":null,"dwell_ms":8103,"query":null}',
]


def test_generated_events_decode_as_they_are() -> None:
    found = decode(record_batch(BEHAVIOR, 0, list(GENERATED)), latest_ms=lambda wall_ms: 2**62)
    assert found.dead == []
    assert found.frame.select("event_type", "item_id", "query", "dwell_ms").rows() == [
        ("impression", 16384, None, None),
        ("search", None, "word1", None),
        ("view", 5, None, 8103),
    ]


def test_generated_inference_records_decode_as_they_are() -> None:
    features = {**{f"f{n}": 0.25 for n in range(12)}, **{f"i{n}": n for n in range(8)}, "recent_items": [1, 2]}
    value = json.dumps(
        {"request_id": "r7-0", "user_id": 1, "ts": NOW_MS, "model_version": "v1", "features": features}
    ).encode()
    found = decode(record_batch(INFERENCE, 0, [value]), latest_ms=lambda wall_ms: 2**62)
    assert json.loads(found.frame["features"][0]) == features
