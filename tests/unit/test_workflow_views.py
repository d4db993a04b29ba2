"""What people see of a workflow: why, the rehearsal, the picture; the file that comes with the program, the manual."""

from __future__ import annotations

import doctest
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rtrec_ray.workflow.conditions import Absence, AllOf, Count, EventIs, Schedule, Sequence, StatusIs, Within
from rtrec_ray.workflow.definition import Action, Rule, Sending
from rtrec_ray.workflow.dryrun import dry_run
from rtrec_ray.workflow.evaluate import handle, initial
from rtrec_ray.workflow.events import JOB_FAILED, JOB_STARTED, JOB_SUCCEEDED, SENDER, WHOLE, WORKFLOW_REQUESTED
from rtrec_ray.workflow.explain import Term, explain, waits_for
from rtrec_ray.workflow.file import load_workflow
from rtrec_ray.workflow.graph import mermaid, svg
from rtrec_ray.workflow.scheduler import Scheduler
from rtrec_ray.workflow.stimuli import Occurred
from tests.workflow_desk import node, on, workflow

ROOT = Path(__file__).parents[2]
A, B, C = EventIs(key="a"), EventIs(key="b"), EventIs(key="c")


def event(offset: int, key: str, *, kind: str = "", time_ms: int = 0, namespace: str = "n", **more: Any) -> Occurred:
    said: dict[str, Any] = {"value": "", "sender": "", **more}
    return Occurred(offset=offset, key=key, type=kind, namespace=namespace, time_ms=time_ms or offset * 10, **said)


def _after(condition: object, *keys: str) -> Term:
    state = initial(condition, 0)  # type: ignore[arg-type]
    for offset, key in enumerate(keys, 7):
        state, _ = handle(condition, state, event(offset, key))  # type: ignore[arg-type]
    return explain(condition, state)  # type: ignore[arg-type]


def test_each_term_says_whether_it_is_met_and_by_which_event() -> None:
    both = _after(AllOf(terms=(A, B)), "b")
    assert [(term.text, term.met, term.by) for term in both.terms] == [
        ("event key=a", False, ()),
        ("event key=b", True, (7,)),
    ]
    ordered = _after(Within(ms=60_000, term=Sequence(terms=(A, B, C))), "a", "c", "b").terms[0]
    assert (ordered.text, ordered.by) == ("2 of 3 in order", (7, 9))
    assert [term.met for term in ordered.terms] == [True, True, False]
    counted = _after(Count(n=3, term=A), "a", "b", "a")
    assert (counted.text, counted.by) == ("2 of 3 times", (7, 9))


def test_a_start_that_waits_says_for_what() -> None:
    rules = tuple(on(name, name, node=name) for name in ("n", "m", "e"))
    flow = workflow((node("n"), node("m", retries=1), node("e", kind="endless")), rules, concurrency=1)
    desk = Scheduler(time_ms=0)
    desk.know(flow)
    offsets = itertools.count(1)

    def tell(key: str, kind: str = "", value: str = "", *, wall_ms: int = 0, **more: Any) -> None:
        said = {"namespace": "w", "sender": SENDER} if kind else {}
        desk.handle(event(next(offsets), key, kind=kind, value=value, **said, **more), now_ms=0, wall_ms=wall_ms)
        for order in desk.changes().orders:
            orders[order.node] = order.run

    def waits(name: str) -> str | None:
        return waits_for(desk.saved()["w"], name)

    orders: dict[str, str] = {}
    tell(WHOLE, WORKFLOW_REQUESTED, "apply", context={"digest": flow.digest, "first": True})
    assert waits("n") is None
    for name in ("n", "m", "e", "n"):
        tell(name)
    assert (waits("m"), waits("e")) == ("concurrency is 1, and one of n has to end first", None)
    tell("n", JOB_STARTED, orders["n"])
    tell("n", JOB_SUCCEEDED, orders["n"])
    tell("m", JOB_STARTED, orders["m"])
    tell("m", JOB_FAILED, orders["m"], wall_ms=1_000)
    assert waits("m") == "its retry 1 is due at 1970-01-01 00:00:02 by the machine's clock"
    tell(WHOLE, WORKFLOW_REQUESTED, "pause")
    tell("n")
    assert waits("n") == "its run w.n.2 has to end first"
    tell("n", JOB_SUCCEEDED, orders["n"])
    assert waits("n") == "workflow w is paused; `rtrec workflow resume w` goes on"


def test_a_rehearsal_gives_the_orders_that_the_log_would_have_given() -> None:
    rules = (
        on("pair", Sequence(terms=(A, B)), node="n"),
        on("then", StatusIs(node="n", states=("succeeded",)), node="m"),
        on("quiet", Absence(ms=100, term=B), node="m"),
        on("hourly", Schedule(every_ms=250), do="stop", node="e"),
        on("up", C, node="e"),
        Rule(name="tell", when=C, then=(Action(do="send", event=Sending(type="TOLD", key="d")),)),
        on("told", EventIs(type="TOLD", value="c's"), node="m"),
    )
    flow = workflow((node("n"), node("m"), node("e", kind="endless")), rules)
    own = event(5, "n", kind="JOB_FAILED", namespace="w", time_ms=35)
    log = [event(3, "a"), event(4, "b", time_ms=30), own, event(6, "c", value="c's", time_ms=40)]
    found = dry_run(flow, log, since_ms=10, until_ms=260)
    assert [(each.time_ms, each.do, each.node, each.rule, each.by) for each in found] == [
        (30, "start", "n", "pair", (3, 4)),
        (30, "start", "m", "then", ()),
        (40, "send", "TOLD", "tell", (6,)),
        (40, "start", "m", "told", ()),
        (40, "start", "e", "up", (6,)),
        (130, "start", "m", "quiet", ()),
        (250, "stop", "e", "hourly", ()),
    ]


def test_a_picture_has_every_node_with_its_state() -> None:
    flow = workflow((node("n-1"), node("m")), (on("r", AllOf(terms=(A, B)), node="n-1"), on("s", C, node="m")))
    states = {"n-1": "running", "m": "failed"}
    text = mermaid(flow, states)
    assert 'n_n_1["n-1<br/>running"]:::running' in text
    assert "r_r -->|start| n_n_1" in text
    texts = [each.text for each in ElementTree.fromstring(svg(flow, states)).iter() if each.text]
    assert {"running", "failed", "event key=a and event key=b"} <= set(texts)


def test_the_systems_workflow_trains_a_base_after_a_day_of_samples_and_after_three_rejected_versions() -> None:
    complete = [event(n, "SAMPLES_COMPLETE", kind="samples", time_ms=n * 60_000) for n in range(1, 2_880)]
    minutes = enumerate((2_880, 2_950, 2_955, 2_960), 2_880)
    rejected = [event(n, "model", kind="MODEL_REJECTED", time_ms=minute * 60_000) for n, minute in minutes]
    flow = load_workflow(ROOT / "configs/workflow.yaml")
    found = dry_run(flow, [*complete, *rejected], since_ms=0, until_ms=3_000 * 60_000)
    assert [(each.rule, each.node, each.by[-1]) for each in found if each.node == "base"] == [
        ("daily", "base", 1_440),
        ("rejected", "base", 2_883),
    ]


def test_in_the_systems_workflow_batch_jobs_start_endless_ones_and_endless_ones_tell_each_other() -> None:
    flow = load_workflow(ROOT / "configs/workflow.yaml")
    told = [("system", "SYSTEM_STARTED", "kafka,pipeline,training")]
    told += [("model", f"MODEL_{what}", kind) for kind in ("base", "increment") for what in ("GENERATED", "VALIDATED")]
    told += [("model", "MODEL_REJECTED", "increment")]
    log = [event(n, key, kind=kind, value=of, context={"kind": of}) for n, (key, kind, of) in enumerate(told, 1)]
    log.insert(0, event(0, "system", kind="SYSTEM_STARTED", value="kafka,pipeline"))
    found = dry_run(flow, log, since_ms=0, until_ms=100)
    assert [(each.by, each.do, each.node) for each in found] == [
        ((1,), "start", "increments"),
        ((1,), "start", "gate"),
        ((2,), "send", "VALIDATION_REQUESTED"),
        ((3,), "send", "INCREMENTS_REQUESTED"),
        ((3,), "send", "RELOAD_REQUESTED"),
        ((4,), "send", "VALIDATION_REQUESTED"),
        ((5,), "send", "RELOAD_REQUESTED"),
        ((6,), "send", "INCREMENTS_REQUESTED"),
    ]


def _seen(scheduler: Scheduler, *marks: int) -> list[list[str]]:
    """The runs that begin at each of the watermarks of the history, if each ends well at once."""
    found = []
    for mark_ms in marks:
        scheduler.move_watermark("history", mark_ms, now_ms=scheduler.time_ms, wall_ms=0)
        found.append(_play(scheduler))
    return found


def _play(scheduler: Scheduler, *, bad: str = "") -> list[str]:
    begun = []
    while orders := scheduler.changes().orders:
        for order in orders:
            begun.append(order.node)
            for kind in ("JOB_STARTED", "JOB_FAILED" if order.node == bad else "JOB_SUCCEEDED"):
                happens(scheduler, kind, order.node, order.run)
    return begun


def happens(scheduler: Scheduler, kind: str, key: str, value: str) -> None:
    own = kind.startswith("JOB_")
    told = Occurred(
        offset=scheduler.position + 1,
        key=key,
        value=value,
        type=kind,
        namespace="features" if own else "default",
        sender="workflow" if own else "features",
        time_ms=scheduler.time_ms + 1,
    )
    scheduler.handle(told, now_ms=told.time_ms, wall_ms=0)


@pytest.fixture
def features() -> Scheduler:
    """A scheduler that goes by the workflow of the features."""
    flow = load_workflow(ROOT / "configs/workflow_features.yaml")
    scheduler = Scheduler()
    scheduler.know(flow)
    asked = event(1, "*", kind="WORKFLOW_REQUESTED", namespace=flow.name)
    asked = replace(asked, value="apply", context={"digest": flow.digest, "first": True})
    scheduler.handle(asked, now_ms=asked.time_ms, wall_ms=0)
    assert _play(scheduler) == []
    return scheduler


def test_a_daily_run_begins_with_the_first_watermark_and_ten_minutes_after_each_midnight(features: Scheduler) -> None:
    day, grace = 86_400_000, 600_000
    marks = (100 * day + grace, 101 * day, 101 * day + grace - 1, 101 * day + grace, 101 * day + 2 * grace, 105 * day)
    run = ["daily"]
    assert _seen(features, *marks) == [run, [], [], run, [], run]
    again = Scheduler(position=features.position, time_ms=features.time_ms, workflows=features.saved())
    assert _seen(again, 105 * day, 105 * day + grace) == [[], run], "a scheduler that was away begins none twice"


def test_no_day_that_ends_while_a_run_goes_on_is_lost(features: Scheduler) -> None:
    for number in (100, 101, 102):
        features.move_watermark("history", number * 86_400_000 + 600_000, now_ms=features.time_ms, wall_ms=0)
    (order,) = features.changes().orders
    happens(features, "JOB_SUCCEEDED", "daily", order.run)
    assert _play(features) == ["daily"], "one more run counts them all"


def test_new_views_are_filled_and_then_what_is_served_is_verified(features: Scheduler) -> None:
    happens(features, "FEATURES_APPLIED", "features", "v@2")
    assert _play(features) == ["backfill", "verify"]
    happens(features, "FEATURES_APPLIED", "features", "v@3")
    assert _play(features, bad="verify") == ["backfill", "verify"], "a difference stays: verify is not repeated"
    assert features.saved()["features"].nodes["verify"].state == "failed"
    happens(features, "FEATURES_APPLIED", "features", "v@4")
    assert _play(features, bad="backfill") == ["backfill"], "nothing is verified before the retry has filled it"
    assert features.saved()["features"].nodes["backfill"].state == "waiting"


def test_the_manuals_example_does_what_it_says() -> None:
    done = doctest.testfile(str(ROOT / "docs/workflow.md"), module_relative=False)
    assert (done.failed, done.attempted > 5) == (0, True)
