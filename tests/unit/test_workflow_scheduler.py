"""The scheduler's shell on a log, a store and jobs in memory; nodes' own laws; the job around a command."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from actors.job_runner import MemoryJobRunner
from actors.scheduler import SchedulerLoop, SchedulerOptions
from actors.workflow_job import JobOptions, run_job
from rtrec_ray.clock import REAL, ScaledClock
from rtrec_ray.metadata import MemoryMetadataStore
from rtrec_ray.metadata.base import JobRun
from rtrec_ray.metadata.recording import NODE_RUN, recorded
from rtrec_ray.notification import NewEvent
from rtrec_ray.workflow.conditions import EventIs, Schedule, WatermarkAt
from rtrec_ray.workflow.definition import Action, Rule, Workflow
from rtrec_ray.workflow.events import JOB_FAILED, JOB_STARTED, NODE_REQUESTED, WHOLE, WORKFLOW_REQUESTED, Announcement
from rtrec_ray.workflow.nodes import Cause, NodeState, ask, give, look, report, silent
from tests.conftest import Eventually
from tests.workflow_desk import Desk, node, on, workflow

QUICK = SchedulerOptions(tick_every_s=0.01, look_every_s=0.01, lost_after_ms=50)
A = EventIs(key="a")


@pytest.fixture
def desk() -> Desk:
    return Desk(REAL)


@contextmanager
def running(desk: Desk, runner: MemoryJobRunner, **more: object) -> Iterator[SchedulerLoop]:
    loop = SchedulerLoop(desk.store, desk.log, runner, clock=REAL, options=QUICK, **more)  # type: ignore[arg-type]
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    try:
        yield loop
    finally:
        stop.set()
        thread.join()


def _state(desk: Desk, name: str) -> str:
    flow = desk.store.load().workflows.get("w")
    return "" if flow is None else flow.nodes[name].state


def _types(desk: Desk, key: str) -> list[str]:
    return [event.type for event in desk.events() if event.key == key]


def _ask(desk: Desk, value: str, key: str = WHOLE) -> None:
    kind = WORKFLOW_REQUESTED if key == WHOLE else NODE_REQUESTED
    desk.store.request(Announcement(type=kind, key=key, value=value, workflow="w"))


def talk() -> Workflow:
    """The talk's example: train → generated → validate → validated → serving started, or reloaded when it runs."""
    validated = EventIs(type="MODEL_VALIDATED")
    nodes = (node("train"), node("validate"), node("serve", kind="endless"), node("reload"))
    rules = (
        on("train", EventIs(type="SAMPLES_COMPLETE"), node="train"),
        on("validate", EventIs(type="MODEL_GENERATED"), node="validate"),
        on("serve", validated, node="serve", only_if={"serve": ("idle", "stopped", "failed")}),
        on("reload", validated, node="reload", only_if={"serve": ("starting", "running")}),
    )
    return workflow(nodes, rules)


def test_the_talks_example_starts_serving_once_and_then_reloads_it(desk: Desk, eventually: Eventually) -> None:
    runner = MemoryJobRunner(desk.store, ends=dict.fromkeys(("train", "validate", "reload"), "succeeded"))
    desk.store.apply(talk())
    with running(desk, runner):
        for version in ("1", "2"):
            desk.log.send(NewEvent(key="samples", value=version, type="SAMPLES_COMPLETE"))
            eventually(lambda v=version: f"w.train.{v}" in runner.claimed)
            desk.log.send(NewEvent(key="model", value=version, type="MODEL_GENERATED"))
            eventually(lambda v=version: f"w.validate.{v}" in runner.claimed)
            desk.log.send(NewEvent(key="model", value=version, type="MODEL_VALIDATED"))
            eventually(lambda: _state(desk, "serve") == "running")
        eventually(lambda: "w.reload.1" in runner.claimed)
        eventually(lambda: _state(desk, "reload") == "succeeded")
    assert sorted(runner.claimed) == sorted(
        ["w.train.1", "w.validate.1", "w.serve.1", "w.train.2", "w.validate.2", "w.reload.1"]
    )


def test_a_failing_job_is_retried_and_then_its_node_fails_with_an_event(desk: Desk, eventually: Eventually) -> None:
    desk.store.apply(workflow((node("n", retries=2, backoff_ms=1),), (on("r", A),)))
    runner = MemoryJobRunner(desk.store, ends={"n": "failed"})
    desk.log.send(NewEvent(key="a", value=""))
    with running(desk, runner):
        eventually(lambda: "NODE_FAILED" in _types(desk, "n"))
        eventually(lambda: _state(desk, "n") == "failed")
    assert runner.claimed == ["w.n.1", "w.n.2", "w.n.3"]
    assert _types(desk, "n") == ["JOB_STARTED", "JOB_FAILED"] * 3 + ["NODE_FAILED"]


def test_a_job_that_the_job_server_lost_is_started_again(desk: Desk, eventually: Eventually) -> None:
    desk.store.apply(workflow((node("n", kind="endless", retries=1, backoff_ms=1),), (on("r", A),)))
    runner = MemoryJobRunner(desk.store)
    desk.log.send(NewEvent(key="a", value=""))
    with running(desk, runner):
        eventually(lambda: _state(desk, "n") == "running")
        runner.lose()
        eventually(lambda: runner.claimed == ["w.n.1", "w.n.2"])
    lost = [event for event in desk.events() if event.type == "JOB_FAILED"]
    assert [event.context["reason"] for event in lost] == ["lost by the job server"]


def test_a_silent_endless_job_is_stopped_and_started_again(desk: Desk, eventually: Eventually) -> None:
    desk.store.apply(workflow((node("n", kind="endless", retries=1, backoff_ms=1, heartbeat_ms=30),), (on("r", A),)))
    runner = MemoryJobRunner(desk.store)
    desk.log.send(NewEvent(key="a", value=""))
    with running(desk, runner):
        eventually(lambda: runner.claimed == ["w.n.1", "w.n.2"])
    stops = [order for order in desk.store.orders.values() if order.do == "stop"]
    assert stops[0].reason == "heartbeat"


def test_a_pause_keeps_events_and_a_request_goes_before_it(desk: Desk, eventually: Eventually) -> None:
    desk.store.apply(workflow((node("n"), node("m")), (on("r", A),)))
    runner = MemoryJobRunner(desk.store, ends={"n": "succeeded", "m": "succeeded"})
    _ask(desk, "pause")
    for _ in range(3):
        desk.log.send(NewEvent(key="a", value=""))
    _ask(desk, "start", key="m")
    with running(desk, runner):
        eventually(lambda: runner.claimed == ["w.m.1"])
        assert _state(desk, "n") == "queued"
        _ask(desk, "resume")
        eventually(lambda: runner.claimed == ["w.m.1", "w.n.1", "w.n.2", "w.n.3"])


def test_a_stopped_workflow_is_woken_by_a_rule_of_another(desk: Desk, eventually: Eventually) -> None:
    wake = Rule(name="wake", when=EventIs(key="wake"), then=(Action(do="start", workflow="w"),))
    desk.store.apply(workflow((node("n", kind="endless"),), (on("r", A),)))
    desk.store.apply(workflow((), (wake,), name="other"))
    runner = MemoryJobRunner(desk.store)
    desk.log.send(NewEvent(key="a", value=""))
    with running(desk, runner):
        eventually(lambda: _state(desk, "n") == "running")
        _ask(desk, "stop")
        eventually(lambda: _state(desk, "n") == "stopped")
        desk.log.send(NewEvent(key="a", value=""))
        desk.log.send(NewEvent(key="wake", value=""))
        eventually(lambda: desk.store.load().workflows["w"].state.active)
        assert _state(desk, "n") == "stopped", "what came while it was stopped is used up"
        desk.log.send(NewEvent(key="a", value=""))
        eventually(lambda: runner.claimed == ["w.n.1", "w.n.2"])


def test_schedules_and_watermarks_start_jobs(desk: Desk, eventually: Eventually) -> None:
    marks = {"samples": 100}
    rules = (
        on("often", Schedule(every_ms=50), node="n", once=True),
        on("reached", WatermarkAt(stage="samples", at_ms=200), node="m"),
    )
    desk.store.apply(workflow((node("n"), node("m")), rules))
    runner = MemoryJobRunner(desk.store, ends={"n": "succeeded", "m": "succeeded"})
    with running(desk, runner, watermarks=lambda: dict(marks)):
        eventually(lambda: runner.claimed == ["w.n.1"])
        marks["samples"] = 250
        eventually(lambda: runner.claimed == ["w.n.1", "w.m.1"])


# --- one node


def _run(of: object, state: NodeState, *, wall_ms: int = 0) -> NodeState:
    asked = ask(of, state, "start", Cause(rule="r"), workflow="w")  # type: ignore[arg-type]
    given = give(of, asked.state, workflow="w", wall_ms=wall_ms)  # type: ignore[arg-type]
    assert given.order is not None
    return report(of, given.state, JOB_STARTED, given.order.run, wall_ms=wall_ms).state  # type: ignore[arg-type]


def test_a_batch_job_over_its_time_is_stopped_and_counts_as_failed() -> None:
    of = node("n", timeout_ms=100, retries=1, backoff_ms=7)
    state = _run(of, NodeState(), wall_ms=1_000)
    assert look(of, state, workflow="w", wall_ms=1_099).order is None
    late = look(of, state, workflow="w", wall_ms=1_100)
    assert late.order is not None
    assert (late.order.id, late.order.reason) == ("w.n.1.stop", "timeout")
    assert look(of, late.state, workflow="w", wall_ms=9_999).order is None
    ended = report(of, late.state, "JOB_STOPPED", "w.n.1", wall_ms=1_200).state
    assert (ended.state, ended.retry_wall_ms, ended.attempt) == ("waiting", 1_207, 1)


def test_backoff_doubles_to_its_limit_and_steady_running_gives_the_retries_back() -> None:
    of = node("n", kind="endless", retries=4, backoff_ms=10, longest_backoff_ms=25, steady_ms=1_000)
    state, waits = _run(of, NodeState()), []
    for _ in range(3):
        state = report(of, state, JOB_FAILED, str(state.run), wall_ms=0).state
        waits.append(state.retry_wall_ms)
        state = look(of, state, workflow="w", wall_ms=50).state
        state = give(of, state, workflow="w", wall_ms=0).state
        state = report(of, state, JOB_STARTED, str(state.run), wall_ms=0).state
    assert (waits, state.attempt) == ([10, 20, 25], 3)
    assert report(of, state, JOB_FAILED, str(state.run), wall_ms=1_000).state.attempt == 1


def test_a_word_of_another_run_changes_nothing() -> None:
    of = node("n")
    state = _run(of, NodeState())
    assert report(of, state, JOB_FAILED, "w.n.0", wall_ms=0).state == state
    assert silent(of, state, "w.n.0", workflow="w").order is None


def test_a_restart_stops_and_starts_once_however_often_it_is_asked() -> None:
    of = node("n", kind="endless")
    state = _run(of, NodeState())
    first = ask(of, state, "restart", Cause(rule="r"), workflow="w")
    second = ask(of, first.state, "restart", Cause(rule="r"), workflow="w")
    assert first.order is not None
    assert (first.order.do, second.order, len(second.state.waiting)) == ("stop", None, 1)


def test_starts_while_a_run_goes_on_are_each_a_run_or_one_more_or_none() -> None:
    for how, waiting in (("queue", 3), ("again", 1), ("skip", 0)):
        of = node("n", if_running=how)
        state = _run(of, NodeState())
        for _ in range(3):
            state = ask(of, state, "start", Cause(rule="r"), workflow="w").state
        assert len(state.waiting) == waiting, how


def test_a_stop_forgets_starts_that_wait_and_retries() -> None:
    of = node("n", retries=3)
    state = report(of, _run(of, NodeState()), JOB_FAILED, "w.n.1", wall_ms=0).state
    done = ask(of, state, "stop", Cause(rule="r"), workflow="w")
    assert (done.order, done.state.state, done.state.retry_wall_ms) == (None, "stopped", None)


# --- the job around a command


@pytest.fixture
def ordered(desk: Desk) -> Callable[..., str]:
    def _order(*command: str) -> str:
        from rtrec_ray.workflow.definition import Node

        desk.store.apply(workflow((Node(name="n", command=command),), (on("r", A),)))
        desk.log.send(NewEvent(key="a", value=""))
        stop = threading.Event()

        class Keep(MemoryJobRunner):
            def start(self, order: object, /) -> None:
                stop.set()

        loop = SchedulerLoop(desk.store, desk.log, Keep(desk.store), clock=ScaledClock(), options=QUICK)
        loop.run(stop)
        return "w.n.1"

    return _order


FAST = JobOptions(beat_every_s=0.02, patience_s=0.2)
SLEEP = "import time\nwhile True: time.sleep(1)"


def test_a_job_says_how_its_command_ended(desk: Desk, ordered: Callable[..., str]) -> None:
    assert run_job(desk.store, ordered(sys.executable, "-c", "raise SystemExit(3)"), options=FAST) == 3
    (run,) = desk.store.runs_of("w", "n")
    assert (run.state, run.reason) == ("failed", "exit code 3")


def test_what_a_job_records_names_the_run_of_its_node(
    desk: Desk, ordered: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = f"import os, sys; sys.exit(os.environ[{NODE_RUN!r}] != 'w.n.1')"
    assert run_job(desk.store, ordered(sys.executable, "-c", told), options=FAST) == 0

    store, run = MemoryMetadataStore(), JobRun(run_id="r", job="train-base", kind="batch", started_ms=0)
    monkeypatch.setenv(NODE_RUN, "w.n.1")
    with recorded(lambda: store, run, clock=REAL) as context:
        context["rows"] = 7
    assert store.run("r").context == {"node_run": "w.n.1", "rows": 7}


def test_a_command_that_is_not_there_fails_with_its_reason(desk: Desk, ordered: Callable[..., str]) -> None:
    assert run_job(desk.store, ordered("/no/such/command"), options=FAST) == 127
    assert "does not start" in desk.store.runs_of("w", "n")[0].reason


def test_a_second_job_for_a_run_does_no_work(desk: Desk, ordered: Callable[..., str]) -> None:
    run = ordered("/no/such/command")
    desk.store.claim(run, owner="first")
    assert run_job(desk.store, run, options=FAST) == 0
    assert desk.store.runs_of("w", "n")[0].state == "running"


def test_a_job_that_is_asked_to_end_ends_its_command(
    desk: Desk, ordered: Callable[..., str], eventually: Eventually
) -> None:
    run = ordered(sys.executable, "-c", f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}")
    job = threading.Thread(target=run_job, args=(desk.store, run), kwargs={"options": FAST})
    job.start()
    eventually(lambda: desk.store.runs_going()[0].state == "running")
    desk.store.request_stop(run)
    job.join(timeout=120)
    assert desk.store.runs_of("w", "n")[0].state == "stopped"


def test_a_scheduler_that_cannot_carry_out_orders_ends(desk: Desk) -> None:
    class Broken(MemoryJobRunner):
        def start(self, order: object, /) -> None:
            raise ZeroDivisionError

    desk.store.apply(workflow((node("n"),), (on("r", A),)))
    desk.log.send(NewEvent(key="a", value=""))
    loop = SchedulerLoop(desk.store, desk.log, Broken(desk.store), clock=REAL, options=QUICK)
    stop = threading.Event()
    with pytest.raises(ZeroDivisionError):
        loop.run(stop)
    assert desk.store.open_orders() != ()


def test_a_standby_neither_decides_nor_carries_out(desk: Desk, eventually: Eventually) -> None:
    desk.store.apply(workflow((node("n"), node("m")), (on("r", A),)))
    first, second = (MemoryJobRunner(desk.store) for _ in range(2))
    desk.log.send(NewEvent(key="a", value=""))
    with running(desk, first):
        eventually(lambda: first.claimed == ["w.n.1"])
        with running(desk, second) as standby:
            eventually(lambda: "belongs to" in standby.trouble)
            _ask(desk, "start", key="m")
            eventually(lambda: first.claimed == ["w.n.1", "w.m.1"])
    assert second.submitted == []
