"""The live client and the spot checks, against a small server that answers as the contract says."""

import json
import random
from collections import Counter

import polars as pl
import pytest

from rtrec_ray.clock import ManualClock, monotonic_s
from rtrec_ray.demo.replay.audience import ARM, CLICK_AFTER_MS, Audience, Shown, Visitor, clicks, impressions
from rtrec_ray.demo.replay.audience import audience as audience_of
from rtrec_ray.demo.replay.log import load_log
from rtrec_ray.demo.replay.spotcheck import Answer, Question, compare, questions, recount
from rtrec_ray.demo.replay.traffic import Traffic, TrafficOptions
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.judge import judge
from tests.shop import Shop, open_shop

SCHEMA = {"event_type": pl.String, "ts": pl.Int64, "user_id": pl.Int64, "item_id": pl.Int64, "category_id": pl.Int64}
NOW_MS = 1_600_000_000_000
VISITOR = Visitor(user_id=1, page_id=2, context={"user_feature_0": "a"})
AUDIENCE = Audience(visitors=[VISITOR], click_rate={7: 1.0, 8: 0.0}, category={7: 3})


@pytest.fixture
def shop(request):
    with open_shop(**request.param) as opened:
        yield opened


def visit(shop, eventually, *, calls):
    traffic = Traffic(
        TrafficOptions(requests_per_s=50.0, seed=3),
        url=shop.url,
        clock=ManualClock(now_ms=NOW_MS),
        audience=AUDIENCE,
        began_s=monotonic_s(),
    )
    traffic.start()
    eventually(lambda: len(traffic.calls()) >= calls, what="enough calls")
    traffic.stop()
    traffic.check()
    return traffic


@pytest.mark.parametrize("shop", [{"plan": ["ok"]}], indirect=True)
def test_what_is_shown_is_reported_and_what_is_clicked_follows(shop, eventually):
    traffic = visit(shop, eventually, calls=10)
    facts = traffic.facts()
    assert facts.failed == 0
    assert facts.impressions == 2 * facts.requests
    assert facts.clicks == facts.requests  # item 7 always, item 8 never
    assert facts.accepted == len(shop.events) == 3 * facts.requests
    assert Counter(event["event_id"] for event in shop.events).most_common(1)[0][1] == 1
    assert {body["arm"] for body in shop.asked} == {ARM}
    assert shop.asked[0] == {"user_id": 1, "page_id": 2, "k": 3, "context": {"user_feature_0": "a"}, "arm": ARM}


@pytest.mark.parametrize("shop", [{"plan": ["ok", "500", "garbage", "ok"]}], indirect=True)
def test_every_failure_is_a_failed_request_and_shows_nothing(shop, eventually):
    facts = visit(shop, eventually, calls=10).facts()
    assert facts.failed == 2
    assert facts.impressions == 2 * (facts.requests - 2)


@pytest.mark.parametrize("shop", [{"plan": ["ok"], "events_status": 503}], indirect=True)
def test_events_that_kafka_has_not_are_refused_not_accepted(shop, eventually):
    traffic = visit(shop, eventually, calls=5)
    facts = traffic.facts()
    assert (facts.accepted, traffic.events()) == (0, [])
    assert facts.unknown == 2 * facts.requests


def test_a_server_that_is_away_fails_requests_and_not_the_client(eventually):
    server = Shop(["ok"])
    server.server_close()
    facts = visit(server, eventually, calls=5).facts()
    assert facts.failed == facts.requests


def test_live_events_keep_the_contract_of_the_topic():
    shown = Shown(request_id="r", visitor=VISITOR, items=[7, 8], ts_ms=NOW_MS)
    shown_events = impressions(shown, AUDIENCE)
    clicked = clicks(shown, AUDIENCE, random.Random(0))
    assert [event["ts"] for event in clicked] == [NOW_MS + CLICK_AFTER_MS]
    assert [event["position"] for event in shown_events] == [1, 2]
    for event in (*shown_events, *clicked):
        assert judge(BEHAVIOR, json.dumps(event).encode(), latest_ms=NOW_MS + CLICK_AFTER_MS) is None


def test_the_same_seed_clicks_the_same():
    items = list(range(50))
    audience = Audience(visitors=[VISITOR], click_rate=dict.fromkeys(items, 0.3), category={})
    shown = Shown(request_id="r", visitor=VISITOR, items=items, ts_ms=NOW_MS)
    first, second = (clicks(shown, audience, random.Random(5)) for _ in range(2))
    assert first == second
    assert 0 < len(first) < 50


@pytest.fixture(scope="module")
def log():
    return load_log()


def test_the_audience_is_the_logs(log):
    audience = audience_of(log.records)
    assert len(audience.visitors) == log.facts.impressions
    assert len({visitor.user_id for visitor in audience.visitors}) == log.facts.users
    assert {len(visitor.context) for visitor in audience.visitors} == {4}
    shown = log.records[BEHAVIOR].filter(pl.col("event_type") == "impression")["item_id"].value_counts()
    expected = sum(audience.click_rate[item] * count for item, count in shown.iter_rows())
    assert expected == pytest.approx(log.facts.clicks)


def test_spot_checks_spread_over_the_log_and_ask_for_something(log):
    asked = questions(log.clicks, count=40)
    assert 40 <= len(asked) <= 60
    assert {question.view for question in asked} == {"user_browse_5m", "category_top_items_10m"}
    assert all(question.as_of_ms % 10_000 == 0 for question in asked)
    values = [recount(log.records[BEHAVIOR], question) for question in asked]
    assert all(value is not None for value in values)


def test_a_recount_takes_the_window_from_its_start_to_before_its_end():
    events = pl.DataFrame(
        {
            "event_type": ["click", "click", "click", "impression"],
            "ts": [300_000, 599_999, 600_000, 400_000],
            "user_id": [1, 1, 1, 1],
            "item_id": [5, 6, 7, 8],
            "category_id": [2, 2, 2, 2],
        }
    )
    assert recount(events, Question(view="user_browse_5m", key="1", as_of_ms=600_000))["click"] == 2
    assert recount(events, Question(view="user_browse_5m", key="2", as_of_ms=600_000)) is None
    of_category = recount(events, Question(view="category_top_items_10m", key="2", as_of_ms=900_000))
    assert of_category == {"top": [[5, 1], [6, 1], [7, 1]]}


def clicks_at(*times, user=1):
    count = len(times)
    columns = {"event_type": ["click"] * count, "ts": list(times), "user_id": [user] * count}
    return pl.DataFrame({**columns, "item_id": [7] * count, "category_id": [2] * count}, schema=SCHEMA)


def test_an_answer_is_compared_unless_there_was_none_or_live_clicks_touch_its_window():
    question = Question(view="category_top_items_10m", key="2", as_of_ms=900_000)
    log, none, value = clicks_at(400_000), clicks_at(), {"top": [[7, 1]]}
    right = compare(Answer(question=question, value=value), log=log, live=none)
    assert (right.found, right.skipped) == (right.expected, "")
    wrong = compare(Answer(question=question, value=None), log=log, live=clicks_at(900_000))
    assert (wrong.found, wrong.expected) == ("null", '{"top":[[7,1]]}')
    assert compare(Answer(question=question, refused=410), log=log, live=none).skipped == "status 410"
    assert compare(Answer(question=question, value=value), log=log, live=clicks_at(899_999)).skipped == "live clicks"
