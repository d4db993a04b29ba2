"""The scheduler under any interleaving of events, jobs, requests, time, commits, crashes: each order is given once."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtrec_ray.clock import ManualClock
from rtrec_ray.notification import NewEvent
from rtrec_ray.workflow.conditions import AllOf, Count, EventIs, Sequence, StatusIs, Within
from rtrec_ray.workflow.definition import Action, Rule, Sending, Workflow
from rtrec_ray.workflow.events import NODE_REQUESTED, WHOLE, WORKFLOW_REQUESTED, Announcement
from rtrec_ray.workflow.nodes import NodeState
from rtrec_ray.workflow.scheduler import Scheduler
from rtrec_ray.workflow.stimuli import Occurred
from tests.workflow_desk import Desk, node, on, workflow
from tests.workflow_reference import firings

A, B = EventIs(key="a"), EventIs(key="b")
CONDITIONS = (
    A,
    AllOf(terms=(A, B)),
    Sequence(terms=(A, B)),
    Count(n=2, term=A),
    Within(ms=3, term=Sequence(terms=(A, B))),
)
NODES = ("n", "m", "retried", "endless")
TELL = Rule(
    name="tell", when=Count(n=2, term=A), then=(Action(do="send", event=Sending(type="TOLD", key="tell", value="x")),)
)


def example() -> Workflow:
    """Batch nodes whose starts must all be carried out; one with retries; an endless one; two run at a time."""
    rules = [on(f"n{i}", condition, node="n") for i, condition in enumerate(CONDITIONS)]
    rules += [on("m", B, node="m"), on("again", EventIs(key="c"), node="retried")]
    rules += [on("once", Count(n=3, term=B), node="m", once=True)]
    rules += [on("up", A, node="endless"), on("down", EventIs(key="d"), do="stop", node="endless")]
    rules += [TELL, on("after", StatusIs(node="n", states=("succeeded",)), node="retried")]
    nodes = (node("n"), node("m"), node("retried", retries=2, backoff_ms=5), node("endless", kind="endless"))
    return workflow(nodes, tuple(rules), concurrency=2)


class Interleavings(RuleBasedStateMachine):
    """One log and one store; a scheduler that is thrown away at any moment, and jobs that know only the store."""

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock(now_ms=1_000)
        self.desk = Desk(self.clock)
        self.desk.store.apply(example())
        self.applied = 1
        self.session = None
        self.crash()
        self.the_scheduler_reads(count=1, commits=True)

    def _now(self) -> dict[str, int]:
        return {"now_ms": self.clock.now_ms(), "wall_ms": self.clock.now_ms()}

    @rule(keys=st.lists(st.sampled_from("aaabbcd"), min_size=1, max_size=4))
    def events_are_sent(self, keys: list[str]) -> None:
        for key in keys:
            self.desk.log.send(NewEvent(key=key, value=""))

    @rule(value=st.sampled_from(["pause", "resume", "apply"]))
    def a_request_of_the_workflow(self, value: str) -> None:
        if value == "apply":
            self.desk.store.apply(example())
        else:
            self.desk.store.request(Announcement(type=WORKFLOW_REQUESTED, key=WHOLE, value=value, workflow="w"))

    @rule(value=st.sampled_from(["start", "restart"]))
    def a_request_of_a_node(self, value: str) -> None:
        self.desk.store.request(Announcement(type=NODE_REQUESTED, key="endless", value=value, workflow="w"))

    @rule(ms=st.integers(0, 4))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(count=st.integers(1, 6), commits=st.booleans())
    def the_scheduler_reads(self, count: int, commits: bool) -> None:
        for event in self.desk.events(self.scheduler.position)[:count]:
            self.scheduler.know(example())
            self.scheduler.handle(event, **self._now())
        if commits:
            self.session.commit(self.scheduler.changes())

    @rule()
    def the_scheduler_looks_at_the_clock(self) -> None:
        self.scheduler.tick(**self._now())

    @rule()
    def the_scheduler_commits(self) -> None:
        self.session.commit(self.scheduler.changes())

    @rule()
    def crash(self) -> None:
        """What was not committed is gone."""
        if self.session is not None:
            self.session.close()
        loaded = self.desk.store.load()
        self.session = self.desk.store.open_session(owner="test", ttl_ms=10**9)
        self.scheduler = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)

    @precondition(lambda self: self.desk.store.runs_going())
    @rule(pick=st.integers(0, 9), end=st.sampled_from(["succeeded", "failed", "stopped", None]))
    def a_job_claims_or_ends(self, pick: int, end: str | None) -> None:
        runs = self.desk.store.runs_going()
        run = runs[pick % len(runs)]
        if end is None:
            self.desk.store.claim(run.run_id, owner=str(pick))
        elif run.state == "running":
            self.desk.store.finish(run.run_id, end)  # type: ignore[arg-type]

    @precondition(lambda self: self.desk.store.open_orders())
    @rule()
    def an_order_is_carried_out(self) -> None:
        order = self.desk.store.open_orders()[0]
        if order.do == "stop":
            self.desk.store.request_stop(order.run)
        self.desk.store.carried(order.id)

    @invariant()
    def each_meeting_has_its_one_start(self) -> None:
        """Starts given plus starts that wait are just the meetings in the log that is behind the stored position."""
        loaded = self.desk.store.load()
        if "w" not in loaded.workflows:
            return
        seen = [e for e in self.desk.events() if self.applied < e.offset <= loaded.position]
        counted = Counter(order.cause.rule for order in self.desk.store.orders.values() if order.do == "start")
        for state in loaded.workflows["w"].nodes.values():
            counted.update(cause.rule for cause in state.waiting)
        for each in example().rules:
            if each.then[0].node in ("n", "m"):
                assert counted[each.name] == _expected(each, seen), each.name

    @invariant()
    def each_meeting_has_its_one_event(self) -> None:
        """Sent at once, or in a pause held; of those held the newest is sent when the workflow is resumed."""
        loaded = self.desk.store.load()
        if "w" not in loaded.workflows:
            return
        seen = [e for e in self.desk.events() if self.applied < e.offset <= loaded.position]
        meetings = {firing.at for firing in firings(TELL.when, seen)}
        sent, held, paused = 0, False, False
        for at, event in enumerate(seen):
            if event.type == WORKFLOW_REQUESTED and event.value != "apply":
                paused = event.value == "pause"
                sent, held = sent + (held and not paused), held and paused
            elif at in meetings:
                sent, held = sent + (not paused), held or paused
        assert sum(event.type == "TOLD" for event in self.desk.events()) == sent
        assert len(loaded.workflows["w"].state.held) == held

    @invariant()
    def no_node_has_two_runs_and_no_more_go_on_than_may(self) -> None:
        going = Counter(run.node for run in self.desk.store.runs_going())
        assert all(count == 1 for count in going.values())
        assert sum(count for name, count in going.items() if name != "endless") <= 2

    @invariant()
    def a_paused_workflow_starts_nothing_by_a_rule(self) -> None:
        flow = self.desk.store.load().workflows.get("w")
        paused = flow is not None and flow.state.paused
        starts = sum(o.do == "start" and not o.cause.manual for o in self.desk.store.orders.values())
        was_paused, before = getattr(self, "_paused", (False, 0))
        if paused and was_paused:
            resumed = self.desk.events(getattr(self, "_position", 0))
            if not any(event.value == "resume" for event in resumed):
                assert starts == before
        self._paused, self._position = (paused, starts), self.desk.store.load().position

    @invariant()
    def a_node_is_what_its_runs_say(self) -> None:
        """Once the whole log is read and stored, a node's run is the one that goes on in the store."""
        loaded = self.desk.store.load()
        if "w" not in loaded.workflows or loaded.position < self.desk.log.end_offset():
            return
        going = {run.node: run.run_id for run in self.desk.store.runs_going()}
        assert {name: state.run for name, state in loaded.workflows["w"].nodes.items()} == {
            name: going.get(name) for name in NODES
        }


def _expected(rule: Rule, seen: list[Occurred]) -> int:
    met = len(firings(rule.when, seen))
    return min(met, 1) if rule.once else met


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(stateful_step_count=60, suppress_health_check=list(HealthCheck), deadline=None)


ROUND = st.tuples(st.sampled_from(["apply", "remove"]), st.sampled_from("abc"), st.sampled_from(["commit", "crash"]))


@given(rounds=st.lists(st.tuples(ROUND, st.sampled_from(["", "end", "crash"])), max_size=12))
def test_a_workflow_that_comes_and_goes_stops_its_runs_and_takes_no_number_twice(
    rounds: list[tuple[tuple[str, ...], str]],
) -> None:
    steps = [step for begun, ended in rounds for step in (*begun, ended) if step]
    desk, scheduler, in_force = Desk(ManualClock(now_ms=1_000)), Scheduler(), False
    with closing(desk.store.open_session(owner="test", ttl_ms=10**9)) as session:
        for step in [*steps, "commit"]:
            in_force = step == "apply" or (in_force and step != "remove")
            if step == "crash":
                loaded = desk.store.load()
                scheduler = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)
            elif step == "commit":
                scheduler.know(example())
                for event in desk.events(scheduler.position):
                    scheduler.handle(event, now_ms=1_000, wall_ms=1_000)
                session.commit(scheduler.changes())  # raises when a run's number comes twice
            else:
                _do(desk, step)
    flows = desk.store.load().workflows
    assert list(flows) == ["w"] * in_force
    current = {state.run for flow in flows.values() for state in flow.nodes.values()}
    for run in desk.store.runs_going():
        assert run.run_id in current or f"{run.run_id}.stop" in desk.store.orders


def _do(desk: Desk, step: str) -> None:
    if step == "apply":
        desk.store.apply(example())
    elif step == "remove":
        desk.store.request(Announcement(type=WORKFLOW_REQUESTED, key=WHOLE, value=step, workflow="w"))
    elif step == "end":
        for run in desk.store.runs_going()[:1]:
            desk.store.finish(run.run_id, "succeeded")
    else:
        desk.log.send(NewEvent(key=step, value=""))


@given(
    keys=st.lists(st.sampled_from("aaabbcd"), max_size=30),
    ticks=st.sets(st.integers(0, 29)),
    crashes=st.sets(st.integers(0, 29)),
)
def test_the_index_ticks_and_restarts_change_no_decision(keys: list[str], ticks: set[int], crashes: set[int]) -> None:
    """One scheduler asks every rule about everything and never stops; the other is indexed, told time, restarted."""
    plain, other = _decided(keys, set(), set(), indexed=False), _decided(keys, ticks, crashes, indexed=True)
    assert plain == other


def _decided(keys: list[str], ticks: set[int], crashes: set[int], *, indexed: bool) -> object:
    clock = ManualClock(now_ms=1_000)
    desk = Desk(clock)
    desk.store.apply(example())
    for number, key in enumerate(keys):
        clock.advance(number % 3)
        desk.log.send(NewEvent(key=key, value=""))
    scheduler, orders = Scheduler(indexed=indexed), []
    scheduler.know(example())
    for number, event in enumerate(desk.events()):
        if number in crashes:
            scheduler = Scheduler(
                position=scheduler.position, time_ms=scheduler.time_ms, workflows=scheduler.saved(), indexed=indexed
            )
            scheduler.know(example())
        if number in ticks:
            scheduler.tick(now_ms=scheduler.time_ms, wall_ms=5_000)
        scheduler.handle(event, now_ms=2_000, wall_ms=5_000)
        orders += scheduler.changes().orders
    saved = scheduler.saved()["w"]
    return orders, dict(saved.nodes), {name: each.state for name, each in saved.rules.items()}


def test_a_node_state_makes_the_trip_through_json() -> None:
    state = NodeState(state="running", run="w.n.1", number=1)
    assert msgspec.convert(msgspec.to_builtins(state), NodeState) == state


def test_a_stranger_cannot_end_a_run() -> None:
    desk = Desk(ManualClock(now_ms=1_000))
    desk.store.apply(example())
    desk.log.send(NewEvent(key="a", value=""))
    desk.log.send(NewEvent(key="n", value="w.n.1", type="JOB_SUCCEEDED", namespace="w", sender="somebody"))
    scheduler = Scheduler()
    scheduler.know(example())
    for event in desk.events():
        scheduler.handle(event, now_ms=1_000, wall_ms=1_000)
    assert scheduler.saved()["w"].nodes["n"].run == "w.n.1"


def test_an_event_that_comes_again_is_not_acted_on_again() -> None:
    desk = Desk(ManualClock(now_ms=1_000))
    desk.store.apply(example())
    desk.log.send(NewEvent(key="b", value=""))
    scheduler = Scheduler()
    scheduler.know(example())
    for event in [*desk.events(), *desk.events()]:
        scheduler.handle(event, now_ms=1_000, wall_ms=1_000)
    assert [order.id for order in scheduler.changes().orders] == ["w.m.1"]
    assert scheduler.saved()["w"].nodes["m"].waiting == ()


def test_no_more_batch_runs_go_on_than_may() -> None:
    desk = Desk(ManualClock(now_ms=1_000))
    desk.store.apply(example())
    for key in "abc":
        desk.log.send(NewEvent(key=key, value=""))
    scheduler = Scheduler()
    scheduler.know(example())
    for event in desk.events():
        scheduler.handle(event, now_ms=1_000, wall_ms=1_000)
    assert [order.node for order in scheduler.changes().orders] == ["n", "endless", "m"]
    assert scheduler.saved()["w"].nodes["retried"].state == "queued"


def test_a_rule_that_counts_once_acts_once() -> None:
    desk = Desk(ManualClock(now_ms=1_000))
    once = workflow((node("n"),), (on("r", A, once=True),))
    desk.store.apply(once)
    for _ in range(3):
        desk.log.send(NewEvent(key="a", value=""))
    scheduler = Scheduler()
    scheduler.know(once)
    for event in desk.events():
        scheduler.handle(event, now_ms=1_000, wall_ms=1_000)
    saved = scheduler.saved()["w"]
    assert (len(scheduler.changes().orders), saved.rules["r"].met, saved.nodes["n"].waiting) == (1, 1, ())
