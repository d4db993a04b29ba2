"""The static features by Ray Data, on a real history and a real PostgreSQL, with the process of a run killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.jobs import static_features as job
from actors.jobs.static_features import RayCounting, StaticOptions, correct_static_features
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.daily import DAY_MS, ENTITIES
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import HistoryFile
from rtrec_ray.stores.static.postgres import PostgresCorrection, PostgresStaticFeatures
from rtrec_ray.stores.static.run import RunOrder
from tests.daily_events import Event, day, event, plain_counts, plain_values, random_events, retraction, write

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]

LAST = day(8)
ORDER = RunOrder(owner="test", complete=LAST)


@pytest.fixture
def options(dsn: str, tmp_path: Path, ray_local: None) -> StaticOptions:
    return StaticOptions(postgres=PostgresOptions(dsn=dsn), history_uri=str(tmp_path), rows_per_task=400)


def come(options: StaticOptions, events: list[Event], *, first: int = 0) -> list[HistoryFile]:
    files = write(Path(options.history_uri), events, first=first)
    with (
        closing(PostgresHistoryManifest(options.postgres)) as manifest,
        closing(connect(options.postgres)) as session,
        transaction(session) as cursor,
    ):
        manifest.add(cursor, files)
    return files


def values(options: StaticOptions, events: list[Event]) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    with closing(PostgresStaticFeatures(options.postgres)) as store:
        for entity, field in ENTITIES.items():
            keys = sorted({each[field] for each in events if each.get(field) is not None})
            found |= {(entity, key): value for key, value in store.static(entity, keys).values.items() if value}
    return found


class MortalCorrection(PostgresCorrection):
    """Kills its process between the days of a run."""

    def replace(self, days: Any) -> None:
        first, *_ = days
        super().replace([first])
        os.kill(os.getpid(), signal.SIGKILL)


class MortalStore(PostgresStaticFeatures):
    """A store whose run does not survive its first days."""

    @contextmanager
    def begin(self, owner: str) -> Iterator[PostgresCorrection]:
        with super().begin(owner) as correction:
            yield MortalCorrection(correction._connection, correction._lease, portion_rows=1_000)


def die_half_way(options: StaticOptions) -> None:
    job.PostgresStaticFeatures = MortalStore  # type: ignore[misc]  # in a process that is not used again
    correct_static_features(options, ORDER)


def test_a_run_whose_process_is_killed_half_way_is_finished_by_the_next_and_corrected_by_one_more(
    options: StaticOptions,
) -> None:
    events = random_events(4_000, days=9)
    come(options, events)
    killed = ray.remote(num_cpus=0.1, max_retries=0)(die_half_way).remote(options)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(killed)
    assert values(options, events) == {}

    told: list[tuple[int, int]] = []
    report = correct_static_features(options, ORDER, lambda done, total: told.append((done, total)))
    assert report.days == tuple(day(at) for at in range(1, 9))  # the first was done
    assert values(options, events) == plain_values(plain_counts(events), as_of_day=LAST)
    assert told[-1][0] == told[-1][1] > 3_000

    late = [event("late", "click", at_ms=3 * DAY_MS, user=5), retraction(events[2_900], after_ms=3 * DAY_MS)]
    come(options, late, first=len(events))
    again = correct_static_features(options, ORDER)
    assert day(3) in again.days
    assert len(again.days) <= 3
    assert values(options, events) == plain_values(plain_counts([*events, *late]), as_of_day=LAST)
    assert correct_static_features(options, ORDER).days == ()


def test_a_file_that_is_gone_is_named_by_the_error_of_the_run(options: StaticOptions) -> None:
    files = come(options, random_events(50, days=1))
    os.unlink(Path(options.history_uri) / files[0].path)
    with pytest.raises(StoreUnavailable, match=r"topic=behavior.*\.parquet"):
        correct_static_features(options, ORDER)
    with closing(PostgresHistoryManifest(options.postgres)) as manifest:
        assert manifest.files(BEHAVIOR)
    assert list(RayCounting(options).counts([])) == []
