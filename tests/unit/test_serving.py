"""The other routes: events in, features out, health, metrics, tokens; and the pieces below them."""

import asyncio
import json
import random
import threading
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest

from rtrec_ray.clock import ManualClock, monotonic_s
from rtrec_ray.errors import ConfigInvalid, HistoryBehind
from rtrec_ray.events import BehaviorEvent, CatalogItem, InferenceRecord
from rtrec_ray.features.file import load_definitions
from rtrec_ray.metadata import Dataset
from rtrec_ray.notification import NewEvent
from serving.auth import check_bind
from serving.calls import BoundedCalls, CallTimedOut
from serving.explore import arrange, propensity
from serving.feedback import InferenceLog
from serving.memory import MemoryServers
from serving.metrics import ServingMetrics
from serving.options import ServingOptions
from serving.replica import Replica

NOW_MS = 1_700_000_000_000
DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")


@pytest.fixture
def servers():
    servers = MemoryServers(DEFINITIONS, clock=ManualClock(now_ms=NOW_MS))
    yield servers
    servers.store.answers.set()


@pytest.fixture
def replica(servers):
    options = ServingOptions(
        events_limit_bytes=20_000, request_limit_bytes=20_000, read_deadline_s=0.2, events_deadline_s=0.5
    )
    replica = Replica(servers.backends(), options=options, clock=ManualClock(now_ms=NOW_MS))
    yield replica
    servers.store.answers.set()
    replica.close()


def call(replica, method, path, **body):
    async def send():
        transport = httpx.ASGITransport(app=replica.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://rtrec") as client:
            return await client.request(method, path, **body)

    return asyncio.run(send())


def good(number=1, **fields):
    base = {"event_id": f"e{number}", "event_type": "view", "ts": NOW_MS, "user_id": number}
    return {**base, **fields}


# --- POST /v1/events


def test_posted_events_are_on_the_log_as_they_were_sent(servers, replica):
    body = b'[{"event_id": "a", "event_type": "click", "ts": 1700000000000, "user_id": 7, "colour": "red"}]'
    answer = call(replica, "POST", "/v1/events", content=body)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "errors": []})
    assert servers.broker.records("behavior") == [body[1:-1]]
    assert servers.broker.keys("behavior") == [b"7"]


def test_one_event_need_not_be_in_an_array(servers, replica):
    answer = call(replica, "POST", "/v1/events", json=good())
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)


def test_each_bad_event_is_named_and_the_good_ones_are_taken(servers, replica):
    bad = [
        (good(event_type="dance"), "event_type", "unknown_value"),
        (good(ts="now"), "ts", "wrong_type"),
        ({"event_id": "a", "event_type": "view", "ts": NOW_MS}, "user_id", "missing_field"),
        (good(ts=0), "ts", "before_2000"),
        (good(ts=4_070_908_800_000), "ts", "ahead_of_clock"),
        (good(position=1.5), "position", "wrong_type"),
        (good(dwell_ms=-1), "dwell_ms", "out_of_range"),
        (good(query="a\0b"), "query", "nul_character"),
        (17, "event", "not_an_object"),
    ]
    body = [good(1), *(event for event, _, _ in bad), good(2, ts=NOW_MS + 60_000)]
    answer = call(replica, "POST", "/v1/events", json=body)
    assert (answer.status_code, answer.json()["accepted"]) == (422, 2)
    assert [(error["index"], error["field"], error["reason"]) for error in answer.json()["errors"]] == [
        (index, field, reason) for index, (_, field, reason) in enumerate(bad, start=1)
    ]
    assert sorted(servers.broker.keys("behavior")) == [b"1", b"2"]


@pytest.mark.parametrize("body", [b"", b"{", b"[", b'[{"a": NaN}]', b"[" * 10_000, b'"\xff"', b"[1,]", b"\x00"])
def test_a_body_that_is_no_json_is_refused(servers, replica, body):
    answer = call(replica, "POST", "/v1/events", content=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]
    assert servers.broker.records("behavior") == []


def test_no_events_are_accepted_as_none(replica):
    answer = call(replica, "POST", "/v1/events", content=b"[]")
    assert (answer.status_code, answer.json()["accepted"]) == (202, 0)


@pytest.mark.parametrize("path", ["/v1/events", "/v1/recommend"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_over_the_limit_is_refused_however_it_comes(servers, replica, path, streamed):
    async def pieces():
        for _ in range(30):
            yield b" " * 1_000

    answer = call(replica, "POST", path, content=pieces() if streamed else b" " * 30_000)
    assert answer.status_code == 413
    assert servers.broker.records("behavior") == []


def test_an_endless_body_is_not_read_to_its_end(replica):
    given = [0]

    async def endless():
        while True:
            given[0] += 1
            yield b" " * 10_000

    async def send():
        scope = {"type": "http", "method": "POST", "path": "/v1/events", "headers": [], "query_string": b""}
        messages = endless()

        async def receive():
            return {"type": "http.request", "body": await anext(messages), "more_body": True}

        sent = []

        async def keep(message):
            sent.append(message)

        await replica.app(scope, receive, keep)
        return sent[0]["status"]

    assert asyncio.run(send()) == 413
    assert given[0] < 20


def test_without_kafka_events_are_for_later(servers, replica):
    servers.broker.stop()
    answer = call(replica, "POST", "/v1/events", json=[good()])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    servers.broker.start()
    assert call(replica, "POST", "/v1/events", json=[good()]).status_code == 202


# --- GET /v1/features


def test_features_answer_as_the_command_does(servers, replica):
    servers.put_events([BehaviorEvent(event_id="a", event_type="view", ts=NOW_MS - 20_000, user_id=1, item_id=5)])
    answer = call(replica, "GET", "/v1/features/user_browse_5m?key=1&key=2").json()
    assert (answer["view"], answer["version"], answer["as_of_ms"]) == ("user_browse_5m", 1, NOW_MS)
    assert (answer["values"]["1"]["view"], answer["values"]["2"]) == (1, None)
    before = call(replica, "GET", f"/v1/features/user_browse_5m?key=1&as_of_ms={NOW_MS - 60_000}").json()
    assert before["values"] == {"1": None}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("user_browse_5m", 422),
        ("user_browse_5m?key=1&as_of_ms=soon", 422),
        ("user_browse_5m?key=1&as_of_ms=-1", 422),
        ("user_browse_5m?key=1&as_of_ms=99999999999999999999", 422),
        ("user_browse_5m?key=1&as_of_ms=253402300800000", 422),
        ("user_browse_5m?key=%00", 422),
        ("user_browse_5m?" + "&".join(f"key={i}" for i in range(201)), 422),
        ("no_such_view?key=1", 404),
    ],
)
def test_a_wrong_question_about_features_is_refused(replica, query, status):
    answer = call(replica, "GET", f"/v1/features/{query}")
    assert answer.status_code == status
    assert status != 404 or "user_browse_5m" in answer.json()["detail"]


def test_features_of_a_store_that_is_away_or_hangs_are_for_later(servers, replica):
    servers.store.up = False
    assert call(replica, "GET", "/v1/features/user_browse_5m?key=1").status_code == 503
    servers.store.up = True
    servers.store.answers.clear()
    assert call(replica, "GET", "/v1/features/user_browse_5m?key=1").status_code == 503


def test_a_sum_beyond_64_bits_is_answered_whole_and_logged_as_the_limit_it_passes(servers, replica):
    longest = 2**63 - 1
    views = [
        BehaviorEvent(event_id=f"v{i}", event_type="view", ts=NOW_MS, user_id=1, item_id=5, dwell_ms=longest)
        for i in range(3)
    ]
    servers.put_events(views)
    answer = call(replica, "GET", "/v1/features/user_browse_5m?key=1")
    assert (answer.status_code, answer.json()["values"]["1"]["dwell_ms"]) == (200, 3 * longest)
    answer = call(replica, "POST", "/v1/recommend", json={"user_id": 1, "page_id": 1})
    assert answer.status_code == 200
    replica.close()
    (record,) = map(json.loads, servers.broker.records("inference-log"))
    assert record["features"]["user_5m_dwell_ms"] == longest


def test_features_of_a_time_that_the_history_has_not_reached_are_for_later(servers, replica, monkeypatch):
    def behind(*asks, **how):
        raise HistoryBehind("it is behind", mend="ask again")

    monkeypatch.setattr(servers.store, "get", behind)
    answer = call(replica, "GET", f"/v1/features/user_browse_5m?key=1&as_of_ms={NOW_MS}")
    assert (answer.status_code, answer.json()["mend"]) == (503, "ask again")
    assert answer.headers["retry-after"]


# --- health, metrics, documentation, token


def test_readiness_names_what_is_missing(servers, replica):
    assert call(replica, "GET", "/healthz").status_code == 200
    answer = call(replica, "GET", "/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["lists_not_read", "no_model"])
    servers.put_items([CatalogItem(item_id=1, ts=0)])
    replica.lists.refresh(catalogue_s=0.0)
    assert call(replica, "GET", "/readyz").json()["missing"] == ["no_model"]


def test_a_replica_that_cannot_log_is_not_ready(servers, eventually):
    replica = Replica(servers.backends(), options=ServingOptions(log_queue=20), clock=ManualClock(now_ms=NOW_MS))
    servers.broker.stop()
    for _ in range(5):
        assert call(replica, "POST", "/v1/recommend", json={"user_id": 1}).status_code == 200
    assert "inference_log_waits" in call(replica, "GET", "/readyz").json()["missing"]
    servers.broker.start()
    eventually(lambda: "inference_log_waits" not in call(replica, "GET", "/readyz").json()["missing"])
    replica.close()


def test_metrics_are_prometheus_text(replica):
    call(replica, "POST", "/v1/recommend", json={"user_id": 1})
    answer = call(replica, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for name in ("rtrec_requests_total", "rtrec_request_seconds_bucket", "rtrec_inference_log_waiting"):
        assert name in answer.text


def test_the_documentation_names_every_route(replica):
    paths = call(replica, "GET", "/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/recommend", "/v1/events", "/v1/features/{view}", "/healthz", "/readyz", "/metrics"}
    assert call(replica, "GET", "/docs").status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/recommend", 405), ("GET", "/nothing", 404)])
def test_what_is_not_there_is_said_so(replica, method, path, status):
    assert call(replica, method, path).status_code == status


def test_a_token_opens_what_is_not_a_probe(servers):
    replica = Replica(servers.backends(), options=ServingOptions(), clock=ManualClock(now_ms=NOW_MS), token="s3cret")
    paths = ["/v1/features/user_browse_5m?key=1", "/metrics", "/docs", "/openapi.json"]
    assert {call(replica, "GET", path).status_code for path in paths} == {401}
    wrong = [{"Authorization": value} for value in ("Bearer s3cre", "s3cret", "Bearer s3cret ", "Basic s3cret")]
    assert {call(replica, "GET", "/metrics", headers=header).status_code for header in wrong} == {401}
    right = {"Authorization": "Bearer s3cret"}
    assert {call(replica, "GET", path, headers=right).status_code for path in paths} == {200}
    assert call(replica, "GET", "/healthz").status_code == 200
    replica.close()


@pytest.mark.parametrize("token", [None, ""])
def test_no_port_is_opened_to_others_without_a_token(token):
    check_bind("127.0.0.1", token)
    check_bind("0.0.0.0", "s3cret")
    with pytest.raises(ConfigInvalid, match="needs a token"):
        check_bind("10.0.0.7", token)


# --- exploration


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_propensities_of_each_position_sum_to_one(share):
    order = [3, 1, 4, 0, 2]
    for position in range(5):
        assert sum(propensity(i, position, order=order, share=share) for i in order) == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_items_are_shown_as_often_as_their_propensity_says(share):
    order, count, draws = [3, 1, 4, 0, 2], 3, 20_000
    rng = random.Random(5)
    seen = Counter()
    for _ in range(draws):
        slate = arrange(order, count=count, share=share, rng=rng)
        assert len({shown.index for shown in slate}) == count
        for position, shown in enumerate(slate):
            assert shown.propensity == propensity(shown.index, position, order=order, share=share)
            seen[shown.index, position] += 1
    for index in order:
        for position in range(count):
            expected = propensity(index, position, order=order, share=share)
            # Five standard deviations of a binomial share.
            assert abs(seen[index, position] / draws - expected) <= 5 * (expected * (1 - expected) / draws) ** 0.5


# --- calls


def test_a_call_beyond_its_deadline_fails_and_its_thread_comes_back(eventually):
    calls, release = BoundedCalls(name="test", threads=1, deadline_s=0.05), threading.Event()

    async def hang():
        with pytest.raises(CallTimedOut, match="no answer"):
            await calls.run(release.wait)
        began = monotonic_s()
        with pytest.raises(CallTimedOut, match="overdue"):
            await calls.run(lambda: 1)
        assert monotonic_s() - began < 0.05

    asyncio.run(hang())
    release.set()
    eventually(lambda: calls.stuck() == 0)
    assert asyncio.run(calls.run(lambda: 2)) == 2
    calls.close()


def test_a_call_that_waited_too_long_is_never_started(eventually):
    calls, release, ran = BoundedCalls(name="test", threads=1, deadline_s=0.1), threading.Event(), []

    async def two():
        first, second = (asyncio.ensure_future(calls.run(work)) for work in (release.wait, lambda: ran.append(1)))
        return await asyncio.gather(first, second, return_exceptions=True)

    assert [type(result) for result in asyncio.run(two())] == [CallTimedOut, CallTimedOut]
    release.set()
    eventually(lambda: calls.stuck() == 0)
    assert asyncio.run(calls.run(lambda: ran)) == []
    calls.close()


def test_what_a_call_raises_comes_out():
    calls = BoundedCalls(name="test", threads=1, deadline_s=1.0)

    async def fail():
        with pytest.raises(ZeroDivisionError):
            await calls.run(lambda: 1 / 0)

    asyncio.run(fail())
    calls.close()


# --- the inference log


def record(number):
    return InferenceRecord(request_id=f"r{number}", user_id=number, ts=1, model_version="none", features={})


def test_records_wait_for_kafka_in_order_and_those_beyond_the_bound_are_counted(servers, eventually):
    metrics = ServingMetrics()
    servers.broker.stop()
    log = InferenceLog(connect=servers.broker.producer, capacity=3, metrics=metrics)
    assert [log.offer(record(1)) for _ in range(5)] == [True, True, True, False, False]
    assert metrics.logged.labels("dropped")._value.get() == 2
    servers.broker.start()
    eventually(lambda: log.waiting() == 0)
    assert len(servers.broker.records("inference-log")) == 3
    log.close()


def test_a_closing_log_sends_what_it_has(servers):
    log = InferenceLog(connect=servers.broker.producer, capacity=500, metrics=ServingMetrics())
    for number in range(300):
        log.offer(record(number))
    log.close()
    sent = {json.loads(value)["request_id"] for value in servers.broker.records("inference-log")}
    assert sent == {f"r{number}" for number in range(300)}


def test_a_record_too_large_does_not_hold_up_the_next(servers, eventually):
    metrics = ServingMetrics()
    log = InferenceLog(connect=servers.broker.producer, capacity=10, metrics=metrics)
    log.offer(InferenceRecord(request_id="big", user_id=1, ts=1, model_version="1", features={"x": "y" * 2_000_000}))
    log.offer(record(2))
    eventually(lambda: len(servers.broker.records("inference-log")) == 1)
    assert metrics.logged.labels("too_large")._value.get() == 1
    log.close()


def test_options_refuse_what_makes_no_sense():
    with pytest.raises(ConfigInvalid, match="exploration"):
        ServingOptions(exploration=np.nan)
    with pytest.raises(ConfigInvalid, match="store_threads"):
        ServingOptions(store_threads=0)


def notes(replica, **query):
    return call(replica, "GET", "/v1/notifications", params=query)


def test_events_sent_over_http_are_listed_by_what_is_asked(replica):
    sent = call(replica, "POST", "/v1/notifications", json=[{"key": "a", "value": "1"}, {"key": "b", "value": "2"}])
    assert (sent.status_code, [event["offset"] for event in sent.json()["events"]]) == (201, [1, 2])
    one = call(replica, "POST", "/v1/notifications", json={"key": "a", "value": "3", "type": "T", "context": {"x": 1}})
    assert (one.json()["events"][0]["version"], one.json()["events"][0]["context"]) == (2, {"x": 1})
    assert [event["value"] for event in notes(replica, key="a").json()["events"]] == ["1", "3"]
    answer = notes(replica, after_offset=1, limit=1).json()
    assert ([event["value"] for event in answer["events"]], answer["position"]) == (["2"], 2)
    assert notes(replica, type="none", after_offset=0).json() == {"events": [], "position": 3}


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"after_offset": "-1"}, {"wait_s": "31"}, {"from_ms": "x"}, {"colour": "red"}], ids=str
)
def test_a_bad_question_about_events_names_its_field(replica, query):
    answer = notes(replica, **query)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, next(iter(query)))


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"key": ""}', b'{"key": "k", "value": "a\\u0000b"}', b"\xff"], ids=str)
def test_events_that_cannot_be_sent_are_refused_whole(replica, body):
    assert call(replica, "POST", "/v1/notifications", content=body).status_code == 422
    assert notes(replica).json() == {"events": [], "position": 0}


def test_a_body_of_events_over_the_limit_is_not_read(replica):
    body = b" " * (replica.service.options.request_limit_bytes + 1)
    assert call(replica, "POST", "/v1/notifications", content=body).status_code == 413


@pytest.fixture
def patient_replica(servers):
    """One that does not give up on a busy machine."""
    replica = Replica(
        servers.backends(), options=ServingOptions(read_deadline_s=20.0), clock=ManualClock(now_ms=NOW_MS)
    )
    yield replica
    replica.close()


def test_who_waits_for_events_is_answered_when_one_comes(patient_replica, servers):
    replica = patient_replica

    async def wait_for_one():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=replica.app), base_url="http://r") as client:
            asked = [
                asyncio.create_task(client.get(f"/v1/notifications?after_offset=0&wait_s=20&key={key}"))
                for key in ["a"] * 20 + ["b"]
            ]
            async with asyncio.timeout(20):
                while len(replica.growth._waiting) < len(asked):  # noqa: ASYNC110 - the list tells nobody that it grew
                    await asyncio.sleep(0)
            servers.events.send(NewEvent(key="a", value="1"))
            first = await asyncio.gather(*asked[:20])
            assert not asked[20].done()
            servers.events.send(NewEvent(key="b", value="2"))
            return first, await asked[20]

    first, last = asyncio.run(wait_for_one())
    assert all([event["value"] for event in answer.json()["events"]] == ["1"] for answer in first)
    assert [event["value"] for event in last.json()["events"]] == ["2"]


def test_metadata_are_read_over_http(replica, servers):
    servers.metadata.put_dataset(Dataset(name="samples", address="samples.current", format="postgresql", columns={}))
    listed = call(replica, "GET", "/v1/meta/datasets").json()["datasets"]
    assert [entry["name"] for entry in listed] == ["samples"]
    assert call(replica, "GET", "/v1/meta/datasets/samples").json()["address"] == "samples.current"
    assert call(replica, "GET", "/v1/meta/datasets/none").status_code == 404
    assert call(replica, "GET", "/v1/meta/things").status_code == 404
