"""The replica inside Ray Serve: a model is exchanged under load."""

import dataclasses
import threading
from pathlib import Path

import httpx
import pytest

from rtrec_ray.clock import REAL
from rtrec_ray.embedded.ports import pick
from rtrec_ray.events import CatalogItem
from rtrec_ray.features.file import load_definitions
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.registry.mlflow import RegistryOptions
from serving.connect import ReplicaOptions
from serving.memory import LinearScorer, MemoryServers
from serving.options import ServingOptions

pytestmark = pytest.mark.ray

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """A file that names the champion, since the replica's servers live in another process."""
    path = tmp_path_factory.mktemp("serving") / "champion"
    path.write_text("1")
    return path


@pytest.fixture(scope="module")
def url(ray_local, champion):
    from ray import serve  # takes seconds, and only these tests need it
    from ray.serve.config import HTTPOptions

    from serving.deployment import application

    def in_memory(options):
        servers = MemoryServers(options.definitions, clock=options.clock)
        servers.put_items(CatalogItem(item_id=i, ts=i, item_type="product", category_id=1) for i in range(50))
        return dataclasses.replace(
            servers.backends(),
            champion=champion.read_text,
            load=lambda version: LinearScorer(version=version, weights={"item_recently_viewed": 1.0}),
        )

    options = ReplicaOptions(
        postgres=PostgresOptions(dsn=""),
        kafka=KafkaOptions(),
        registry=RegistryOptions(url=""),
        definitions=DEFINITIONS,
        serving=ServingOptions(champion_poll_s=0.05),
        clock=REAL,
    )
    port = pick()
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(application(options, connect_servers=in_memory), name="rtrec", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_a_model_is_exchanged_under_load_without_a_failed_request(url, champion, eventually):
    done, answers, failures = threading.Event(), [], []

    def ask():
        with httpx.Client(base_url=url, timeout=20.0) as client:
            while not done.is_set():
                answer = client.post("/v1/recommend", json={"user_id": 1, "k": 5})
                if answer.status_code != 200 or len(answer.json()["items"]) != 5 or answer.json()["degraded"]:
                    failures.append(answer.text)
                answers.append(answer.json()["model_version"])

    with httpx.Client(base_url=url, timeout=20.0) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in ("1", "2", "3", "4"):
        before = len(answers)
        champion.write_text(version)
        eventually(lambda version=version: version in answers[-5:])
        eventually(lambda before=before: len(answers) > before + 20)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(answers) >= {"1", "2", "3", "4"}


def test_a_body_over_the_limit_is_answered_through_the_front_end(url):
    with httpx.Client(base_url=url, timeout=20.0) as client:
        assert client.post("/v1/events", content=b"[" + b" " * 5_000_000 + b"]").status_code == 413
        assert client.get("/healthz").status_code == 200
        metrics = client.get("/metrics").text
        assert "rtrec_requests_total" in metrics
        assert "# TYPE rtrec_view_rows gauge" in metrics
        assert client.get("/docs").status_code == 200
