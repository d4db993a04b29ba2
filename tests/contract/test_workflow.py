"""Every workflow store keeps these laws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import pytest

from actors.workflow_log import occurred, sending
from rtrec_ray.clock import REAL
from rtrec_ray.errors import DefinitionInvalid, LeaseHeld, LeaseLost
from rtrec_ray.notification import MemoryNotificationStore, NewEvent, NotificationStore, PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.workflow.memory import MemoryWorkflowStore
from rtrec_ray.stores.workflow.postgres import PostgresWorkflowStore
from rtrec_ray.stores.workflow.store import WorkflowStore
from rtrec_ray.workflow.conditions import Absence, EventIs, Schedule, Sequence, StatusIs
from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.events import WHOLE, WORKFLOW_REQUESTED, Announcement
from rtrec_ray.workflow.nodes import Order
from rtrec_ray.workflow.scheduler import Scheduler
from tests.workflow_desk import node, on, workflow

A, B = EventIs(key="a"), EventIs(key="b")
TTL_MS = 60_000


@dataclass(frozen=True)
class Desk:
    log: NotificationStore
    store: WorkflowStore

    def send(self, *keys: str) -> None:
        for key in keys:
            self.log.send(NewEvent(key=key, value=""))

    def types(self) -> list[str]:
        return [event.type for event in self.log.list(after_offset=0) if event.type.startswith("JOB_")]

    def scheduler(self, definition: Workflow) -> Scheduler:
        loaded = self.store.load()
        made = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)
        made.know(definition)
        return made

    def read(self, scheduler: Scheduler) -> None:
        for event in self.log.list(after_offset=scheduler.position, limit=1_000):
            scheduler.handle(occurred(event), now_ms=event.time_ms, wall_ms=0)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    log: NotificationStore
    store: WorkflowStore
    if request.param == "memory":
        log = MemoryNotificationStore(clock=REAL)
        store = MemoryWorkflowStore(sending(log))
    else:
        options = PostgresOptions(dsn=request.getfixturevalue("dsn"))
        log = PostgresNotificationStore(options)
        store = PostgresWorkflowStore(options, sending(log))
    with closing(log), closing(store):
        yield Desk(log=log, store=store)


def example() -> Workflow:
    rules = (
        on("go", A),
        on("both", Sequence(terms=(A, B)), node="m"),
        on("quiet", Absence(ms=10**9, term=B), node="m"),
        on("daily", Schedule(every_ms=10**12), node="m"),
        on("then", StatusIs(node="n", states=("failed",)), node="m"),
    )
    return workflow((node("n", heartbeat_ms=500, kind="endless"), node("m")), rules)


def _start(desk: Desk) -> Order:
    """Apply, send an event, and commit what follows: one start of n."""
    desk.store.apply(example())
    desk.send("a")
    scheduler = desk.scheduler(example())
    desk.read(scheduler)
    with closing(desk.store.open_session(owner="test", ttl_ms=TTL_MS)) as session:
        session.commit(scheduler.changes())
    (order,) = desk.store.open_orders()
    return order


def test_what_was_committed_comes_back_whole(desk: Desk) -> None:
    desk.store.apply(example())
    desk.send("a", "c", "b", "a")
    scheduler = desk.scheduler(example())
    desk.read(scheduler)
    saved, position, time_ms = scheduler.saved(), scheduler.position, scheduler.time_ms
    with closing(desk.store.open_session(owner="test", ttl_ms=TTL_MS)) as session:
        session.commit(scheduler.changes())
    loaded = desk.store.load()
    assert (loaded.workflows, loaded.position, loaded.time_ms) == (saved, position, time_ms)
    assert desk.store.definition(example().digest) == example()
    assert desk.store.definition("none") is None


def test_a_new_content_is_a_new_version_and_the_old_one_stays(desk: Desk) -> None:
    other = workflow((node("n"),), ())
    assert [desk.store.apply(each) for each in (example(), other, example())] == [1, 2, 1]
    assert [event.value for event in desk.log.list()] == ["apply"] * 3
    with pytest.raises(DefinitionInvalid, match='unknown node "x"'):
        desk.store.apply(workflow((node("n"),), (on("r", A, node="x"),)))


def test_rules_and_nodes_that_are_no_longer_defined_are_gone(desk: Desk) -> None:
    _start(desk)
    smaller = workflow((node("m"),), (on("both", Sequence(terms=(A, B)), node="m"),))
    desk.store.apply(smaller)
    scheduler = desk.scheduler(smaller)
    desk.read(scheduler)
    with closing(desk.store.open_session(owner="test", ttl_ms=TTL_MS)) as session:
        session.commit(scheduler.changes())
    saved = desk.store.load().workflows["w"]
    assert (set(saved.rules), set(saved.nodes), saved.definition) == ({"both"}, {"m"}, smaller)
    assert saved.rules["both"].state["attempts"], "a rule that is kept keeps what it has seen"
    assert [order.do for order in desk.store.open_orders()] == ["start", "stop"]


def test_a_node_that_is_defined_again_has_runs_of_its_own(desk: Desk) -> None:
    first = _start(desk)
    for definition in (workflow((node("m"),), ()), example()):
        desk.store.apply(definition)
    desk.send("a")
    scheduler = desk.scheduler(example())
    scheduler.know(workflow((node("m"),), ()))
    desk.read(scheduler)
    with closing(desk.store.open_session(owner="test", ttl_ms=TTL_MS)) as session:
        session.commit(scheduler.changes())
    orders = [order for order in desk.store.open_orders() if order.node == "n"]
    assert [(order.do, order.run == first.run) for order in orders] == [
        ("start", True),
        ("stop", True),
        ("start", False),
    ]


def test_a_workflow_that_is_removed_is_gone_and_comes_back_as_a_new_one(desk: Desk) -> None:
    first = _start(desk)
    written = []
    desk.store.request(_removal(), also=written.append)
    assert len(written) == 1
    _read_and_commit(desk)
    assert desk.store.load().workflows == {}
    assert [(order.do, order.run) for order in desk.store.open_orders()] == [("start", first.run), ("stop", first.run)]
    desk.store.apply(example())
    desk.send("a")
    _read_and_commit(desk)
    again = desk.store.open_orders()[-1]
    assert (again.node, again.kind, again.run != first.run) == ("n", "endless", True)


def test_what_is_written_with_a_definition_is_there_if_and_only_if_that_is(desk: Desk) -> None:
    def fail(_cursor: object) -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError):
        desk.store.apply(example(), also=fail)
    with pytest.raises(RuntimeError):
        desk.store.request(_removal(), also=fail)
    assert desk.log.list() == ()
    written = []
    assert desk.store.apply(example(), also=written.append) == len(written) == 1


def _removal() -> Announcement:
    return Announcement(type=WORKFLOW_REQUESTED, key=WHOLE, value="remove", workflow="w")


def _read_and_commit(desk: Desk) -> None:
    loaded = desk.store.load()
    scheduler = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)
    scheduler.know(example())
    desk.read(scheduler)
    with closing(desk.store.open_session(owner="test", ttl_ms=TTL_MS)) as session:
        session.commit(scheduler.changes())


def test_an_order_is_open_until_it_is_noted_as_carried_out(desk: Desk) -> None:
    order = _start(desk)
    assert (order.id, order.do, order.node, order.command) == ("w.n.1", "start", "n", ("true",))
    assert (order.cause.rule, order.cause.by) == ("go", (2,))
    desk.store.carried(order.id)
    assert desk.store.open_orders() == ()


def test_an_order_that_comes_twice_commits_nothing(desk: Desk) -> None:
    _start(desk)
    desk.send("x")
    stale = Scheduler()
    stale.know(example())
    desk.read(stale)
    session = desk.store.open_session(owner="test", ttl_ms=TTL_MS)
    with pytest.raises(Exception, match=r"twice|duplicate"):
        session.commit(stale.changes())
    session.close()
    assert desk.store.load().position == 2


def test_one_scheduler_acts_and_one_that_was_replaced_commits_nothing(desk: Desk) -> None:
    old = desk.store.open_session(owner="old", ttl_ms=TTL_MS)
    with pytest.raises(LeaseHeld):
        desk.store.open_session(owner="new", ttl_ms=TTL_MS)
    old.close()
    old = desk.store.open_session(owner="old", ttl_ms=0)
    new = desk.store.open_session(owner="new", ttl_ms=TTL_MS)
    scheduler = desk.scheduler(example())
    desk.store.apply(example())
    desk.read(scheduler)
    with pytest.raises(Exception) as refused:  # noqa: PT011 - PostgreSQL has ended the old one's session besides
        old.commit(scheduler.changes())
    assert type(refused.value).__name__ in ("LeaseLost", "StoreUnavailable")
    assert desk.store.load().workflows == {}
    new.renew()
    new.close()
    with suppress(LeaseLost):
        old.close()


def test_of_many_jobs_one_claims_a_run_and_every_change_tells_once(desk: Desk) -> None:
    order = _start(desk)
    claims = [desk.store.claim(order.run, owner=f"job-{i}") for i in range(3)]
    assert [claim is not None for claim in claims] == [True, False, False]
    assert claims[0] is not None
    assert desk.store.claim(order.run, owner="job-0") == claims[0], "it may not have heard"
    assert (claims[0].node, claims[0].command) == ("n", ("true",))
    assert not desk.store.finish(order.run, "failed", owner="job-1"), "another's run"
    ends = [desk.store.finish(order.run, "succeeded", owner="job-0") for _ in range(2)]
    assert ends == [True, False]
    assert not desk.store.finish(order.run, "failed"), "it is over"
    assert desk.store.claim(order.run, owner="job-9") is None
    assert desk.types() == ["JOB_STARTED", "JOB_SUCCEEDED"]
    told = desk.log.list()[-1]
    assert (told.key, told.value, told.namespace) == ("n", "w.n.1", "w")


def test_a_run_that_nobody_claimed_is_stopped_at_once_and_for_good(desk: Desk) -> None:
    order = _start(desk)
    desk.store.request_stop(order.run)
    desk.store.request_stop(order.run)
    assert desk.store.claim(order.run, owner="job") is None
    assert desk.types() == ["JOB_STOPPED"]
    assert desk.store.runs_going() == ()


def test_a_running_job_hears_from_its_heartbeat_that_it_is_to_end(desk: Desk) -> None:
    order = _start(desk)
    assert not desk.store.beat(order.run, owner="job"), "not claimed"
    desk.store.claim(order.run, owner="job")
    assert desk.store.beat(order.run, owner="job")
    assert not desk.store.beat(order.run, owner="another")
    desk.store.request_stop(order.run)
    assert not desk.store.beat(order.run, owner="job")
    (run,) = desk.store.runs_going()
    assert (run.state, run.stop_requested, run.owner, run.heartbeat_ms) == ("running", True, "job", 500)
    assert 0 <= run.silent_ms < TTL_MS
    desk.store.finish(order.run, "stopped", reason="asked")
    (run,) = desk.store.runs_of("w", "n")
    assert (run.state, run.reason) == ("stopped", "asked")
    assert desk.store.runs_of("w", "m") == ()
