"""The run that follows the ledger, on a real PostgreSQL that goes away."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.registry.options import RegistryOptions
from tests.conftest import Eventually
from tests.sample_rows import put_samples, sample_rows
from tests.training_desk import MemoryConnections, put_base, small_definition
from training.desk import sit_down
from training.follower import Follower
from training.options import IncrementalOptions, ServerConnections

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def database(postgres_server: PostgresServer, template_database: str) -> Iterator[str]:
    name = f"outage_{uuid.uuid4().hex[:8]}"
    postgres_server.create_database(name, template=template_database)
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)


def test_a_run_outlives_its_database_and_learns_every_sample_once(
    database: str,
    postgres_server: PostgresServer,
    tmp_path: Path,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = MemoryConnections(tmp_path)
    put_base(memory, small_definition())
    center = memory.center()
    servers = ServerConnections(postgres=PostgresOptions(dsn=database), registry=RegistryOptions(url=""))
    desk = replace(
        sit_down(memory, run="incremental"),
        samples=servers.samples(),
        log=servers.change_log("incremental"),
        events=servers.events(),
        book=servers.book(),
    )
    options = IncrementalOptions(publish_every_s=0.2, look_every_s=0.1, progress_every_s=0.1)
    follower = Follower(options, desk, epoch=desk.book.open(options.run))
    run = threading.Thread(target=follower.run, daemon=True)
    put_samples(database, sample_rows(500))
    run.start()
    eventually(lambda: center.list()[0].draft.to_seq == 500, what="increments before the outage")

    postgres_server.stop()
    eventually(lambda: _failures(caplog) > 3, what="the run noticed, and tried again")
    assert run.is_alive()
    postgres_server.start()
    put_samples(database, sample_rows(500, seed=1, first=500))
    eventually(lambda: center.list()[0].draft.to_seq == 1_000, what="increments after the outage")
    assert desk.book.request_stop(options.run)
    run.join(30.0)
    assert not run.is_alive()

    points = desk.book.progress(options.run)
    assert sum(point.rows for point in points) == 1_000
    assert desk.book.runs()[options.run].beat.state == "stopped"
    desk.close()


def _failures(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.message == "training_waits_for_server" for record in caplog.records)
