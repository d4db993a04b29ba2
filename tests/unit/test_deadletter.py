"""Dead letters keep what was refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.errors import RecordInvalid
from rtrec_ray.events import DEAD_LETTER
from rtrec_ray.kafka.base import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES
from rtrec_ray.kafka.deadletter import DeadLetter, decode_dead, encode_dead, send_dead
from rtrec_ray.kafka.memory import MemoryBroker


def letter(value: bytes | None, *, offset: int = 7) -> DeadLetter:
    return DeadLetter(topic="behavior", partition=1, offset=offset, reason="not_json", field=None, value=value)


@given(st.none() | st.binary(max_size=300))
def test_the_original_bytes_come_back(value: bytes | None) -> None:
    assert decode_dead(encode_dead(letter(value), at_ms=5)) == letter(value)


def test_the_largest_record_fits_whole() -> None:
    sent = letter(b"\xff" * MAX_RECORD_BYTES)
    assert decode_dead(encode_dead(sent, at_ms=5)) == sent


def test_a_larger_one_is_cut_and_tells_its_size() -> None:
    encoded = encode_dead(letter(b"x" * (4 * MAX_RECORD_BYTES)), at_ms=5)
    assert len(encoded) <= MAX_DEAD_LETTER_BYTES
    assert json.loads(encoded)["value_bytes"] == 4 * MAX_RECORD_BYTES


def test_a_record_told_twice_has_the_same_key() -> None:
    broker = MemoryBroker(partitions=1)
    for at_ms in (1, 2):
        send_dead(broker.producer(), [letter(b"{"), letter(b"[", offset=8)], at_ms=at_ms)
    assert broker.keys(DEAD_LETTER) == [b"behavior-1-7", b"behavior-1-8"] * 2


def test_the_record_says_where_why_and_when() -> None:
    told = json.loads(encode_dead(letter(b"{"), at_ms=1_700_000_000_000))
    assert told == {
        "topic": "behavior",
        "partition": 1,
        "offset": 7,
        "reason": "not_json",
        "field": None,
        "value_base64": "ew==",
        "value_bytes": 1,
        "at_ms": 1_700_000_000_000,
    }


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"value_base64": "?"}'])
def test_what_is_no_dead_letter_is_refused(value: bytes) -> None:
    with pytest.raises(RecordInvalid):
        decode_dead(value)
