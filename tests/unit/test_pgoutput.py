"""The parser on bytes that a PostgreSQL 18 sent, and on what it refuses."""

from __future__ import annotations

import polars as pl
import pytest

from rtrec_ray.errors import ChangeRefused
from rtrec_ray.stores.changes.pgoutput import Begin, Commit, Relation, Transactions, parse
from rtrec_ray.stores.changes.revisions import REQUEST_SCHEMA, attached, revisions
from tests import pgoutput_bytes as write

# CREATE TABLE recorded (id bigint PRIMARY KEY, label smallint, labels jsonb, known_at timestamptz); one INSERT of two
# rows, (1, 0, '{"click": 0}', '2026-01-02 03:04:05.678+00') and (2, NULL, '{}', NULL), in the order they came.
HEX = [
    "420000000001af7950000303eabc3367f4000002f4",
    (
        "52000040017075626c6963007265636f72646564006400040169640000000014ffffffff006c6162656c0000000015ffffff"
        "ff006c6162656c730000000edaffffffff006b6e6f776e5f617400000004a0ffffffff"
    ),
    (
        "49000040014e0004740000000131740000000130740000000c7b22636c69636b223a20307d740000001a323032362d30312d"
        "30322030333a30343a30352e3637382b3030"
    ),
    "49000040014e00047400000001326e74000000027b7d6e",
    "43000000000001af79500000000001af7980000303eabc3367f4",
]
RECORDED = [bytes.fromhex(line) for line in HEX]


def test_a_recorded_transaction_is_read():
    first, second = parse(RECORDED[0]), parse(RECORDED[1])
    assert isinstance(first, Begin)
    assert isinstance(second, Relation)
    assert (second.full_name, second.columns) == ("public.recorded", ("id", "label", "labels", "known_at"))
    reader = Transactions("public.recorded")
    (whole,) = [found for found in map(reader.handle, RECORDED) if found is not None]
    assert [part.values for part in whole.parts] == [
        [(b"1", b"0", b'{"click": 0}', b"2026-01-02 03:04:05.678+00"), (b"2", None, b"{}", None)]
    ]
    last = parse(RECORDED[-1])
    assert isinstance(last, Commit)
    assert first.final_lsn == last.commit_lsn < last.end_lsn == whole.end_lsn


@pytest.mark.parametrize(("kind", "said"), [(b"U", "UPDATE"), (b"D", "DELETE"), (b"T", "TRUNCATE"), (b"?", "unknown")])
def test_what_a_ledger_never_does_is_refused_by_name(kind, said):
    with pytest.raises(ChangeRefused, match=said):
        parse(kind + bytes(20))


def test_rows_of_another_table_are_refused_by_name():
    reader = Transactions("samples.revisions")
    reader.handle(write.begin(1))
    reader.handle(write.relation(5, "samples", "misses", ["a"]))
    with pytest.raises(ChangeRefused, match=r"samples\.misses"):
        reader.handle(write.insert(5, [b"1"]))
    with pytest.raises(ChangeRefused, match="unannounced"):
        reader.handle(write.insert(6, [b"1"]))


@pytest.mark.parametrize("kind", [b"u", b"b"])
def test_a_value_that_is_not_text_is_refused(kind):
    row = bytearray(write.insert(5, [b"1"]))
    row[8:9] = kind
    with pytest.raises(ChangeRefused, match="value of kind"):
        parse(bytes(row))


@pytest.mark.parametrize("kind", [b"O", b"Y", b"M"])
def test_what_tells_nothing_of_rows_is_passed_over(kind):
    assert parse(kind + bytes(20)) is None


def test_rows_are_put_in_the_order_of_their_numbers_and_times_are_rounded():
    reader = Transactions("samples.revisions")
    columns = ["commit_seq", "request_id", "event_day", "known_at", "label"]
    rows = [
        [b"2", b"r", b"2026-01-01", b"2026-01-01 00:00:00.0015+00", b"1"],
        [b"1", b"q", b"2026-01-01", b"2026-01-01 00:00:01+00", None],
    ]
    reader.handle(write.relation(5, "samples", "revisions", columns))
    reader.handle(write.begin(1))
    for row in rows:
        reader.handle(write.insert(5, row))
    whole = reader.handle(write.commit(1, 2))
    assert whole is not None
    wanted = ["commit_seq", "known_at_ms", "label"]
    found = attached(revisions(whole, wanted), pl.DataFrame(schema=REQUEST_SCHEMA), wanted)
    assert found.rows() == [(1, 1_767_225_601_000, None), (2, 1_767_225_600_002, 1)]


def test_features_are_the_requests_overridden_by_the_items_own():
    rows = pl.DataFrame(
        {
            "commit_seq": [1, 2, 3, 4],
            "request_id": ["r", "r", "r", "absent"],
            "event_day": ["2026-01-01"] * 4,
            "arm": [None, "own", None, None],
            "item_features": ['{"b": 2}', None, "{}", '{"c": 3}'],
        }
    )
    requests = pl.DataFrame([("r", "2026-01-01", "v1", "its", '{"a": 1, "b": 1}')], schema=REQUEST_SCHEMA, orient="row")
    found = attached(rows, requests, ["features", "arm", "model_version"])
    shape = pl.Struct({"a": pl.Int64, "b": pl.Int64, "c": pl.Int64})
    assert found["features"].str.json_decode(shape).to_list() == [
        {"a": 1, "b": 2, "c": None},
        {"a": 1, "b": 1, "c": None},
        {"a": 1, "b": 1, "c": None},
        {"a": None, "b": None, "c": 3},
    ]
    assert found["arm"].to_list() == ["its", "own", "its", None]
    assert found["model_version"].to_list() == ["v1", "v1", "v1", None]
