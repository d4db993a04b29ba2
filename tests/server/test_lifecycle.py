"""Changes of model versions on a real PostgreSQL: killed at any point, made by many at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from rtrec_ray.clock import REAL
from rtrec_ray.errors import MetadataConflict
from rtrec_ray.metadata import Entity, JobRun, PostgresMetadataStore
from rtrec_ray.metadata.recording import recorded
from rtrec_ray.notification import MODEL, EventFilter, PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.registry.changes_postgres import PostgresChangeBook
from rtrec_ray.registry.lifecycle import LifeCycle
from tests.server import lifecycle_worker

pytestmark = pytest.mark.server


@pytest.fixture
def options(dsn: str) -> PostgresOptions:
    return PostgresOptions(dsn=dsn)


@pytest.fixture
def told(options: PostgresOptions) -> Iterator[PostgresNotificationStore]:
    with closing(PostgresNotificationStore(options)) as store:
        yield store


def test_a_change_whose_process_is_killed_anywhere_is_made_and_told_once_or_never_begun(
    options: PostgresOptions, told: PostgresNotificationStore, tmp_path: Path
) -> None:
    center, wanted = lifecycle_worker.FolderCenter(tmp_path), []
    for number, point in enumerate(lifecycle_worker.POINTS, start=1):
        words = [lifecycle_worker.__file__, options.dsn, str(tmp_path), point, str(number)]
        done = subprocess.run([sys.executable, *words], check=False, capture_output=True, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        with closing(PostgresChangeBook(options)) as book:
            life = LifeCycle(center, book)  # type: ignore[arg-type]
            life.settle()
            assert not life.notice()
            assert book.next() is None
        if point != "before intending":
            wanted.append(str(number))
    champion = center.champion()
    assert champion is not None
    assert champion.version == wanted[-1]
    events = told.list(EventFilter(key=MODEL))
    assert [event.value for event in events if event.type == "MODEL_VALIDATED"] == wanted
    assert [event.value for event in events if event.type == "MODEL_DEPRECATED"] == wanted[:-1]


def test_changes_of_many_at_once_are_made_in_the_order_in_which_they_are_told(
    options: PostgresOptions, told: PostgresNotificationStore, tmp_path: Path
) -> None:
    center = lifecycle_worker.FolderCenter(tmp_path)

    def choose(number: int) -> None:
        with closing(PostgresChangeBook(options)) as book:
            LifeCycle(center, book).choose(str(number), sender="test")  # type: ignore[arg-type]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(choose, range(1, 25)))
    events = told.list(EventFilter(key=MODEL))
    validated = [event.value for event in events if event.type == "MODEL_VALIDATED"]
    assert sorted(validated, key=int) == [str(number) for number in range(1, 25)]
    assert [event.value for event in events if event.type == "MODEL_DEPRECATED"] == validated[:-1]
    champion = center.champion()
    assert champion is not None
    assert champion.version == validated[-1]


def test_of_many_who_change_one_version_one_wins(options: PostgresOptions) -> None:
    def change(number: int) -> bool:
        with closing(PostgresMetadataStore(options)) as store:
            try:
                store.put_entity(Entity(kind="projects", name="p", body={"description": str(number)}), expected=1)
            except MetadataConflict:
                return False
            return True

    with closing(PostgresMetadataStore(options)) as store:
        store.put_entity(Entity(kind="projects", name="p", body={}))
        with ThreadPoolExecutor(6) as pool:
            won = [number for number, outcome in enumerate(pool.map(change, range(12))) if outcome]
        (standing,) = store.entities("projects", name="p")
    assert len(won) == 1
    assert (standing.version, standing.body) == (2, {"description": str(won[0])})


def test_a_run_that_was_killed_is_failed_by_the_next_of_its_job(options: PostgresOptions) -> None:
    with closing(PostgresMetadataStore(options)) as store:
        store.start_run(JobRun(run_id="r1", job="train-incremental", kind="endless", started_ms=1))
        made = JobRun(run_id="r2", job="train-incremental", kind="endless", started_ms=2, snapshot="5n4p")
        seen = []

        def work() -> None:
            with recorded(lambda: PostgresMetadataStore(options), made, clock=REAL, alone=True):
                seen.extend([store.run("r1"), store.run("r2")])
                raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            work()
        ended = store.run("r2")
    first, second = seen
    assert first is not None
    assert second is not None
    assert ended is not None
    assert (first.state, second.state, second.snapshot) == ("failed", "running", "5n4p")
    assert (ended.state, ended.context["reason"]) == ("failed", "ValueError: broken")
