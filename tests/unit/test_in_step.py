"""Streams that are joined stay within reach of each other, and none waits for one that is idle."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actors.history import HistoryOperator, HistoryOptions
from actors.part import Part
from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE
from rtrec_ray.eventtime.watermark import Watermark, WatermarkOptions
from rtrec_ray.kafka.base import TopicPartition, record_batch
from rtrec_ray.kafka.memory import MemoryBroker

BASE = 1_767_225_600_000


def part(**times: int | None) -> Part:
    mark = Watermark(times, options=WatermarkOptions(disorder_ms=5, idle_after_ms=10))
    for topic, ts in times.items():
        mark.arrived(topic, max_ts_ms=ts)
    operator: Any = type("Nothing", (), {"timed": tuple(times)})()
    nobody: Any = None
    return Part(operator=operator, lease=nobody, watermark=mark, position={}, applied=dict.fromkeys(times, 0))


@pytest.mark.parametrize(("bound", "stopped"), [(100, []), (99, ["a"]), (None, [])])
def test_a_topic_that_is_too_far_ahead_is_stopped(bound, stopped):
    assert part(a=200, b=100).too_far(bound) == stopped


def test_the_slowest_goes_on_so_that_nobody_waits_for_ever():
    assert part(a=200, b=100, c=0).too_far(10) == ["a", "b"]


def test_an_idle_topic_and_one_of_unknown_time_stop_nobody():
    one = part(a=2_000, b=100)
    one.watermark.looked("b", at_end=True, wall_ms=-(10**15))
    assert one.too_far(10) == []
    assert part(a=2_000, b=None).too_far(10) == []


def test_only_a_partition_that_nothing_ever_came_to_rests():
    mark = part(a=None, b=None).watermark
    for topic in ("a", "b"):
        mark.looked(topic, at_end=True, wall_ms=0)
    assert not mark.rests(wall_ms=9)
    assert mark.rests(wall_ms=10)
    mark.arrived("a", max_ts_ms=5)
    assert not mark.rests(wall_ms=100)


def test_since_when_a_profile_or_an_item_holds_does_not_hold_the_history_back():
    nobody: Any = None
    broker = MemoryBroker(partitions=1)
    parts = {
        "files": nobody,
        "manifest": nobody,
        "producer": broker.producer(),
        "latest_ms": lambda wall: BASE + 1_000_000,
    }
    history = HistoryOperator(**parts, options=HistoryOptions())
    position = dict.fromkeys(history.topics, 0)
    mark = Watermark(history.timed, options=WatermarkOptions(disorder_ms=5, idle_after_ms=10))
    one = Part(operator=history, lease=nobody, watermark=mark, position=position, applied={**position})
    view = {"event_id": "v", "event_type": "view", "ts": BASE + 90_000, "user_id": 1}
    told = {
        PROFILE: {"user_id": 1, "ts": BASE, "country": "CN"},
        ITEM: {"item_id": 1, "ts": BASE, "title": "x"},
        BEHAVIOR: view,
    }
    for topic, record in told.items():
        one.take(record_batch(topic, 0, [msgspec.json.encode(record)]))
    mark.looked(INFERENCE, at_end=True, wall_ms=-(10**15))
    one.advance(now_ms=BASE + 100_000)
    assert mark.value_ms == BASE + 89_995
    one.look({TopicPartition(topic=topic, partition=0): 1 for topic in told}, 0)
    assert one.times() == {BEHAVIOR: BASE + 90_000, INFERENCE: None}
