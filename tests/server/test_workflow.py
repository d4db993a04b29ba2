"""The scheduler on a real PostgreSQL, killed while events flow: each expected start happens exactly once."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from actors.workflow_log import occurred, sending
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification import NewEvent, PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.workflow.postgres import PostgresWorkflowStore
from rtrec_ray.workflow.conditions import Count, EventIs, Sequence
from rtrec_ray.workflow.definition import Workflow
from tests.conftest import Eventually
from tests.workflow_desk import node, on, workflow
from tests.workflow_reference import firings

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
A, B = EventIs(key="a"), EventIs(key="b")


def example() -> Workflow:
    rules = (
        on("one", EventIs(key="c"), node="one"),
        on("pair", Sequence(terms=(A, B)), node="pair"),
        on("third", Count(n=3, term=A), node="third"),
    )
    return workflow((node("one"), node("pair"), node("third", retries=1)), rules)


class Schedulers:
    """Two processes: one decides, the other waits for its lease; both are killed again and again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._processes = [self._start(), self._start()]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tests.server.workflow_worker", self._dsn], cwd=ROOT)

    def kill(self, rng: random.Random) -> None:
        at = rng.randrange(2)
        self._processes[at].kill()
        self._processes[at].wait()
        self._processes[at] = self._start()

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def schedulers(dsn: str) -> Iterator[Schedulers]:
    made = Schedulers(dsn)
    yield made
    made.end()


@pytest.mark.parametrize(
    ("kills", "count"), [pytest.param(3, 240, id="3"), pytest.param(50, 2_000, id="50", marks=pytest.mark.soak)]
)
def test_each_expected_start_happens_once_however_often_the_scheduler_is_killed(
    dsn: str, schedulers: Schedulers, kills: int, count: int, eventually: Eventually
) -> None:
    options, rng = PostgresOptions(dsn=dsn), random.Random(kills)
    with (
        closing(PostgresNotificationStore(options)) as log,
        closing(PostgresWorkflowStore(options, sending(log))) as store,
    ):
        store.apply(example())
        eventually(lambda: store.load().workflows, what="a scheduler took the workflow")
        for number in range(count):
            log.send(NewEvent(key=rng.choice("aabcdddddd"), value=str(number)))
            if (number + 1) % (count // kills) == 0:
                # In the middle of what it does: as soon as it has begun to act on the last event, or a little later.
                seen = log.end_offset() - rng.randrange(10)
                eventually(lambda at=seen: store.load().position >= at, what="a scheduler reads on")
                schedulers.kill(rng)
        eventually(lambda: _quiet(store, log), what="all is done")
        schedulers.end()
        events = [occurred(event) for event in log.list(after_offset=0, limit=100_000)]
        expected = Counter({rule.name: len(firings(rule.when, events)) for rule in example().rules})
        assert _starts(options) == expected
        assert sum(expected.values()) > count / 10
        begun = Counter(event.value for event in events if event.type == "JOB_STARTED")
        assert set(begun.values()) == {1}, "no run was begun twice"
        assert _unstarted(options) == 0


def _quiet(store: PostgresWorkflowStore, log: PostgresNotificationStore) -> bool:
    with suppress(StoreUnavailable):
        loaded = store.load()
        nodes = [state for flow in loaded.workflows.values() for state in flow.nodes.values()]
        waiting = any(state.run or state.waiting or state.retry_wall_ms for state in nodes)
        return loaded.position == log.end_offset() and not waiting and not store.runs_going()
    return False


def _starts(options: PostgresOptions) -> Counter[str]:
    with closing(connect(options)) as connection, transaction(connection) as cur:
        cur.execute(
            "SELECT cause->>'rule', count(*) FROM meta.workflow_orders"
            " WHERE do_what = 'start' AND cause->>'rule' <> 'retry' GROUP BY 1"
        )
        return Counter(dict(cur.fetchall()))


def _unstarted(options: PostgresOptions) -> int:
    with closing(connect(options)) as connection, transaction(connection) as cur:
        cur.execute("SELECT count(*) FROM meta.workflow_runs WHERE started_at IS NULL OR ended_at IS NULL")
        (count,) = cur.fetchone() or (0,)
    return int(count)
