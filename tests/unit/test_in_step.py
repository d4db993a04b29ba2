"""Streams that are joined stay within reach of each other, and none waits for one that is idle."""

from __future__ import annotations

from typing import Any

import pytest

from actors.part import Part
from rtrec_ray.eventtime.watermark import Watermark, WatermarkOptions


def part(**times: int | None) -> Part:
    mark = Watermark(times, options=WatermarkOptions(disorder_ms=5, idle_after_ms=10))
    for topic, ts in times.items():
        mark.arrived(topic, max_ts_ms=ts)
    operator: Any = type("Nothing", (), {"preload": ()})()
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
