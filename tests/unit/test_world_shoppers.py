"""What shoppers do, and a day of them in a closed loop with the operators of the system."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rtrec_ray.events import BEHAVIOR, INFERENCE, SCHEMAS
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.past import recompute
from rtrec_ray.features.request import item_asks, request_asks
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode, encode, encode_record
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.keys import actions_of, impressions_of, requests_of
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.simulate.world.engine import FeatureEngine
from rtrec_ray.simulate.world.options import TasteOptions, VisitOptions, WorldOptions
from rtrec_ray.simulate.world.play import PLACES, Play, Slate
from rtrec_ray.simulate.world.shopper import impressions, on_the_way, reactions, respond
from rtrec_ray.simulate.world.truth import regret
from rtrec_ray.simulate.world.visits import plan_visits
from rtrec_ray.simulate.world.world import make_world
from rtrec_ray.simulate.world.yesterday import (
    VERSION,
    DayOptions,
    Popular,
    first_items,
    inference_row,
    new_items,
    play_day,
    records,
)
from rtrec_ray.stores.samples.ledger import MemorySampleLedger, MemorySamples, settle

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
START_MS, MINUTE_MS, STEP_MS = 1_767_225_600_000, 60_000, 60_000
WAIT_MS = SampleDefinition().wait_ms
DAY_MS = 15 * MINUTE_MS
# Much is reported twice and late here, for that is where faults hide.
WORLD = WorldOptions(users=60, visits=VisitOptions(twice=0.3, late=0.3))


def plan(world, *, seed=0, minutes=20.0, per_s=0.5, users=None):
    to_ms = START_MS + round(minutes * MINUTE_MS)
    return plan_visits(world, np.random.default_rng(seed), from_ms=START_MS, to_ms=to_ms, per_s=per_s, users=users)


def random_slates(world, rng, count):
    return rng.permuted(np.tile(np.arange(48), (count, 1)), axis=1)[:, :PLACES]


def arm_of(user_id):
    return "features" if user_id % 2 else "static"


# --- who comes when ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd():
    return make_world(WorldOptions(users=200_000))


def test_visits_come_in_the_order_of_their_time_and_at_the_rate_asked_for(crowd):
    visits = plan(crowd, minutes=200.0)
    times = visits.asked.ts_ms
    assert (np.diff(times) >= 0).all()
    assert START_MS <= times[0] < times[-1] < START_MS + 200 * MINUTE_MS
    assert len(visits) == pytest.approx(0.5 * 200 * 60, rel=0.1)
    ends = [(START_MS + part * MINUTE_MS, START_MS + (part + 50) * MINUTE_MS) for part in (0, 150)]
    first, last = (len(visits.between(*span)) for span in ends)
    assert first == pytest.approx(last, rel=0.2)  # it does not begin with an empty shop


def test_a_plan_begins_with_its_first_millisecond_and_ends_with_its_last():
    hasty = make_world(WorldOptions(visits=VisitOptions(pause_ms=(0, 4))))
    visits = plan_visits(hasty, np.random.default_rng(1), from_ms=START_MS, to_ms=START_MS + 4, per_s=20_000.0)
    assert np.bincount(visits.asked.ts_ms - START_MS).tolist() == pytest.approx([20] * 4, abs=18)


def test_a_session_is_one_user_with_one_intent_who_pauses_between_pages(crowd):
    visits = plan(crowd, minutes=60.0, per_s=0.2)
    assert len(np.unique(visits.asked.user)) < len(visits)
    for user in np.unique(visits.asked.user):  # of so many users nobody comes twice within the hour
        own = visits.asked[visits.asked.user == user]
        assert len(np.unique(own.intent)) == 1
        pauses = np.diff(own.ts_ms)
        least, most = crowd.options.visits.pause_ms
        assert ((pauses >= least) & (pauses < most)).all()


def test_sessions_have_as_many_pages_as_asked_for_in_the_mean(crowd):
    visits = plan(crowd, minutes=400.0)
    pages = Counter(visits.asked.user.tolist())
    assert sum(pages.values()) / len(pages) == pytest.approx(crowd.options.visits.pages_per_session, rel=0.1)


def test_only_those_come_who_may(crowd):
    assert set(plan(crowd, users=np.array([3, 5])).asked.user.tolist()) == {3, 5}


def test_shares_of_searches_finds_views_and_pages_are_as_asked_for(crowd):
    visits = plan(crowd, minutes=200.0)
    rules = crowd.options.visits
    assert visits.searches.mean() == pytest.approx(rules.search, abs=0.03)
    assert visits.finds.mean() == pytest.approx(rules.finds, abs=0.03)
    assert np.bincount(visits.views).tolist() == pytest.approx([len(visits) / 4] * 4, rel=0.1)
    assert (visits.page_id == 200).mean() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(np.array(crowd.options.pages)[visits.asked.page], visits.page_id)


def test_a_visit_alone_says_what_all_say_together(crowd):
    visits = plan(crowd)
    one = list(visits)[7]
    assert (one.user_id, one.page_id, one.ts_ms) == (visits.asked.user[7] + 1, visits.page_id[7], visits.asked.ts_ms[7])
    assert (one.intent, one.views) == (visits.asked.intent[7], visits.views[7])
    assert (one.searches, one.finds) == (visits.searches[7], visits.finds[7])


def test_a_plan_too_short_for_anybody_to_come_is_empty(crowd):
    visits = plan(crowd, minutes=0.001)
    assert (len(visits), list(visits)) == (0, [])


# --- what they do -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown():
    """Random slates of a world with default shoppers, and what became of them: (world, asked, slates, response)."""
    world, rng = make_world(WorldOptions()), np.random.default_rng(4)
    asked = plan(world, minutes=600.0, per_s=1.0).asked
    slates = random_slates(world, rng, len(asked))
    return world, asked, slates, respond(world, asked, slates, rng)


def test_clicks_are_as_many_as_their_probabilities_and_fewer_on_lower_places(shown):
    world, asked, slates, response = shown
    assert np.array_equal(response.probability, world.truth.probability(asked, slates))
    expected, clicks = response.probability.sum(axis=0), response.clicked.sum(axis=0)
    assert (np.abs(clicks - expected) < 4.0 * np.sqrt(expected)).all()
    assert (np.diff(expected) < 0).all()
    assert clicks[0] > clicks[2] > clicks[4]


def test_the_share_of_late_clicks_is_as_asked_for_and_the_others_come_within_the_wait(shown):
    world, _, _, response = shown
    rules = world.options.visits
    late = response.delay_ms >= WAIT_MS
    assert late.mean() == pytest.approx(rules.late, rel=0.1)
    assert response.delay_ms[late].max() < rules.late_ms[1]
    assert np.median(response.delay_ms) == pytest.approx(rules.click_ms, rel=0.1)
    assert response.delay_ms.min() >= 500


def test_a_response_can_be_cut_by_slates(shown):
    response = shown[3]
    part = response[3:5]
    for field in dataclasses.fields(response):
        assert np.array_equal(getattr(part, field.name), getattr(response, field.name)[3:5])


def test_a_visitor_searches_looks_and_clicks_before_the_page_is_asked_for():
    world, rng = make_world(WORLD), np.random.default_rng(5)
    visits = list(plan(world))
    for number, visit in enumerate(visits):
        events = on_the_way(world, visit, name=str(number), found=3, random=rng)
        kinds = Counter(event["event_type"] for event in events)
        assert kinds == Counter({"view": visit.views, "search": int(visit.searches), "click": int(visit.finds)})
        times = [event["ts"] for event in events]
        assert times == sorted(set(times))
        assert all(visit.ts_ms - 10_000 <= ts < visit.ts_ms for ts in times)
        seen = [event for event in events if event["event_type"] == "view"]
        assert {event["category_id"] for event in seen} <= {visit.intent}
        assert len({event["item_id"] for event in seen}) == visit.views
        assert [event["item_id"] for event in events if event["event_type"] == "click"] == [2004] * visit.finds
        assert all((event["user_id"], event["page_id"]) == (visit.user_id, visit.page_id) for event in events)


def test_what_is_clicked_was_shown_and_what_is_favoured_or_looked_at_was_clicked(shown):
    world, _, slates, response = shown
    visits, marks = list(plan(world, minutes=600.0, per_s=1.0))[:500], {"request_id": "r", "arm": "a"}
    for row, visit in enumerate(visits):
        slate, own = slates[row].tolist(), response[row : row + 1]
        seen = {(event["item_id"], event["position"]): event for event in impressions(world, visit, slate, marks=marks)}
        assert [item for item, _ in seen] == world.goods.item_id[slate].tolist()
        done = reactions(world, visit, slate, own, marks=marks)
        clicked = {
            (event["item_id"], event["position"]): event["ts"] for event in done if event["event_type"] == "click"
        }
        assert {place for _, place in clicked} == set((np.flatnonzero(own.clicked[0]) + 1).tolist())
        assert clicked.keys() <= seen.keys()
        for event in done:
            assert event["ts"] >= clicked[event["item_id"], event["position"]] > visit.ts_ms
            assert (event["request_id"], event["arm"]) == ("r", "a")


# --- a day ------------------------------------------------------------------------------------------------------------


def day_options(**changed):
    options = DayOptions(
        from_ms=START_MS,
        to_ms=START_MS + DAY_MS,
        per_s=0.5,
        step_ms=STEP_MS,
        arms={"static": False, "features": True},
        arm_of=arm_of,
    )
    return dataclasses.replace(options, **changed)


def play(options=WORLD, *, seed=6, **changed):
    world = make_world(options)
    engine, steps = play_day(world, DEFINITIONS, day_options(**changed), np.random.default_rng(seed))
    return world, engine, list(steps)


@pytest.fixture(scope="module")
def day():
    """(world, engine, steps) of a day of fifteen minutes."""
    return play()


def events_of(steps):
    return [event for step in steps for event in step.events]


def test_the_same_seed_plays_the_same_day_and_another_a_different_one():
    one, same, other = (play(seed=seed, to_ms=START_MS + 8 * MINUTE_MS)[2] for seed in (6, 6, 7))
    assert events_of(one) == events_of(same)
    assert [step.records for step in one] == [step.records for step in same]
    assert events_of(one) != events_of(other)


def test_every_event_and_answer_of_a_day_passes_the_codec_unchanged(day):
    world, _, steps = day
    by_topic = records(world, iter(steps), known_ms=START_MS)
    assert by_topic.keys() == SCHEMAS.keys()
    for topic, frame in by_topic.items():
        decoded = decode(record_batch(topic, 0, encode(topic, frame)[1]), latest_ms=lambda _: START_MS + DAY_MS)
        assert decoded.dead == []
        assert decoded.frame.drop("offset").equals(frame)
        assert frame.height > 0
    sent = [json.dumps(event).encode() for event in events_of(steps)]
    decoded = decode(record_batch(BEHAVIOR, 0, sent), latest_ms=lambda _: START_MS + DAY_MS)
    assert decoded.dead == []
    assert decoded.frame.drop("offset").equals(by_topic[BEHAVIOR])


def test_ids_are_unique_but_for_clicks_that_are_reported_twice_as_they_were(day):
    by_id = {}
    for event in events_of(day[2]):
        by_id.setdefault(event["event_id"], []).append(event)
    twice = [events for events in by_id.values() if len(events) > 1]
    assert twice
    for first, *others in twice:
        assert others == [first]
        assert first["event_type"] == "click"
        assert "request_id" in first
    ids = [record.request_id for step in day[2] for record in step.records]
    assert len(ids) == len(set(ids))


def test_a_row_of_the_inference_log_is_the_record(day):
    answers = [record for step in day[2] for record in step.records][:20]
    sent = [encode_record(INFERENCE, record)[1] for record in answers]
    decoded = decode(record_batch(INFERENCE, 0, sent), latest_ms=lambda _: START_MS + DAY_MS)
    rows = pl.DataFrame([inference_row(record) for record in answers], schema=SCHEMAS[INFERENCE])
    assert decoded.frame.drop("offset").equals(rows)


def test_the_day_plays_every_visit_that_was_planned(day):
    world, _, steps = day
    span = {"from_ms": START_MS, "to_ms": START_MS + DAY_MS - 5 * MINUTE_MS, "per_s": 0.5}
    planned = plan_visits(world, np.random.default_rng(6), **span).asked
    assert np.array_equal(np.concatenate([step.asked.ts_ms for step in steps]), planned.ts_ms)
    assert np.array_equal(np.concatenate([step.asked.user for step in steps]), planned.user)


def test_events_take_effect_in_the_step_of_their_time_in_order(day):
    for number, step in enumerate(day[2]):
        times = [event["ts"] for event in step.events]
        assert times == sorted(times)
        begun_ms = START_MS + number * STEP_MS
        assert all(begun_ms - 10_000 <= ts < begun_ms + STEP_MS for ts in times)  # what was on the way may be before


def test_everything_shown_is_seen_and_every_visit_is_answered(day):
    _, _, steps = day
    seen = {
        (event["request_id"], event["item_id"], event["position"])
        for event in events_of(steps)
        if event["event_type"] == "impression"
    }
    answered = {
        (record.request_id, item.item_id, item.position)
        for step in steps
        for record in step.records
        for item in record.items
    }
    assert seen == answered
    assert len(answered) == PLACES * sum(len(step.asked) for step in steps)
    for step in steps:
        assert [(record.user_id - 1, record.ts) for record in step.records] == list(
            zip(step.asked.user.tolist(), step.asked.ts_ms.tolist(), strict=True)
        )


def test_probability_and_regret_of_a_step_are_those_of_what_was_shown(day):
    world, _, steps = day
    for step in steps:
        ids = [[item.item_id for item in record.items] for record in step.records]
        shown = world.goods.index_of(np.array(ids, dtype=np.int64).reshape(-1, PLACES))
        assert np.array_equal(step.probability, world.truth.probability(step.asked, shown).mean(axis=1))
        assert np.array_equal(step.regret, regret(world.truth, step.asked, shown))


def test_users_of_an_arm_without_realtime_features_have_none(day):
    kinds = Counter()
    for record in (record for step in day[2] for record in step.records):
        own = {name: value for name, value in record.features.items() if name.startswith("user_")}
        trend = {
            name: value
            for item in record.items
            for name, value in item.features.items()
            if name.endswith(("_10m", "_30m", "_viewed"))
        }
        kinds[record.arm, record.features["realtime"], any(own.values()) or any(trend.values())] += 1
        assert record.arm == arm_of(record.user_id)
        assert record.features["country"] in ("CN", "IN")  # the profile is no real-time feature
    assert kinds["static", "off", False] > 50
    assert kinds["features", "on", True] > 50
    assert set(kinds) <= {("static", "off", False), ("features", "on", True), ("features", "on", False)}


def test_users_and_segments_features_are_those_recomputed_from_all_events_at_once(day):
    (world, engine, _), now_ms = day, START_MS + DAY_MS - 4 * MINUTE_MS
    read = {}
    for user_id in world.people.ids().tolist():
        asks = request_asks(user_id=user_id, profile=engine.profile(user_id), page_id=100)
        values = engine.read(user_id, page_id=100, now_ms=now_ms)
        assert list(values) == asks
        read |= values
    assert {ask.view for ask in read} == {"user_browse_5m", "user_browse_1m", "segment_page_top_ads"}
    assert sum(value is not None for value in read.values()) > 60
    assert read == recomputed(day, list(read), now_ms=now_ms)


def test_lists_that_all_requests_share_are_those_recomputed_from_all_events_at_once(day):
    engine = day[1]
    lists = {**engine.by_category(), **engine.by_type()}
    values = recomputed(day, item_asks(engine.catalogue().values()), now_ms=START_MS + DAY_MS)
    assert lists == {ask.key: dict(value["top"]) for ask, value in values.items() if value is not None}
    assert len(lists) == 8 + 2


def recomputed(day, asks, *, now_ms):
    """The values that hold at a time, the history's way."""
    world, _, steps = day
    events = pl.DataFrame(events_of(steps), schema=SCHEMAS[BEHAVIOR]).with_row_index("offset")
    events, found = events.with_columns(partition=pl.lit(0), kafka_ts=pl.lit(0)), {}
    for view in {ask.view for ask in asks}:
        keys = [ask.key for ask in asks if ask.view == view]
        span = DEFINITIONS.window(DEFINITIONS.view(view)).now(now_ms)
        profiles = world.people.records(ts_ms=START_MS)
        values = recompute(DEFINITIONS, view, keys, [(events, profiles)], span=span)
        found |= {ViewKey(view=view, key=key): value for key, value in values.items()}
    return found


def test_every_impression_of_a_day_becomes_a_sample_with_its_click(day):
    samples, definition = MemorySamples(), SampleDefinition()
    stitcher, ledger = Stitcher(definition), MemorySampleLedger(samples, partition=0)
    offset = 0
    for step in day[2]:
        answers = pl.DataFrame([inference_row(record) for record in step.records], schema=SCHEMAS[INFERENCE])
        events = pl.DataFrame(step.events, schema=SCHEMAS[BEHAVIOR]).with_row_index("offset", offset=offset)
        events = events.cast({"offset": pl.Int64})
        events = events.filter(pl.col("request_id").is_not_null())
        offset += len(step.events)
        stitcher.on_requests(requests_of(answers))
        stitcher.on_impressions(impressions_of(events.filter(pl.col("event_type") == "impression")))
        stitcher.on_actions(actions_of(events))
        stitcher.read_to(offset)
        commit(stitcher, ledger)
    stitcher.advance(watermark_ms=START_MS + DAY_MS + WAIT_MS)
    commit(stitcher, ledger)
    labels = pl.concat(samples.store.current())
    events = pl.DataFrame(events_of(day[2]), schema=SCHEMAS[BEHAVIOR]).filter(pl.col("request_id").is_not_null())
    assert samples.misses.is_empty()
    assert labels.height == events.filter(pl.col("event_type") == "impression").height
    clicked = events.filter(pl.col("event_type") == "click").select("request_id", "item_id").unique()
    positive = labels.filter(pl.col("label") == 1).select("request_id", "item_id")
    assert positive.sort(pl.all()).equals(clicked.sort(pl.all()))
    assert positive.height > 50


def commit(stitcher, ledger):
    settle(ledger, None, stitcher, read_to=0)


# --- when an event takes effect ---------------------------------------------------------------------------------------


class First:
    """Shows the same first items to everybody, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, requests):
        self.asked += requests
        shown = list(range(PLACES))
        return [Slate(shown=shown, scores=[0.0] * PLACES, propensities=None, model_version="1") for _ in requests]


def played(world, recommend, *, name="t"):
    """A play of the world with real-time features for all, and nothing done yet."""
    engine = FeatureEngine(DEFINITIONS, disorder_ms=STEP_MS, profiles=world.people.records(ts_ms=START_MS))
    engine.add_items(first_items(world, ts_ms=START_MS))
    rng = np.random.default_rng(8)
    return Play(
        world=world,
        engine=engine,
        recommend=recommend,
        arm_of=lambda _: "all",
        realtime=lambda _: True,
        random=rng,
        name=name,
    )


def test_an_event_takes_effect_after_its_step_and_not_within():
    world, shop = make_world(dataclasses.replace(WORLD, users=1)), First()
    game, visits = played(world, shop), plan(world, minutes=2.0, per_s=0.2)
    first, second = (visits.between(START_MS + step, START_MS + step + STEP_MS) for step in (0, STEP_MS))
    assert len(first) > 5
    game.step(first, to_ms=START_MS + STEP_MS)
    assert all(not request.shared["user_last_items"] and not request.shared["user_5m_click"] for request in shop.asked)
    assert all(not row["item_segment_clicks_10m"] for request in shop.asked for row in request.rows)
    game.step(second, to_ms=START_MS + 2 * STEP_MS)
    later = shop.asked[len(first) :]
    assert all(request.shared["user_last_items"] and request.shared["user_5m_click"] for request in later)
    assert any(row["item_segment_clicks_10m"] for request in later for row in request.rows)


def test_each_visitor_clicks_what_is_likely_for_himself():
    """A favourite is clicked for sure here, and nothing else ever."""
    sure = TasteOptions(start=-30.0, quality=0.0, age_and_category=0.0, favorites=(60.0,) * 4, intent=0.0)
    world = make_world(dataclasses.replace(WORLD, tastes=sure))
    game, visits = played(world, First()), plan(world, minutes=10.0)
    step = game.step(visits, to_ms=START_MS + DAY_MS)
    done = [event for event in step.events if event["event_type"] == "click" and "request_id" in event]
    likely = world.truth.probability(visits.asked, step.shown) > 0.5
    expected = {(step.records[row].request_id, place + 1) for row, place in np.argwhere(likely).tolist()}
    assert {(event["request_id"], event["position"]) for event in done} == expected
    assert 50 < len(expected) < likely.size / 2


def test_a_step_in_which_nobody_comes_is_a_step():
    world = make_world(WORLD)
    visits = plan(world, minutes=2.0)
    empty = visits.between(0, 1)
    game = played(world, First())
    assert game.step(empty, to_ms=START_MS).events == []
    busy = game.step(visits, to_ms=START_MS + STEP_MS)
    later = game.step(empty, to_ms=START_MS + DAY_MS)
    assert (len(later.asked), later.records, later.shown.shape) == (0, [], (0, PLACES))
    assert {event["ts"] >= START_MS + STEP_MS for event in later.events} == {True}
    assert sum(event["event_type"] == "impression" for event in busy.events + later.events) == PLACES * len(visits)


def test_an_item_can_be_shown_from_the_step_after_it_is_added():
    world, shop = make_world(WORLD), First()
    game, visits = played(world, shop), plan(world, minutes=1.0)
    game.step(visits, to_ms=START_MS + STEP_MS)
    assert {len(request.items) for request in shop.asked} == {48}
    game.engine.add_items(new_items(world, ts_ms=START_MS))
    game.step(visits, to_ms=START_MS + 2 * STEP_MS)
    assert {len(request.items) for request in shop.asked[len(visits) :]} == {52}
    assert all(len(request.rows) == len(request.items) for request in shop.asked)


# --- yesterday's recommender ------------------------------------------------------------------------------------------


def test_without_chance_yesterday_shows_what_the_segment_clicked_most():
    world = make_world(dataclasses.replace(WORLD, users=8))
    game, visits = played(world, First()), plan(world, minutes=4.0, per_s=1.0)
    popular, answered = Popular(game.engine, np.random.default_rng(1), chance=1e-9), []

    def recommend(requests):
        slates = popular(requests)
        answered.extend(zip(requests, slates, strict=True))
        return slates

    game.recommend = recommend
    for end in range(START_MS + STEP_MS, START_MS + 5 * STEP_MS, STEP_MS):
        game.step(visits.between(end - STEP_MS, end), to_ms=end)
    for request, slate in answered:
        counts = [row["item_segment_clicks_10m"] for row in request.rows]
        assert [counts[index] for index in slate.shown] == sorted(counts, reverse=True)[:PLACES]
        assert slate.model_version == VERSION
    assert max(max(row["item_segment_clicks_10m"] for row in request.rows) for request, _ in answered) > 5


def test_with_chance_yesterday_showed_everything_now_and_then_and_nothing_twice_on_a_page(day):
    world, _, steps = day
    slates = [[item.item_id for item in record.items] for step in steps for record in step.records]
    assert all(len(set(slate)) == PLACES for slate in slates)
    assert {item for slate in slates for item in slate} == set(first_items(world, ts_ms=0)["item_id"])


def test_yesterday_was_better_than_chance(day):
    world, _, steps = day
    shown = np.concatenate([step.probability for step in steps])
    by_chance = np.concatenate([world.truth.random(step.asked, places=PLACES) for step in steps if len(step.asked)])
    assert shown.mean() > 1.3 * by_chance.mean()


def test_the_last_clicks_of_a_day_are_in_it(day):
    world, _, steps = day
    last_ms = max(event["ts"] for event in events_of(steps) if event["event_type"] == "impression")
    assert last_ms + world.options.visits.late_ms[1] < START_MS + DAY_MS
