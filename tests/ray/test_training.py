"""A base and increments on it by real Ray Train runs, on a real PostgreSQL and MLflow: one of each."""

from __future__ import annotations

import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import numpy as np
import psutil
import pytest

from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.errors import TrainingImpossible
from rtrec_ray.notification.base import MODEL, MODEL_GENERATED, EventFilter
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.registry.base import ModelVersion
from rtrec_ray.registry.options import RegistryOptions
from tests.conftest import Eventually
from tests.sample_rows import put_samples, sample_rows
from tests.training_desk import small_definition
from training.base import train_base
from training.incremental import train_incremental
from training.options import BaseOptions, GateOptions, IncrementalOptions, RayOptions, ServerConnections

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]

ROWS = 3_000


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer, template_database: str) -> Iterator[str]:
    name = f"training_{uuid.uuid4().hex[:8]}"
    postgres_server.create_database(name, template=template_database)
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="module")
def connections(database: str, mlflow_url: str) -> ServerConnections:
    name = f"rtrec-{uuid.uuid4().hex[:8]}"
    return ServerConnections(
        postgres=PostgresOptions(dsn=database),
        registry=RegistryOptions(url=mlflow_url, model_name=name, experiment=name),
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("ray-train"))


def base_options(storage: str) -> BaseOptions:
    ray = RayOptions(storage=storage, cpus_per_worker=0.5)
    return BaseOptions(definition=small_definition(), ray=ray, read_rows=1_000)


@pytest.fixture(scope="module")
def base(connections: ServerConnections, storage: str, ray_local: None) -> ModelVersion:
    """A base on `ROWS` samples, judged by the gate."""
    from training.gate import ValidationGate

    put_samples(connections.postgres.dsn, sample_rows(ROWS))
    version = train_base(base_options(storage), connections)
    gate = ValidationGate(GateOptions(resamples=200), connections)
    judged = gate.judge(version.version)
    gate.close()
    assert judged is not None
    return judged


def test_training_refuses_at_once_when_there_are_no_samples(dsn: str, mlflow_url: str, storage: str) -> None:
    connections = ServerConnections(postgres=PostgresOptions(dsn=dsn), registry=RegistryOptions(url=mlflow_url))
    with pytest.raises(TrainingImpossible, match="no samples yet"):
        train_base(base_options(storage), connections)
    book = connections.book()
    assert book.runs()["base"].beat.state == "failed"
    book.close()


def test_training_refuses_samples_without_a_click(dsn: str, mlflow_url: str, storage: str, ray_local: None) -> None:
    put_samples(dsn, sample_rows(50).with_columns(label=0))
    connections = ServerConnections(postgres=PostgresOptions(dsn=dsn), registry=RegistryOptions(url=mlflow_url))
    with pytest.raises(TrainingImpossible, match="with 0 clicks teach nothing"):
        train_base(base_options(storage), connections)


def test_a_base_names_its_samples_and_passes_the_gate(base: ModelVersion, connections: ServerConnections) -> None:
    assert base.status == "validated"
    assert (base.draft.kind, base.draft.from_seq, base.draft.to_seq) == ("base", 1, ROWS)
    metrics = base.draft.metrics
    assert 0.85 * ROWS < metrics["train_rows"] < 0.95 * ROWS
    assert metrics["train_rows"] + metrics["held_out_rows"] == ROWS
    assert metrics["train_log_loss_pass_2"] < metrics["train_log_loss_pass_1"]
    events = connections.events()
    assert [event.value for event in events.list(EventFilter(key=MODEL, type=MODEL_GENERATED))] == [base.version]
    events.close()


def test_a_base_has_its_run_and_its_lineage_in_the_metadata(base: ModelVersion, connections: ServerConnections) -> None:
    with closing(connections.metadata()) as metadata:
        lineage, runs = metadata.lineage(base.version), metadata.runs()
    assert lineage is not None
    assert (lineage.from_seq, lineage.to_seq, lineage.run_id) == (1, ROWS + 1, base.draft.job)
    assert lineage.lsn is not None
    assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", lineage.lsn)
    made = [run for run in runs if run.run_id == lineage.run_id]
    assert [(run.job, run.state, run.context["version"]) for run in made] == [("train-base", "succeeded", base.version)]


def train_worker() -> psutil.Process | None:
    """The process of the Ray Train worker of this session's Ray."""
    for child in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def test_increments_join_without_gap_though_the_worker_is_killed(
    base: ModelVersion, connections: ServerConnections, storage: str, eventually: Eventually
) -> None:
    ray = RayOptions(storage=storage, cpus_per_worker=0.5, max_failures=-1)
    options = IncrementalOptions(ray=ray, publish_every_s=1.0, look_every_s=0.1, progress_every_s=0.2)
    run = threading.Thread(target=train_incremental, args=(options, connections), daemon=True)
    run.start()
    center, book = connections.center(), connections.book()
    put_samples(connections.postgres.dsn, sample_rows(1_000, seed=1, first=ROWS))
    eventually(lambda: center.list()[0].draft.to_seq == ROWS + 1_000, timeout_s=240, what="first increments")

    worker = train_worker()
    assert worker is not None
    put_samples(connections.postgres.dsn, sample_rows(500, seed=2, first=ROWS + 1_000))
    os.kill(worker.pid, signal.SIGKILL)
    put_samples(connections.postgres.dsn, sample_rows(500, seed=3, first=ROWS + 1_500))
    eventually(lambda: center.list()[0].draft.to_seq == ROWS + 2_000, timeout_s=240, what="increments after the kill")
    assert book.request_stop(options.run)
    run.join(60.0)
    assert not run.is_alive()

    chain = list(reversed(center.list()))
    assert [version.draft.kind for version in chain] == ["base"] + ["increment"] * (len(chain) - 1)
    for earlier, later in pairwise(chain):
        assert (later.draft.parent, later.draft.from_seq) == (earlier.version, earlier.draft.to_seq + 1)
    assert book.runs()[options.run].beat.state == "stopped"
    points = book.progress(options.run)
    assert np.isfinite([point.log_loss for point in points]).all()
    assert points[-1].commit_seq == ROWS + 2_000
    book.close()
