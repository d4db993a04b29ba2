"""Laws of the way from bytes to columns and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rtrec_ray.app.system import LatestBelieved
from rtrec_ray.clock import REAL
from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE, SCHEMAS, STRUCTS
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import KEY_FIELD, Decoded, decode, encode, encode_record, keys_of
from rtrec_ray.kafka.judge import JSON_COLUMNS, judge
from tests.strategies import GARBAGE, RECORDS, START_MS, topics_with_records, written

ANY_TIME = 2**62


def decoded(topic: str, values: list[bytes | None], *, first_offset: int = 0) -> Decoded:
    return decode(record_batch(topic, 3, values, first_offset=first_offset), latest_ms=lambda wall_ms: ANY_TIME)


def row(topic: str, record: dict[str, Any], *, offset: int) -> dict[str, Any]:
    """What the columns must say about a record."""
    return {name: record.get(name) for name in SCHEMAS[topic]} | {"offset": offset}


def rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The frame's rows with JSON text read again."""
    return [
        {
            name: json.loads(content) if name in JSON_COLUMNS and content is not None else content
            for name, content in found.items()
        }
        for found in frame.to_dicts()
    ]


def without_nulls(content: Any) -> Any:
    """Null means absent, also inside ranked items."""
    if isinstance(content, list):
        return [
            {name: of for name, of in item.items() if of is not None} if isinstance(item, dict) else item
            for item in content
        ]
    return content


@given(st.data(), topics_with_records())
def test_a_good_record_becomes_its_row_however_it_is_written(data: st.DataObject, sent: Any) -> None:
    topic, records = sent
    found = decoded(topic, [data.draw(written(record)) for record in records], first_offset=7)
    assert found.dead == []
    assert found.frame.schema == {**SCHEMAS[topic], "offset": pl.Int64}
    wanted = [row(topic, record, offset=7 + index) for index, record in enumerate(records)]
    assert rows(found.frame) == [
        {**want, "items": without_nulls(want["items"])} if "items" in want else want for want in wanted
    ]


@given(st.data(), topics_with_records())
def test_bad_records_cost_no_good_one_and_each_is_named_with_its_bytes(data: st.DataObject, sent: Any) -> None:
    topic, records = sent
    values: list[bytes | None] = [data.draw(written(record)) for record in records]
    is_good = [True] * len(values)
    for garbage in data.draw(st.lists(GARBAGE, max_size=5)):
        if judge(topic, garbage, latest_ms=ANY_TIME) is not None:
            place = data.draw(st.integers(0, len(values)))
            values.insert(place, garbage)
            is_good.insert(place, False)
    found = decoded(topic, values)
    alone = decoded(topic, [value for value, good in zip(values, is_good, strict=True) if good])
    assert found.frame.drop("offset").equals(alone.frame.drop("offset"))
    assert found.frame["offset"].to_list() == [place for place, good in enumerate(is_good) if good]
    assert [letter.offset for letter in found.dead] == [place for place, good in enumerate(is_good) if not good]
    assert [letter.value for letter in found.dead] == [values[letter.offset] for letter in found.dead]


@given(st.lists(st.one_of(GARBAGE, st.binary(max_size=200)), max_size=8), st.sampled_from(sorted(RECORDS)))
def test_every_record_is_a_row_or_a_dead_letter(values: list[bytes | None], topic: str) -> None:
    found = decoded(topic, values)
    offsets = found.frame["offset"].to_list() + [letter.offset for letter in found.dead]
    assert sorted(offsets) == list(range(len(values)))


@given(st.data(), topics_with_records())
def test_batch_and_single_judgement_agree(data: st.DataObject, sent: Any) -> None:
    topic, records = sent
    values: list[bytes | None] = [data.draw(st.one_of(written(record), GARBAGE)) for record in records]
    found = decoded(topic, values)
    faults = {place: fault for place, value in enumerate(values) if (fault := judge(topic, value, latest_ms=ANY_TIME))}
    assert {letter.offset: (letter.reason, letter.field) for letter in found.dead} == {
        place: (fault.reason, fault.field) for place, fault in faults.items()
    }


@given(st.data(), topics_with_records())
def test_which_records_are_good_does_not_depend_on_the_columns_asked_for(data: st.DataObject, sent: Any) -> None:
    topic, records = sent
    values: list[bytes | None] = [data.draw(st.one_of(written(record), GARBAGE)) for record in records]
    batch = record_batch(topic, 3, values)
    columns = data.draw(st.sets(st.sampled_from(SCHEMAS[topic].names())))
    whole = decode(batch, latest_ms=lambda wall_ms: ANY_TIME)
    some = decode(batch, latest_ms=lambda wall_ms: ANY_TIME, columns=columns)
    assert some.dead == whole.dead
    assert some.frame.equals(whole.frame.select(*(name for name in SCHEMAS[topic] if name in columns), "offset"))


@given(topics_with_records())
def test_encoding_and_decoding_gives_the_same_columns(sent: Any) -> None:
    topic, records = sent
    frame = decoded(topic, [json.dumps(record).encode() for record in records]).frame.drop("offset")
    keys, values = encode(topic, frame)
    again = decoded(topic, list(values))
    assert again.dead == []
    assert again.frame.drop("offset").equals(frame)
    assert keys == [str(record[KEY_FIELD[topic]]).encode() for record in records]


@given(topics_with_records())
def test_a_record_and_a_frame_encode_to_the_same_row(sent: Any) -> None:
    topic, records = sent
    structs = [msgspec.convert(record, STRUCTS[topic]) for record in records]
    singly = [encode_record(topic, struct) for struct in structs]
    found = decoded(topic, [value for _, value in singly])
    assert found.dead == []
    assert [key for key, _ in singly] == keys_of(found.frame[KEY_FIELD[topic]])


GOOD = {
    BEHAVIOR: {"event_id": "e", "event_type": "click", "ts": START_MS, "user_id": 1},
    INFERENCE: {"request_id": "r", "user_id": 1, "ts": START_MS, "model_version": "1", "features": {"a": 1}},
    PROFILE: {"user_id": 1, "ts": START_MS},
    ITEM: {"item_id": 1, "ts": START_MS},
}


def wrong_for(field: str, dtype: Any) -> st.SearchStrategy[Any]:
    """Values that this field must not have."""
    if field in JSON_COLUMNS:
        return st.sampled_from([1, 1.5, True, "text"])
    return st.sampled_from([1.5, True, {}, {"a": 1}, [], [1], "7" if dtype == pl.Int64 else 7])


@given(st.data())
@pytest.mark.parametrize("topic", sorted(GOOD))
def test_a_wrong_type_is_dead_by_the_name_of_its_field(topic: str, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(SCHEMAS[topic])))
    record = GOOD[topic] | {field: data.draw(wrong_for(field, SCHEMAS[topic][field]))}
    (letter,) = decoded(topic, [json.dumps(record).encode()]).dead
    assert letter.field == field


@given(st.integers(0, 10), st.lists(st.integers(-5, 5), min_size=1, max_size=12))
@example(0, [5, -5])
def test_the_clock_at_the_time_of_writing_decides_about_the_future(skew_ms: int, lead_ms: list[int]) -> None:
    """... for each record by itself, whatever it shares a batch with, so that a second reading judges alike."""
    batch = record_batch(BEHAVIOR, 0, [json.dumps(GOOD[BEHAVIOR] | {"ts": START_MS}).encode() for _ in lead_ms])
    stamped = replace(batch, stamps_ms=np.array([START_MS - lead for lead in lead_ms]))
    found = decode(stamped, latest_ms=lambda wall_ms: wall_ms + skew_ms)
    assert [letter.offset for letter in found.dead] == [place for place, lead in enumerate(lead_ms) if lead > skew_ms]
    assert {letter.reason for letter in found.dead} <= {"ahead_of_clock"}


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=12), st.integers(0, 3))
@example([(9, 9), (0, 0)], 3)
def test_a_stamp_from_the_future_lets_no_event_from_the_future_pass(
    leads_ms: list[tuple[int, int]], skew_ms: int
) -> None:
    """... and one from the past, which a second reading finds as it was, is believed as it is."""
    believed = LatestBelieved(clock=REAL, skew_ms=skew_ms, wall_ms=lambda: START_MS)
    values = [json.dumps(GOOD[BEHAVIOR] | {"ts": START_MS + ts}).encode() for ts, _ in leads_ms]
    batch = record_batch(BEHAVIOR, 0, values)
    stamped = replace(batch, stamps_ms=np.array([START_MS + stamp for _, stamp in leads_ms]))
    found = decode(stamped, latest_ms=believed)
    ahead = [place for place, (ts, stamp) in enumerate(leads_ms) if ts > min(stamp, 0) + skew_ms]
    assert [letter.offset for letter in found.dead] == ahead
