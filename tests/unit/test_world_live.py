"""Live shoppers against a small server: what was seen is reported, once, and by nobody who saw nothing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest

from rtrec_ray.app.up import check_parts
from rtrec_ray.clock import ScaledClock, wall_ms
from rtrec_ray.demo.background import Background
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.events import BEHAVIOR, ITEM, PROFILE
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.simulate.world.experiment import MIDNIGHT_MS
from rtrec_ray.simulate.world.live import ShopperOptions, Shoppers, open_shop
from rtrec_ray.simulate.world.options import Drift, WorldOptions
from rtrec_ray.simulate.world.world import make_world
from rtrec_ray.simulate.world.worth import Slate, worth
from tests.shop import open_shop as open_server

SHOWN = (2001, 2002, 2003, 2004, 2005)
ALL_HTTP = ShopperOptions(per_wall_s=80.0, over_http=1.0)


def come(server, eventually, options, *, until, drifts=()):
    """Let shoppers come until something holds; answers them, what they were answered and the broker."""
    clock = ScaledClock(origin_event_ms=MIDNIGHT_MS, origin_wall_ms=wall_ms(), speed=60.0)
    world, broker, answered = make_world(WorldOptions(users=50, drifts=drifts)), MemoryBroker(partitions=1), []
    shoppers = Shoppers(world, options, url=server.url, connect=broker.producer, clock=clock, tell=answered.append)
    stop = threading.Event()
    visits = Background(partial(shoppers.run, stop), name="shoppers")
    visits.start()
    try:
        eventually(partial(until, answered, broker), what="enough of them came")
    finally:
        stop.set()
        visits.join()
    visits.check()
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
    assert all(each.slate is None for each in answered)


def test_items_of_another_catalogue_are_overlooked(eventually):
    with open_server(["ok"], items=(*SHOWN[:2], 999_999)) as server:
        _, answered, broker = come(server, eventually, ShopperOptions(per_wall_s=80.0), until=many)
        events = reported(server, broker)
    assert {each.slate.items for each in answered} == {SHOWN[:2]}
    assert 999_999 not in {event.get("item_id") for event in events}


def test_rubbish_for_an_answer_ends_nobody(eventually):
    with open_server(["garbage"], items=SHOWN) as server:
        _, answered, _ = come(server, eventually, ShopperOptions(per_wall_s=80.0), until=many)
    assert all(each.slate is None for each in answered)


def test_what_an_answer_cost_comes_from_the_truth(eventually):
    with open_server(["ok"], items=SHOWN) as server:
        _, answered, _ = come(server, eventually, ALL_HTTP, until=many)
    world = make_world(WorldOptions(users=50))
    slates = [each.slate for each in answered]
    found = worth(world, slates)
    assert all(slate.items == SHOWN for slate in slates)
    assert all(0.0 < each.probability < 1.0 and each.random > 0.0 for each in found)
    assert any(each.regret > 0.0 for each in found)
    one_by_one = [worth(world, [slate])[0] for slate in slates]
    np.testing.assert_allclose(found, one_by_one)


def test_slates_of_all_lengths_are_judged_together():
    world = make_world(WorldOptions(users=50))
    slates = [None, slate_of(2001, 2002, 2003), slate_of(), slate_of(2004), slate_of(2003, 2002, 2001)]
    found = worth(world, slates)
    assert [each is None for each in found] == [True, False, True, False, False]
    assert found[1] == worth(world, [slates[1]])[0]
    assert found[1].probability + found[1].regret == pytest.approx(found[4].probability + found[4].regret)


def slate_of(*items):
    return Slate(user_id=7, page_id=100, intent=1, ts_ms=MIDNIGHT_MS, items=items)


def test_a_server_that_hangs_is_not_asked_by_more_and_more(eventually):
    """Who comes while too many wait leaves unanswered, and is counted; nobody's waiting slows the others' reports."""
    options = ShopperOptions(per_wall_s=400.0, over_http=0.0, timeout_s=3.0)
    with open_server(["hang"], items=SHOWN) as server:
        shoppers, answered, broker = come(
            server, eventually, options, until=lambda answered, _: sum(map(left_at_once, answered)) > 50
        )
    assert {each.status for each in answered} == {0}
    assert most_at_once([each for each in answered if not left_at_once(each)]) <= 500
    assert len(reported(server, broker)) == sum(shoppers.sent.values()) > 1_000


def left_at_once(answered):
    """Who asks a server that hangs waits for 3 s; half of that tells them apart on any machine."""
    return answered.latency_ms < 1_500.0


def most_at_once(waits):
    """How many of them waited at the same moment. Who leaves at the very moment another comes made room for them."""
    leaves = [(each.at_s + each.latency_ms / 1_000.0, -1) for each in waits]
    changes = sorted([*leaves, *((each.at_s, 1) for each in waits)])
    return max(np.cumsum([change for _, change in changes]))


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
