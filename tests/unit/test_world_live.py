"""Live shoppers against a small server: what was seen is reported, once, and by nobody who saw nothing."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial

import pytest

from rtrec_ray.app.up import check_parts
from rtrec_ray.clock import ScaledClock, wall_ms
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.events import BEHAVIOR, ITEM, PROFILE
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.simulate.world.experiment import MIDNIGHT_MS
from rtrec_ray.simulate.world.live import ShopperOptions, Shoppers, open_shop
from rtrec_ray.simulate.world.options import Drift, WorldOptions
from rtrec_ray.simulate.world.world import make_world
from tests.shop import open_shop as open_server

SHOWN = (2001, 2002, 2003, 2004, 2005)
ALL_HTTP = ShopperOptions(per_wall_s=80.0, over_http=1.0)


def come(server, eventually, options, *, until, drifts=()):
    """Let shoppers come until something holds; answers them, what they were answered and the broker."""
    clock = ScaledClock(origin_event_ms=MIDNIGHT_MS, origin_wall_ms=wall_ms(), speed=60.0)
    world, broker, answered = make_world(WorldOptions(users=50, drifts=drifts)), MemoryBroker(partitions=1), []
    shoppers = Shoppers(world, options, url=server.url, connect=broker.producer, clock=clock, tell=answered.append)
    shoppers.start()
    try:
        eventually(partial(until, answered, broker), timeout_s=20, what="enough of them came")
    finally:
        shoppers.stop()
    shoppers.check()
    return shoppers, answered, broker


def many(answered, broker):
    return len(answered) >= 40


def reported(server, broker):
    return [*server.events, *(json.loads(value) for value in broker.records(BEHAVIOR))]


@pytest.mark.parametrize("over_http", [0.0, 0.5])
def test_everything_that_was_shown_is_reported_once(eventually, over_http):
    with open_server(["ok"], items=SHOWN) as server:
        options = ShopperOptions(per_wall_s=80.0, over_http=over_http, unordered=0.0)
        shoppers, answered, broker = come(server, eventually, options, until=many)
        events = reported(server, broker)
    seen = [(e["request_id"], e["item_id"]) for e in events if e["event_type"] == "impression"]
    assert len(seen) == len(set(seen)) == 5 * len(answered)
    assert shoppers.sent == Counter(event["event_type"] for event in events)
    assert shoppers.unreported == 0
    assert {event["item_id"] for event in events if event["event_type"] == "impression"} == set(SHOWN)
    assert len(server.asked) == len(answered)
    assert all(set(body) == {"user_id", "page_id", "k"} for body in server.asked), "no truth leaves the world"


def test_who_was_not_answered_sees_and_reports_nothing(eventually):
    with open_server(["500"], items=SHOWN) as server:
        _, answered, broker = come(server, eventually, ShopperOptions(per_wall_s=80.0), until=many)
        events = reported(server, broker)
    assert {each.status for each in answered} == {500}
    assert all("request_id" not in event for event in events)
    assert sum(each.impressions for each in answered) == 0


def test_rubbish_for_an_answer_ends_nobody(eventually):
    with open_server(["garbage"], items=SHOWN) as server:
        _, answered, _ = come(server, eventually, ShopperOptions(per_wall_s=80.0), until=many)
    assert sum(each.impressions for each in answered) == 0


def test_what_an_answer_cost_comes_from_the_truth(eventually):
    with open_server(["ok"], items=SHOWN) as server:
        _, answered, _ = come(server, eventually, ALL_HTTP, until=many)
    assert all(0.0 < each.probability < 1.0 and each.random > 0.0 for each in answered)
    assert any(each.regret > 0.0 for each in answered)


def test_new_items_are_in_the_catalogue_when_their_time_has_come(eventually):
    drift = Drift(kind="new_items", at_ms=MIDNIGHT_MS + 60_000)  # a second of wall time
    with open_server(["ok"], items=SHOWN) as server:
        _, _, broker = come(server, eventually, ALL_HTTP, until=lambda _, broker: broker.records(ITEM), drifts=(drift,))
    items = [json.loads(value) for value in broker.records(ITEM)]
    assert {item["ts"] for item in items} == {drift.at_ms}
    assert min(item["item_id"] for item in items) > max(SHOWN)


def test_the_shop_opens_with_everybody_and_everything_known():
    world, broker = make_world(WorldOptions(users=20)), MemoryBroker(partitions=1)
    open_shop(world, broker.producer(), ts_ms=5)
    assert len(broker.records(PROFILE)) == 20
    old = sum(~world.goods.is_new())
    assert len(broker.records(ITEM)) == old
    assert {json.loads(value)["ts"] for value in broker.records(ITEM)} == {5}


@pytest.mark.parametrize(("parts", "traffic"), [(["kafka", "serve"], 1.0), (["pipeline", "serve"], -1.0)])
def test_traffic_without_what_it_needs_is_refused(parts, traffic):
    with pytest.raises(ConfigInvalid):
        check_parts(parts, traffic=traffic)
    check_parts(["pipeline", "serve"], traffic=1.0)
