"""Answers of POST /v1/recommend, over servers in memory that can be taken away."""

import asyncio
import dataclasses
import json
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from rtrec_ray.clock import ManualClock
from rtrec_ray.events import BehaviorEvent, CatalogItem, ProfileVersion
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.vector import assemble
from serving.memory import LinearScorer, MemoryServers
from serving.options import Arm, ServingOptions
from serving.rank import columns_of
from serving.replica import Replica

NOW_MS = 1_700_000_000_000
DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
OPTIONS = ServingOptions(exploration=0.0, store_deadline_s=0.2, model_deadline_s=0.2, store_threads=2)


class Client:
    """Calls an application without a socket."""

    def __init__(self, app):
        self._transport = httpx.ASGITransport(app=app)

    def get(self, path):
        return asyncio.run(self._send("GET", path))

    def post(self, path, **body):
        return asyncio.run(self._send("POST", path, **body))

    async def _send(self, method, path, **body):
        async with httpx.AsyncClient(transport=self._transport, base_url="http://rtrec") as client:
            return await client.request(method, path, **body)


class Stage:
    """A replica over memory, and a client of it."""

    def __init__(self, servers, options=OPTIONS, token=None):
        self.servers = servers
        self.replica = Replica(servers.backends(), options=options, clock=ManualClock(now_ms=NOW_MS), token=token)
        self.client = Client(self.replica.app)

    def ready(self):
        self.replica.lists.refresh(catalogue_s=0.0)
        self.replica.reloading.step()
        return self

    def ask(self, **body):
        answer = self.client.post("/v1/recommend", json={"user_id": 1, "page_id": 7, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, name):
        lines = self.client.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)}

    def logged(self):
        return [json.loads(value) for value in self.servers.broker.records("inference-log")]


@pytest.fixture
def servers():
    servers = MemoryServers(DEFINITIONS, clock=ManualClock(now_ms=NOW_MS))
    servers.put_items(
        CatalogItem(item_id=i, ts=i, item_type="product" if i % 2 else "video", category_id=i % 3) for i in range(1, 31)
    )
    yield servers
    servers.store.answers.set()


@pytest.fixture
def stage(servers):
    stage = Stage(servers)
    yield stage
    servers.store.answers.set()
    stage.replica.close()


def items(answer):
    return [item["item_id"] for item in answer["items"]]


def event(number, **fields):
    base = {"event_type": "view", "ts": NOW_MS - 1_000, "user_id": 1, "item_type": "product"}
    return BehaviorEvent(event_id=f"e{number}", **{**base, **fields})


def test_items_come_by_falling_score_of_the_model(stage):
    stage.servers.put_events([event(1, item_id=5), event(2, item_id=9)])
    stage.servers.models["3"] = LinearScorer(
        version="3", weights={"item_recently_viewed": 2.0}, trained_to_ms=NOW_MS - 40
    )
    stage.servers.champion = "3"
    answer = stage.ready().ask(k=5)
    assert set(items(answer)[:2]) == {5, 9}
    assert [item["position"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert (answer["model_version"], answer["degraded"]) == ("3", [])
    assert answer["freshness"] == {"feature_age_ms": 1_000, "model_age_ms": 40}


def test_the_inference_record_says_what_the_answer_was_made_with(stage, eventually):
    stage.servers.put_events([event(1, item_id=5), event(2, item_id=9, page_id=7)])
    stage.servers.put_profile(ProfileVersion(user_id=1, ts=0, country="CN", city="Shanghai"))
    answer = stage.ready().ask(k=3, arm="live", context={"user_feature_0": "a", "depth": 2})
    (record,) = eventually(stage.logged)
    assert (record["request_id"], record["user_id"], record["page_id"]) == (answer["request_id"], 1, 7)
    assert (record["ts"], record["model_version"], record["arm"]) == (NOW_MS, "none", "live")
    shown = [{key: item[key] for key in ("item_id", "score", "position")} for item in record["items"]]
    assert shown == answer["items"]
    assert [item["propensity"] for item in record["items"]] == [1.0, 1.0, 1.0]
    features = record["features"]
    assert (features["user_5m_view"], features["country"], features["user_1m_pages"]) == (2, "CN", [7])
    assert (features["user_feature_0"], features["depth"]) == ("a", 2)
    assert all(item["features"]["item_category"] == str(item["item_id"] % 3) for item in record["items"])
    assert stage.servers.broker.keys("inference-log") == [b"1"]


def test_the_inference_record_says_what_was_behind_each_view(stage, eventually):
    stage.servers.put_events([event(1, item_id=5), event(2, item_id=9)])
    stage.servers.put_list("top_viewed_30m", "video", {"top": [[20, 9]]})
    stage.servers.put_profile(ProfileVersion(user_id=1, ts=0, country="CN", gender="f"))
    stage.ready()
    stage.servers.put_events([event(3, item_id=5)])
    stage.ask()
    (record,) = eventually(stage.logged)
    assert record["as_of"] == {
        "category_top_items_10m": {"0": 2},
        "top_viewed_30m": {"0": 2},
        "user_browse_5m": {"0": 3},
        "user_browse_1m": {"0": 3},
        "segment_page_top_ads": {"0": 3},
        "profile": {"0": 1},
        "item": {"0": len(stage.servers.tables.items)},
    }
    assert record["as_of_ms"] == dict.fromkeys(record["as_of"].keys() - {"item"}, NOW_MS)
    assert record["as_of_version"] == dict.fromkeys(record["as_of"].keys() - {"item", "profile"}, 1)


def test_what_was_not_read_or_was_replaced_has_nothing_behind_it(stage, eventually):
    stage.servers.put_events([event(1, item_id=5)])
    stage.servers.put_profile(ProfileVersion(user_id=1, ts=0, gender="f"))
    stage.ready().ask(context={"user_5m_view": 99, "country": "AU"})
    stage.servers.store.up = False
    stage.ask()
    replaced, degraded = eventually(lambda: found if len(found := stage.logged()) == 2 else None)
    assert replaced["as_of"].keys() == {"category_top_items_10m", "top_viewed_30m", "user_browse_1m", "item"}
    assert degraded["as_of"].keys() == {"category_top_items_10m", "top_viewed_30m", "item", "profile"}


def test_a_request_without_real_time_values_has_profile_and_catalogue_alone_behind_it(servers, eventually):
    stage = Stage(servers, dataclasses.replace(OPTIONS, arms={"day": Arm(realtime=False)}))
    servers.put_events([event(1, item_id=5)])
    stage.ready().ask()
    (record,) = eventually(stage.logged)
    assert (record["arm"], record["as_of"]) == ("day", {"profile": {"0": 0}, "item": {"0": len(servers.tables.items)}})
    assert (record["as_of_ms"].keys(), "as_of_version" in record) == ({"profile"}, False)
    stage.replica.close()


def test_the_logged_features_give_the_columns_that_were_scored(stage, eventually):
    seen = []

    class Watching(LinearScorer):
        def predict(self, columns, /):
            seen.append(columns)
            return np.linspace(0.9, 0.1, len(columns["item_id"]))

    stage.servers.put_events([event(1, item_id=5)])
    stage.servers.models["1"] = Watching(version="1", weights={"user_5m_view": 1.0, "item_recently_viewed": 1.0})
    stage.servers.champion = "1"
    stage.ready()
    seen.clear()
    stage.ask(k=4, candidates=[9, 5, 3, 8])
    (record,) = eventually(stage.logged)
    rows = [{**record["features"], **item["features"], "item_id": item["item_id"]} for item in record["items"]]
    again = assemble(Watching(version="1", weights={"user_5m_view": 1.0, "item_recently_viewed": 1.0}).inputs, rows)
    assert {name: values.tolist() for name, values in seen[0].items()} == {
        name: values.tolist() for name, values in again.items()
    }


def test_only_given_candidates_are_ranked_and_each_once(stage):
    answer = stage.ready().ask(candidates=[4, 999, 4, 2])
    assert sorted(items(answer)) == [2, 4, 999]


def test_an_unknown_user_gets_popular_items(stage):
    stage.servers.put_list("top_viewed_30m", "video", {"top": [[20, 9], [10, 3]]})
    stage.servers.put_list("category_top_items_10m", "1", {"top": [[7, 5]]})
    answer = stage.ready().ask(user_id=404, k=3)
    assert items(answer) == [7, 20, 10]
    assert answer["degraded"] == ["no_model"]


def test_the_lists_of_a_users_segment_are_candidates(stage):
    stage.servers.put_profile(ProfileVersion(user_id=1, ts=0, country="CN", gender="f", city="Shanghai"))
    stage.servers.put_list("segment_page_top_ads", "CN|f|Shanghai|7", {"top": [[5000, 3]], "last": [6000]})
    stage.servers.models["1"] = LinearScorer(version="1", weights={"item_city_segment_clicks_10m": 1.0})
    stage.servers.champion = "1"
    answer = stage.ready().ask(k=31)
    assert items(answer)[0] == 5000
    assert 6000 in items(answer)


def test_without_a_catalogue_the_answer_is_empty_and_says_why():
    stage = Stage(MemoryServers(DEFINITIONS, clock=ManualClock(now_ms=NOW_MS))).ready()
    answer = stage.ask()
    assert (answer["items"], answer["degraded"], answer["model_version"]) == ([], ["empty_catalogue"], "none")
    stage.replica.close()


def test_a_dead_store_costs_freshness_not_the_answer(stage, eventually):
    stage.servers.put_list("top_viewed_30m", "video", {"top": [[20, 9]]})
    stage.ready()
    stage.servers.store.up = False
    answer = stage.ask(k=2)
    assert items(answer)[0] == 20
    assert answer["degraded"] == ["store_unavailable", "no_model"]
    assert stage.metric("rtrec_degraded_total")['rtrec_degraded_total{reason="store_unavailable"}'] == 1.0
    stage.servers.store.up = True
    stage.ask(k=2)
    # A count of 0 that was read and one that could not be read are not the same to a model.
    logged = eventually(lambda: len(got := stage.logged()) == 2 and got)
    assert [record["features"]["realtime"] for record in logged] == ["off", "on"]


def test_a_store_that_was_never_there_gives_an_empty_answer(stage):
    stage.servers.store.up = False
    assert stage.ask() | {"request_id": ""} == {
        "request_id": "",
        "model_version": "none",
        "items": [],
        "freshness": {"feature_age_ms": None, "model_age_ms": None},
        "degraded": ["store_unavailable"],
    }


def test_a_hung_store_costs_its_deadline_until_all_threads_hang_and_then_nothing(stage, eventually):
    stage.ready()
    stage.servers.store.answers.clear()
    for _ in range(3):
        assert stage.ask()["degraded"] == ["store_unavailable", "no_model"]
    assert stage.replica.service.recommender.store_calls.stuck() == 2
    slowest = stage.metric("rtrec_request_seconds_bucket")
    # The third found every thread hanging and did not wait.
    assert slowest['rtrec_request_seconds_bucket{le="0.1",route="/v1/recommend"}'] == 1.0
    stage.servers.store.answers.set()
    eventually(lambda: stage.replica.service.recommender.store_calls.stuck() == 0)
    assert stage.ask()["degraded"] == ["no_model"]


@pytest.mark.parametrize("answer", [ValueError("broken"), np.array([np.nan] * 30), np.array([0.5])])
def test_a_model_that_breaks_under_a_request_leaves_the_popular_answer(stage, answer):
    class Breaking(LinearScorer):
        def predict(self, columns, /):
            if isinstance(answer, Exception):
                raise answer
            return answer

    stage.ready().replica.models.swap(Breaking(version="1"))
    got = stage.ask(k=3)
    assert (got["degraded"], got["model_version"], len(got["items"])) == (["model_unavailable"], "none", 3)


def test_a_model_that_hangs_leaves_the_popular_answer(stage):
    release = threading.Event()

    class Hanging(LinearScorer):
        def predict(self, columns, /):
            release.wait()
            return super().predict(columns)

    stage.ready().replica.models.swap(Hanging(version="1"))
    assert stage.ask()["degraded"] == ["model_unavailable"]
    release.set()


def test_a_view_deleted_from_the_file_costs_its_features_only():
    left = tuple(view for view in DEFINITIONS.views if view.name not in ("user_browse_1m", "top_viewed_30m"))
    fewer = Definitions(
        tile_ms=DEFINITIONS.tile_ms,
        horizon_ms=DEFINITIONS.horizon_ms,
        retention_ms=DEFINITIONS.retention_ms,
        views=left,
    )
    servers = MemoryServers(fewer, clock=ManualClock(now_ms=NOW_MS))
    servers.put_items([CatalogItem(item_id=1, ts=0)])
    servers.put_events([event(1, item_id=1)])
    stage = Stage(servers).ready()
    answer = stage.ask()
    assert (items(answer), answer["degraded"]) == ([1], ["view_missing", "no_model"])
    stage.replica.close()


def test_context_goes_before_our_own_features_and_cannot_break_them(stage, eventually):
    stage.servers.put_events([event(1, item_id=5)])
    stage.ready().ask(context={"user_5m_view": 99, "user_last_items": "no list"})
    (record,) = eventually(stage.logged)
    assert (record["features"]["user_5m_view"], record["features"]["user_last_items"]) == (99, "no list")


def test_the_largest_request_there_may_be_is_logged(stage, eventually):
    most = {f"feature_{i}": ["\u0001" * 19] * 33 for i in range(64)}
    body = json.dumps({"user_id": 1, "k": 100, "context": most}).encode()
    assert OPTIONS.request_limit_bytes * 0.9 < len(body) < OPTIONS.request_limit_bytes
    assert stage.ready().client.post("/v1/recommend", content=body).status_code == 200
    (record,) = eventually(stage.logged)
    assert record["features"]["feature_63"] == most["feature_63"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b"", "body"),
        (b'{"user_id": NaN}', "user_id"),
        (b'{"user_id": "1"}', "user_id"),
        (b'{"user_id": true}', "user_id"),
        (b'{"user_id": 99999999999999999999}', "user_id"),
        (b'{"page_id": 1}', "user_id"),
        (b'{"user_id": 1, "k": 0}', "k"),
        (b'{"user_id": 1, "k": 101}', "k"),
        (b'{"user_id": 1, "candidates": [1, "2"]}', "candidates.1"),
        (b'{"user_id": 1, "candidates": ' + json.dumps(list(range(1001))).encode() + b"}", "candidates"),
        (b'{"user_id": 1, "context": {"x": {"y": 1}}}', "context"),
        (b'{"user_id": 1, "context": {"x": [[1]]}}', "context"),
        (b'{"user_id": 1, "context": {"x": true}}', "context"),
        (b'{"user_id": 1, "context": {"x": null}}', "context"),
        (b'{"user_id": 1, "context": {"x": 1e999}}', "context"),
        (b'{"user_id": 1, "context": {"x": "a\\u0000"}}', "context"),
        (b'{"user_id": 1, "context": {"item_id": 1}}', "context"),
        (b'{"user_id": 1, "context": ' + json.dumps({str(i): 1 for i in range(65)}).encode() + b"}", "context"),
        (b'{"user_id": 1, "arm": "\\u0000"}', "arm"),
        (b'{"user_id": 1, "context": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "body"),
        (b'{"user_id": 1, "arm": "\\ud800"}', "body"),
    ],
)
def test_a_request_that_breaks_its_contract_is_told_the_field(stage, body, field):
    answer = stage.client.post("/v1/recommend", content=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_request_columns_equal_those_of_whole_rows():
    scorer = LinearScorer(version="1", weights={"a": 1.0, "b": 1.0, "c": 1.0})
    shared, rows = {"a": 1, "b": 2, "item_id": "x"}, [{"b": 5, "item_id": 3}, {"c": 7}]
    fast = columns_of(scorer.inputs, shared=shared, rows=rows)
    plain = assemble(scorer.inputs, [{**shared, **row} for row in rows])
    assert {name: values.tolist() for name, values in fast.items()} == {
        name: values.tolist() for name, values in plain.items()
    }
