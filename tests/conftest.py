"""What all tests share: real servers of the session, a database per test, one local Ray, polling with a deadline."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from rtrec_ray import clock
from rtrec_ray.embedded.kafka import KafkaServer, KafkaServerOptions
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions

hypothesis.settings.register_profile("dev", max_examples=50, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None)
hypothesis.settings.register_profile("soak", max_examples=1_000, deadline=None)
_PROFILE = "ci" if os.environ.get("CI") == "true" else "dev"
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", _PROFILE))

_TEMPLATE = "rtrec_template"
# A bound on waiting, not a figure: what comes at all comes within it on a machine that has other work.
PATIENCE_S = 120.0
_WHOLE_SYSTEMS = (
    "tests/e2e/",
    "tests/ray/",
    "tests/server/test_backfill",
    "tests/server/test_embedded_system",
    "tests/server/test_embedded_whole",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole systems come first: they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(_WHOLE_SYSTEMS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Share the files between the workers; all whole systems go to one of them."""
    return _Shares(config, log)


class _Shares(LoadScopeScheduling):
    """Two systems at once are more than two cores bear, and a file's fixtures are made once if one worker has it."""

    def _split_scope(self, nodeid: str) -> str:
        return "systems" if nodeid.startswith(_WHOLE_SYSTEMS) else nodeid.split("::")[0]


class Eventually(Protocol):
    """The fixture of this name: poll `predicate` until its answer is true, and answer it; fail after `timeout_s`."""

    def __call__(self, predicate: Callable[[], Any], *, timeout_s: float = PATIENCE_S, what: str = "") -> Any: ...


def _eventually(predicate: Callable[[], Any], *, timeout_s: float = PATIENCE_S, what: str = "") -> Any:
    deadline = clock.monotonic_s() + timeout_s
    pause = Event()
    while True:
        asked = clock.monotonic_s()
        if answer := predicate():
            return answer
        if (now := clock.monotonic_s()) > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what or predicate}; last answer {answer!r}")
        # A question may be a process of its own: asked without a pause it takes a core from what it waits for.
        pause.wait(max(0.02, 2 * (now - asked)))


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """`eventually(predicate, what="...")`: poll instead of sleeping."""
    return _eventually


@pytest.fixture(scope="session")
def servers_directory() -> Iterator[Path]:
    """A folder of the session's servers; short, since a unix socket's path may have 107 bytes only."""
    directory = Path(tempfile.mkdtemp(prefix="rtrec-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka_server(servers_directory: Path) -> Iterator[KafkaServer]:
    """The session's Kafka on a free port. A test that stops it must start it again."""
    server = KafkaServer(KafkaServerOptions(directory=servers_directory / "kafka", quick_start=True))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_server: KafkaServer) -> str:
    """Address of the session's Kafka. Topics are shared by all tests: take names of your own."""
    return kafka_server.bootstrap


@pytest.fixture(scope="session")
def postgres_server(servers_directory: Path) -> Iterator[PostgresServer]:
    """The session's PostgreSQL on a free port, without fsync. A test that stops it must start it again."""
    server = PostgresServer(PostgresServerOptions(directory=servers_directory / "postgres", durable=False))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def template_database(postgres_server: PostgresServer) -> str:
    """A database with all migrations applied, to clone from."""
    # Only tests that need a migrated database need the migrations to be sound.
    from rtrec_ray.postgres.connection import PostgresOptions
    from rtrec_ray.postgres.migrate import migrate

    postgres_server.create_database(_TEMPLATE)
    migrate(PostgresOptions(dsn=postgres_server.dsn(_TEMPLATE)))
    return _TEMPLATE


@pytest.fixture
def dsn(postgres_server: PostgresServer, template_database: str, eventually: Eventually) -> Iterator[str]:
    """A migrated database of this test's own. Every connection to it must be closed when the test ends."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres_server.create_database(name, template=template_database)
    yield postgres_server.dsn(name)
    try:
        eventually(lambda: not _sessions(postgres_server, name), what="the test closed its connections")
    finally:
        postgres_server.drop_database(name)


def _sessions(server: PostgresServer, database: str) -> list[tuple[object, ...]]:
    with server.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid, application_name, state, query FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type IN ('client backend', 'walsender')",
            (database,),
        )
        return cursor.fetchall()


@pytest.fixture(scope="session")
def mlflow_url(servers_directory: Path, postgres_server: PostgresServer) -> Iterator[str]:
    """The session's MLflow server; takes about 10 s to start."""
    # MLflow is a large import that few tests need.
    from rtrec_ray.embedded.mlflow import MlflowServer, MlflowServerOptions

    postgres_server.create_database("mlflow")
    options = MlflowServerOptions(directory=servers_directory / "mlflow", store=postgres_server.dsn("mlflow"))
    server = MlflowServer(options)
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of the session's own, in this process, with 8 logical CPUs and no dashboard."""
    import ray  # takes a second, and few tests need it

    for left in (2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=8,
                include_dashboard=False,
                object_store_memory=256 * 1024 * 1024,
                configure_logging=False,
            )
            break
        except Exception:  # Ray raises just that when its node is not up within 30 s of a busy machine
            ray.shutdown()
            if left == 0:
                raise
    yield
    ray.shutdown()
