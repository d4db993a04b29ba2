"""The pipeline on real Ray actors, a real Kafka and a real PostgreSQL: what becomes of a real log, faults included."""

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
import ray

from configs.settings import KafkaServer as KafkaSettings
from configs.settings import Servers, Settings
from rtrec_ray.app.cluster import stop_actors
from rtrec_ray.app.pipeline import shares, start_pipeline
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.features.file import load_definitions
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.samples.file import load_definition
from rtrec_ray.simulate.replay import ReplayOptions, replay
from rtrec_ray.stores.progress import read_stages

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow]

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def system(dsn, kafka_bootstrap, ray_local, tmp_path, request):
    settings = Settings(servers=Servers(kafka=KafkaSettings(suffix=f"-{request.node.name[:40]}-{os.getpid()}")))
    return prepare(
        System(
            settings=settings,
            directory=tmp_path,
            addresses=Addresses(kafka=kafka_bootstrap, postgres=dsn, ray="local"),
            features=load_definitions(CONFIGS / "features.yaml"),
            samples=load_definition(CONFIGS / "samples.yaml"),
        )
    )


@pytest.fixture
def pipeline(system):
    actors = dict(zip([share.name for share in shares(system)], start_pipeline(system), strict=True))
    yield actors
    stop_actors(actors)


def query(system, statement):
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def stages(system):
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        return read_stages(cursor)


def replay_open_bandit(system):
    with closing(connect_producer(system.kafka)) as producer:
        return replay("open-bandit", producer, ReplayOptions(), clock=system.clock)


COUNTS = "SELECT count(*)::int, coalesce(sum(label), 0)::int FROM samples.current"


def test_a_real_log_becomes_exactly_its_samples_though_a_sample_actor_is_killed_half_way(system, pipeline, eventually):
    victim = ray.get(pipeline["samples-0"].health.remote()).pid
    summary = replay_open_bandit(system)
    eventually(lambda: query(system, COUNTS)[0][0] > 10_000, what="a part of the samples is written")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: query(system, COUNTS) == [(60_000, 287)], what="60,000 samples, 287 positive")
    after = stages(system)
    behavior, inference = summary.records["behavior"], summary.records["inference-log"]
    assert after["samples"].counts["in"] == behavior + inference
    assert after["features"].counts["in"] == behavior
    eventually(lambda: stages(system)["history"].counts.get("out") == sum(summary.records.values()))
    assert query(system, "SELECT count(*) FROM samples.misses") == [(0,)]
    assert all(stage.lag == 0 and stage.up for stage in stages(system).values())
