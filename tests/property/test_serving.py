"""Whatever is sent to whatever route, the answer is not a failure of ours."""

import asyncio
import json
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.clock import ManualClock
from rtrec_ray.events import CatalogItem
from rtrec_ray.features.file import load_definitions
from serving.memory import LinearScorer, MemoryServers
from serving.options import ServingOptions
from serving.replica import Replica

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
VIEWS = sorted(DEFINITIONS.by_name)

FIELDS = [
    "user_id",
    "page_id",
    "k",
    "candidates",
    "context",
    "arm",
    "event_id",
    "event_type",
    "ts",
    "retracts",
    "query",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["view", "click", 1_700_000_000_000]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=5)), inner)
    ),
    max_leaves=12,
)
NEARLY_RIGHT = st.fixed_dictionaries(
    {"user_id": st.integers(-5, 5)},
    optional={
        "page_id": st.one_of(st.integers(), JSON),
        "k": st.integers(-1, 101),
        "candidates": st.one_of(st.lists(st.integers(-3, 40)), JSON),
        "context": st.one_of(st.dictionaries(st.text(max_size=4), st.one_of(SCALARS, st.lists(SCALARS))), JSON),
        "arm": st.text(max_size=5),
        "ts": st.integers(),
        "event_id": st.text(max_size=3),
        "event_type": st.sampled_from(["view", "click", "nod"]),
    },
)
BODIES = st.one_of(
    st.binary(max_size=60),
    st.one_of(JSON, NEARLY_RIGHT, st.lists(NEARLY_RIGHT, max_size=3)).map(lambda value: json.dumps(value).encode()),
)


@pytest.fixture(scope="module")
def replica():
    servers = MemoryServers(DEFINITIONS, clock=ManualClock(now_ms=1_700_000_000_000))
    servers.put_items(CatalogItem(item_id=i, ts=i, item_type="product", category_id=i % 3) for i in range(20))
    servers.models["1"] = LinearScorer(version="1", weights={"user_5m_view": 0.1, "item_recently_viewed": 1.0})
    servers.champion = "1"
    replica = Replica(
        servers.backends(),
        # Nothing here is away: whatever takes long, takes long because the machine is busy.
        options=ServingOptions(exploration=0.5, store_deadline_s=60.0, model_deadline_s=60.0, read_deadline_s=60.0),
        clock=ManualClock(now_ms=1_700_000_000_000),
    )
    replica.lists.refresh(catalogue_s=600.0)
    replica.reloading.step()
    yield replica
    replica.close()


def status(replica, method, path, **body):
    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=replica.app), base_url="http://r") as client:
            return await client.request(method, path, **body)

    answer = asyncio.run(send())
    assert answer.status_code < 500, (method, path, body, answer.text)
    return answer


@given(body=BODIES)
def test_no_body_makes_recommend_fail(replica, body):
    answer = status(replica, "POST", "/v1/recommend", content=body)
    assert answer.status_code in (200, 422)
    assert answer.status_code == 422 or answer.json()["degraded"] == []


@given(body=BODIES)
def test_no_body_makes_events_fail(replica, body):
    assert status(replica, "POST", "/v1/events", content=body).status_code in (202, 422)


@given(
    view=st.one_of(st.sampled_from(VIEWS), st.text(max_size=10)),
    keys=st.lists(st.text(max_size=10), max_size=3),
    as_of_ms=st.one_of(st.none(), st.integers(0, 2_000_000_000_000).map(str), st.text(max_size=5)),
)
def test_no_question_makes_features_fail(replica, view, keys, as_of_ms):
    parts = [f"key={quote(key)}" for key in keys] + ([] if as_of_ms is None else [f"as_of_ms={quote(as_of_ms)}"])
    status(replica, "GET", f"/v1/features/{quote(view, safe='')}?{'&'.join(parts)}")


@given(
    path=st.sampled_from(["/v1/recommend", "/v1/events", "/v1/features/x", "/healthz", "/readyz", "/metrics", "/docs"]),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]),
    body=st.binary(max_size=20),
)
def test_no_method_makes_a_route_fail(replica, path, method, body):
    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=replica.app), base_url="http://r") as client:
            return await client.request(method, path, content=body)

    replica.lists.refresh(catalogue_s=600.0)  # as its thread does: read 17 s ago, they are too old for /readyz
    assert asyncio.run(send()).status_code < 500


@given(
    candidates=st.lists(st.integers(-5, 5), max_size=12),
    k=st.integers(1, 15),
)
def test_an_answer_is_k_different_candidates_or_all_of_them(replica, candidates, k):
    body = json.dumps({"user_id": 1, "candidates": candidates, "k": k})
    answer = status(replica, "POST", "/v1/recommend", content=body).json()
    shown = [item["item_id"] for item in answer["items"]]
    assert set(shown) <= set(candidates)
    assert len(shown) == len(set(shown)) == min(k, len(set(candidates)))
    assert [item["position"] for item in answer["items"]] == list(range(1, len(shown) + 1))
