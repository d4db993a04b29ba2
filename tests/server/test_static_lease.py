"""The lease of a run over the static features: kept however long a step takes, lost by a run that stands still."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from rtrec_ray.errors import LeaseHeld
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.static.postgres import PostgresStaticFeatures
from tests.conftest import Eventually

pytestmark = pytest.mark.server

LEASE_MS = 900
DAY = dt.date(2026, 1, 1)
RUN = f"""
import datetime as dt, sys
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.static.postgres import PostgresStaticFeatures
with PostgresStaticFeatures(PostgresOptions(dsn=sys.argv[1]), lease_ms={LEASE_MS}).begin("stopped") as correction:
    print("begun", flush=True)
    sys.stdin.readline()
    correction.replace([dt.date(2026, 1, 1)])
    print("written", flush=True)
"""


@pytest.fixture
def store(dsn: str) -> Iterator[PostgresStaticFeatures]:
    with closing(PostgresStaticFeatures(PostgresOptions(dsn=dsn), lease_ms=LEASE_MS)) as made:
        yield made


def test_a_step_that_takes_longer_than_the_lease_keeps_it(store: PostgresStaticFeatures) -> None:
    with store.begin("slow") as correction:
        with correction._fenced() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", (3 * LEASE_MS / 1_000,))
            with pytest.raises(LeaseHeld, match="slow"), store.begin("next"):
                pass
        correction.replace([DAY])


def test_a_run_that_stands_still_is_followed_by_another_and_writes_nothing_when_it_wakes(
    store: PostgresStaticFeatures, dsn: str, eventually: Eventually
) -> None:
    words = [sys.executable, "-c", RUN, dsn]
    run = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        with pytest.raises(LeaseHeld, match="stopped"), store.begin("next"):
            pass
        run.send_signal(signal.SIGSTOP)
        eventually(lambda: _publishes(store), what="the next run takes over")
        run.send_signal(signal.SIGCONT)
        said, why = run.communicate("go on\n", timeout=60)
    finally:
        run.kill()
        run.wait()
    assert said == ""
    assert run.returncode != 0
    assert "LeaseLost" in why or "StoreUnavailable" in why
    assert store.static("user", [1]).as_of_day == DAY


def _publishes(store: PostgresStaticFeatures) -> bool:
    try:
        with store.begin("next") as correction:
            correction.publish(DAY)
    except LeaseHeld:
        return False
    return True
