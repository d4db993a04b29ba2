"""workflow.yaml: what it says, and where it is wrong."""

from __future__ import annotations

import pytest

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.workflow.conditions import (
    Absence,
    AllOf,
    AnyOf,
    Count,
    EventIs,
    Schedule,
    Sequence,
    StatusIs,
    WatermarkAt,
    Within,
)
from rtrec_ray.workflow.cron import parse_cron
from rtrec_ray.workflow.definition import Action, Node, Rule, Sending, Workflow
from rtrec_ray.workflow.file import parse_workflow
from rtrec_ray.workflow.text import to_text

IDLE = ("idle",)
EVENT = EventIs(type="MODEL_*", key="model", value="1", namespace="n", sender="s")
EVERY_KIND = (
    AllOf(terms=(EVENT, StatusIs(node="serve", states=("running", "starting")))),
    AnyOf(terms=(EVENT, Absence(ms=5_000, term=EVENT))),
    Within(ms=60_000, term=Sequence(terms=(EVENT, Count(n=3, term=EventIs(key="x"))))),
    Schedule(cron=parse_cron("0 3 * * 1-5"), missed="skip"),
    Schedule(every_ms=3_600_000, missed="all", grace_ms=5_000),
    WatermarkAt(stage="samples", at_ms=1_700_000_000_000),
    WatermarkAt(stage="features", every_ms=60_000),
    EventIs(type="T", context=(("kind", "base"), ("step", "3"))),
    WatermarkAt(stage="history", every_ms=86_400_000, after_ms=600_000),
)
NODES = (
    Node(name="train", command=("rtrec", "train"), timeout_ms=7_200_000, retries=3, backoff_ms=10, if_running="skip"),
    Node(name="serve", command=("serve", "a b"), kind="endless", heartbeat_ms=30_000),
)


def test_a_workflow_makes_the_trip_through_its_text() -> None:
    rules = tuple(
        Rule(
            name=f"r{i}",
            when=when,
            then=(Action(do="restart", node="serve"),),
            once=i == 0,
            only_if={"train": IDLE},
        )
        for i, when in enumerate(EVERY_KIND)
    )
    rules += (Rule(name="other", when=EVENT, then=(Action(do="stop", workflow="v"), Action(do="start", node="train"))),)
    told = (Sending(type="S", key="k"), Sending(type="S", key="k", value="v"))
    rules += (Rule(name="told", when=EVENT, then=tuple(Action(do="send", event=each) for each in told)),)
    workflow = Workflow(name="w", nodes=NODES, rules=rules, concurrency=2)
    back = parse_workflow(to_text(workflow))
    assert back == workflow
    assert back.digest == workflow.digest


FILE = """\
name: w
nodes:
  - name: a
    command: run a
  - {name: b, command: [run, b], kind: endless}
rules:
  - name: first
    when: {event: {type: T}}
    then: [{start: a}]
  - name: second
    when: {status: {node: a, is: succeeded}}
    then: [{start: b}]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: endless}", "kind: stream}", 'line 5: expected one of batch, endless, not "stream"'),
        ("kind: endless}", "kind: endless, timeout: 5s}", "line 5: timeout is for batch jobs"),
        ("command: run a", "command: run a\n    retrys: 3", 'line 5: unknown key "retrys"'),
        ("then: [{start: b}]", "then: [{start: c}]", 'line 10: unknown node "c"'),
        ("node: a, is", "node: c, is", 'line 10: unknown node "c"'),
        ("is: succeeded", "is: done", "line 11: expected one of idle"),
        ("{event: {type: T}}", "{event: {typ: T}}", 'line 8: unknown key "typ"'),
        ("{event: {type: T}}", "{count: 2}", 'line 8: "of" is needed by count'),
        ("{event: {type: T}}", '{schedule: {cron: "* * 30 2 *"}}', 'line 8: cron "\\* \\* 30 2 \\*" is never due'),
        ("{event: {type: T}}", "{within: 5, of: {event: {type: T}}}", 'line 8: expected a duration .* not "5"'),
        ("{event: {type: T}}", "{watermark: {stage: s, at: 5, after: 1m}}", "line 8: after goes with every"),
        (
            "{event: {type: T}}",
            "{watermark: {stage: s, every: 1m, after: 60s}}",
            "line 8: after must be shorter than every",
        ),
        (
            "{event: {type: T}}",
            "{watermark: {stage: s, every: 1d, after: soon}}",
            'line 8: expected a duration .* not "soon"',
        ),
        ("name: b,", "name: a,", 'line 5: a second node "a"'),
        ("name: second", "name: first", 'line 10: a second rule "first"'),
        ("[{start: b}]", "[{start: b}, {stop: b}]", "line 10: .*would stop b and rule .*start b by the same condition"),
        ("[{start: b}]", "[{start: b}]\n    x: y", 'line 13: unknown key "x"'),
        ("[{start: b}]", "[{send: {type: T}}]", 'line 12: "key" is missing'),
        (
            "[{start: b}]",
            "[{send: {type: JOB_FAILED, key: a}}]",
            "line 10: .*sends JOB_FAILED, which is the",
        ),
        ("[{start: b}]", '[{send: {type: "", key: a}}]', "line 10: .*sends an event without type or key"),
        ("[{start: a}]", "[{send: {type: T, key: k}}]", "line 7: sending T leads to sending it again without an event"),
        ("[{start: b}]", "[{send: {type: T, key: k}}]", 'line 7: starting "a" leads to'),
        ("{event: {type: T}}", "{event: {context: [a]}}", "line 8: expected key: value"),
        ("{event: {type: T}}", "{event: {type: JOB_SUCCEEDED}}", 'line 7: starting "a" leads to'),
        ("{event: {type: T}}", '{event: {type: "JOB_*", key: a}}', 'line 7: starting "a" leads to'),
        ("{event: {type: T}}", "{event: {type: NODE_FAILED, key: a}}", 'line 7: starting "a" leads to'),
        (
            "{event: {type: T}}\n    then: [{start: a}]",
            "{event: {type: WORKFLOW_REQUESTED}}\n    then: [{start: {workflow: w}}]",
            "line 7: sending WORKFLOW_REQUESTED leads to",
        ),
        (
            "{status: {node: a, is: succeeded}}\n    then: [{start: b}]",
            "{any: [{event: {type: T}}]}\n    then: [{stop: a}]",
            "line 10: .*would stop a and rule .*start a by the same condition",
        ),
        ("[{start: b}]", "[{start: a}]", 'line 10: starting "a" leads to starting it again without an event'),
        (
            "{status: {node: a, is: succeeded}}",
            "{any: [{event: {type: T}}, {event: {type: JOB_FAILED, key: b}}]}",
            'line 10: starting "b" leads to starting it again',
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, said: str) -> None:
    assert old in FILE
    parse_workflow(FILE)
    with pytest.raises(DefinitionInvalid, match=said):
        parse_workflow(FILE.replace(old, new))


def test_a_rule_keeps_its_digest_from_before_watermarks_had_an_offset() -> None:
    def digest(**of: int) -> str:
        return Rule(name="r", when=WatermarkAt(stage="s", every_ms=5, **of), then=()).digest

    assert digest() == "0f8e689f08271007"
    assert digest(after_ms=1) not in (digest(), digest(after_ms=2))


def test_the_same_condition_may_start_and_stop_when_states_keep_the_rules_apart() -> None:
    both = """\
name: w
nodes: [{name: a, command: run, kind: endless}]
rules:
  - {name: up, when: {event: {type: T}}, then: [{start: a}], only_if: {a: [idle, stopped]}}
  - {name: again, when: {event: {type: T}}, then: [{restart: a}], only_if: {a: running}}
"""
    assert [rule.name for rule in parse_workflow(both).rules] == ["up", "again"]
    with pytest.raises(DefinitionInvalid, match=r"line 5: .*by the same condition"):
        parse_workflow(both.replace("{a: running}", "{a: [running, idle]}"))


CHAIN = """\
name: {name}
nodes: [{{name: n, command: run}}]
rules: [{{name: r, when: {{event: {{type: JOB_SUCCEEDED, namespace: {after}}}}}, then: [{{start: n}}]}}]
"""


def test_a_circle_through_other_workflows_is_named() -> None:
    first, second, third = (
        parse_workflow(CHAIN.format(name=name, after=after)) for name, after in (("b", "a"), ("c", "b"), ("d", "x"))
    )
    text = CHAIN.format(name="a", after="c")
    assert parse_workflow(text, beside=[first, third]).name == "a"
    with pytest.raises(DefinitionInvalid, match=r'line 3: starting "n" leads to .* by way of workflow b, c$'):
        parse_workflow(text, beside=[first, second, third])
    freed = CHAIN.format(name="a", after="d")
    assert parse_workflow(freed, beside=[parse_workflow(text), first, second]).name == "a", "the old one is replaced"


def test_workflows_that_start_each_other_are_a_circle() -> None:
    rules = "name: {}\nnodes: []\nrules: [{{name: r, when: {{event: {{{}}}}}, then: [{{start: {{workflow: {}}}}}]}}]\n"
    one = parse_workflow(rules.format("one", "type: WORKFLOW_REQUESTED, namespace: one, value: start", "two"))
    two = rules.format("two", "type: WORKFLOW_REQUESTED, namespace: two, value: start", "one")
    with pytest.raises(DefinitionInvalid, match=r"sending WORKFLOW_REQUESTED leads .* by way of workflow one$"):
        parse_workflow(two, beside=[one])
    assert parse_workflow(two.replace("value: start", "value: stop"), beside=[one]).name == "two"


def test_a_circle_that_needs_an_event_is_none() -> None:
    waits = FILE.replace("[{start: b}]", "[{start: a}]").replace(
        "{status: {node: a, is: succeeded}}", "{all: [{event: {type: T}}, {status: {node: a, is: succeeded}}]}"
    )
    assert len(parse_workflow(waits).rules) == 2
