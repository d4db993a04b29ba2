"""What people see of a workflow: why, the rehearsal, the picture; the file that comes with the program, the manual."""

from __future__ import annotations

import doctest
from pathlib import Path
from xml.etree import ElementTree

from rtrec_ray.workflow.conditions import Absence, AllOf, Count, EventIs, Schedule, Sequence, StatusIs, Within
from rtrec_ray.workflow.dryrun import dry_run
from rtrec_ray.workflow.evaluate import handle, initial
from rtrec_ray.workflow.explain import Term, explain
from rtrec_ray.workflow.file import load_workflow
from rtrec_ray.workflow.graph import mermaid, svg
from rtrec_ray.workflow.stimuli import Occurred
from tests.workflow_desk import node, on, workflow

ROOT = Path(__file__).parents[2]
A, B, C = EventIs(key="a"), EventIs(key="b"), EventIs(key="c")


def event(
    offset: int, key: str, *, kind: str = "", time_ms: int = 0, namespace: str = "n", value: str = ""
) -> Occurred:
    return Occurred(
        offset=offset, key=key, value="", type=kind, namespace=namespace, sender="", time_ms=time_ms or offset * 10
    )


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


def test_a_rehearsal_gives_the_orders_that_the_log_would_have_given() -> None:
    rules = (
        on("pair", Sequence(terms=(A, B)), node="n"),
        on("then", StatusIs(node="n", states=("succeeded",)), node="m"),
        on("quiet", Absence(ms=100, term=B), node="m"),
        on("hourly", Schedule(every_ms=250), do="stop", node="e"),
        on("up", C, node="e"),
    )
    flow = workflow((node("n"), node("m"), node("e", kind="endless")), rules)
    own = event(5, "n", kind="JOB_FAILED", namespace="w", time_ms=35)
    log = [event(3, "a"), event(4, "b", time_ms=30), own, event(6, "c", time_ms=40)]
    found = dry_run(flow, log, since_ms=10, until_ms=260)
    assert [(each.time_ms, each.do, each.node, each.rule, each.by) for each in found] == [
        (30, "start", "n", "pair", (3, 4)),
        (30, "start", "m", "then", ()),
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
    assert [(each.rule, each.do, each.node, each.by[-1]) for each in found] == [
        ("daily", "start", "base", 1_440),
        ("rejected", "start", "base", 2_883),
    ]


def test_the_manuals_example_does_what_it_says() -> None:
    done = doctest.testfile(str(ROOT / "docs/workflow.md"), module_relative=False)
    assert (done.failed, done.attempted > 5) == (0, True)
