"""workflow.yaml: read into a Workflow; whatever is wrong in it is named with its line.

name: training
concurrency: 2                       # batch runs at a time; without it no limit
nodes:
  - name: train
    command: [rtrec, train, base]    # or one text, split as a shell does; no shell runs it
    kind: batch                      # or endless
    timeout: 2h
    retries: {times: 3, first: 10s, longest: 5m, steady: 10m}
    heartbeat: 30s                   # endless jobs
    if_running: queue                # or again, or skip: what becomes of starts while a run goes on
rules:
  - name: daily
    when: {schedule: {cron: "0 3 * * *", missed: latest}}
    then: [{start: train}]           # start, stop, restart: NODE, or {workflow: NAME}; or {send: {type, key, value}}
    once: false
    only_if: {train: [idle, succeeded, failed, stopped]}

Conditions: {event: {type, key, value, namespace, sender, context: {NAME: PATTERN}}}, {all: [...]}, {any: [...]},
{sequence: [...]}, {count: N, of: ...}, {within: 10m, of: ...}, {absence: 10m, of: ...},
{schedule: {cron: ...} or {every: 1h}}, {watermark: {stage: samples, at: MS} or {stage: samples, every: 1h, after: 5m}},
{status: {node: train, is: [failed]}}.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import yaml

from rtrec_ray.definition_file import NodeReader, compose, read_text
from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.workflow.check import check
from rtrec_ray.workflow.conditions import (
    EVENT_FIELDS,
    Absence,
    AllOf,
    AnyOf,
    Condition,
    Count,
    EventIs,
    Missed,
    Schedule,
    Sequence,
    StatusIs,
    WatermarkAt,
    Within,
)
from rtrec_ray.workflow.cron import parse_cron
from rtrec_ray.workflow.definition import NODE_STATES, Act, Action, IfRunning, Kind, Node, Rule, Sending, Workflow

_NAME: Final = r"[a-z][a-z0-9_-]{0,62}"
_NODE_KEYS: Final = ("kind", "timeout", "retries", "heartbeat", "if_running")


def load_workflow(path: Path, *, beside: Iterable[Workflow] = ()) -> Workflow:
    """Read a file. `beside`: see parse_workflow. Raises DefinitionInvalid with file, line and key."""
    return parse_workflow(read_text(path), source=str(path), beside=beside)


def parse_workflow(text: str, *, source: str = "workflow.yaml", beside: Iterable[Workflow] = ()) -> Workflow:
    r"""The workflow in a file's text. Raises DefinitionInvalid with line and key; `source` names the file.

    `beside`: workflows with which it must not go round in a circle for ever.

    >>> parse_workflow("name: w\nnodes: []\nrules: []\nnode: []\n")
    Traceback (most recent call last):
    rtrec_ray.errors.DefinitionInvalid: workflow.yaml, line 4: unknown key "node"
    """
    node = compose(text, source=source)
    if node is None:
        raise DefinitionInvalid(f"{source}: the file is empty", mend="configs/workflow.yaml shows what it may have")
    return _Reader(source).workflow(node, beside=beside)


class _Reader(NodeReader):
    """Makes nodes and rules of the file's nodes."""

    def __init__(self, source: str) -> None:
        super().__init__(source, name=_NAME)
        self._conditions: dict[str, Callable[[Mapping[str, yaml.Node]], Condition]] = {
            "event": self._event,
            "all": lambda part: AllOf(terms=self._terms(part["all"])),
            "any": lambda part: AnyOf(terms=self._terms(part["any"])),
            "sequence": lambda part: Sequence(terms=self._terms(part["sequence"])),
            "count": lambda part: Count(n=self.whole(part["count"], least=1), term=self._condition(part["of"])),
            "within": lambda part: Within(ms=self.duration(part["within"]), term=self._condition(part["of"])),
            "absence": lambda part: Absence(ms=self.duration(part["absence"]), term=self._condition(part["of"])),
            "schedule": self._schedule,
            "watermark": self._watermark,
            "status": self._status,
        }

    def workflow(self, node: yaml.Node, *, beside: Iterable[Workflow]) -> Workflow:
        top = self.mapping(node, need=("name", "nodes", "rules"), may=("concurrency",))
        nodes, rules = self.sequence(top["nodes"]), self.sequence(top["rules"])
        found = Workflow(
            name=self.name(top["name"]),
            concurrency=self.whole(top["concurrency"], least=1) if "concurrency" in top else None,
            nodes=tuple(map(self._node, nodes)),
            rules=tuple(map(self._rule, rules)),
        )
        for fault in check(found, beside=beside):
            at = rules[fault.rule] if fault.rule is not None else nodes[fault.node or 0]
            self.fail(at, fault.what)
        return found

    def _node(self, node: yaml.Node) -> Node:
        part = self.mapping(node, need=("name", "command"), may=_NODE_KEYS)
        kind: Kind = self.choice(part.get("kind"), get_args(Kind), "batch")
        if kind == "batch" and "heartbeat" in part:
            self.fail(part["heartbeat"], "heartbeat is for endless jobs")
        if kind == "endless":
            for key in ("timeout", "if_running"):
                if key in part:
                    self.fail(part[key], f"{key} is for batch jobs")
        if_running: IfRunning = self.choice(part.get("if_running"), get_args(IfRunning), "queue")
        return Node(
            name=self.name(part["name"]),
            command=self._command(part["command"]),
            kind=kind,
            timeout_ms=self.duration(part["timeout"]) if "timeout" in part else None,
            heartbeat_ms=self.duration(part["heartbeat"]) if "heartbeat" in part else None,
            if_running=if_running,
            **self._retries(part.get("retries")),
        )

    def _retries(self, node: yaml.Node | None) -> dict[str, int]:
        if node is None:
            return {}
        part = self.mapping(node, need=("times",), may=("first", "longest", "steady"))
        names = {"first": "backoff_ms", "longest": "longest_backoff_ms", "steady": "steady_ms"}
        given = {names[key]: self.duration(value) for key, value in part.items() if key in names}
        return {"retries": self.whole(part["times"], least=1), **given}

    def _command(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.SequenceNode):
            words = tuple(map(self.text, node.value))
        else:
            try:
                words = tuple(shlex.split(self.text(node)))
            except ValueError as error:
                self.fail(node, f"command: {error}")
        if not words:
            self.fail(node, "command must not be empty")
        return words

    def _rule(self, node: yaml.Node) -> Rule:
        part = self.mapping(node, need=("name", "when", "then"), may=("once", "only_if"))
        then = tuple(map(self._action, self.sequence(part["then"])))
        if not then:
            self.fail(part["then"], "then must name at least one act")
        only_if = self.mapping(part["only_if"]) if "only_if" in part else {}
        return Rule(
            name=self.name(part["name"]),
            when=self._condition(part["when"]),
            then=then,
            once=self.flag(part.get("once")),
            only_if={name: self._states(each) for name, each in only_if.items()},
        )

    def _action(self, node: yaml.Node) -> Action:
        part = self.mapping(node, may=get_args(Act))
        if len(part) != 1:
            self.fail(node, f"expected one of {', '.join(get_args(Act))}")
        do, target = next(iter(part.items()))
        if do == "send":
            return Action(do="send", event=self._sending(target))
        if isinstance(target, yaml.ScalarNode):
            return Action(do=do, node=self.text(target))  # type: ignore[arg-type]
        if do == "restart":
            self.fail(target, "a workflow is started or stopped")
        return Action(do=do, workflow=self.name(self.mapping(target, need=("workflow",))["workflow"]))  # type: ignore[arg-type]

    def _sending(self, node: yaml.Node) -> Sending:
        part = self.mapping(node, need=("type", "key"), may=("value",))
        return Sending(**{name: self.text(each) for name, each in part.items()})

    def _condition(self, node: yaml.Node) -> Condition:
        part = self.mapping(node, may=(*self._conditions, "of"))
        kinds = [key for key in part if key != "of"]
        if len(kinds) != 1:
            self.fail(node, f"expected one of {', '.join(self._conditions)}")
        if ("of" in part) != (kinds[0] in ("count", "within", "absence")):
            self.fail(node, '"of" is needed by count, within and absence, and by these alone')
        return self._conditions[kinds[0]](part)

    def _terms(self, node: yaml.Node) -> tuple[Condition, ...]:
        terms = tuple(map(self._condition, self.sequence(node)))
        if not terms:
            self.fail(node, "expected at least one condition")
        return terms

    def _event(self, part: Mapping[str, yaml.Node]) -> EventIs:
        fields = self.mapping(part["event"], may=(*EVENT_FIELDS, "context"))
        if not fields:
            self.fail(part["event"], f"event needs at least one of {', '.join((*EVENT_FIELDS, 'context'))}")
        context = self.mapping(fields["context"]) if "context" in fields else {}
        return EventIs(
            **{name: self.text(each) for name, each in fields.items() if name != "context"},
            context=tuple(sorted((name, self.text(each)) for name, each in context.items())),
        )

    def _schedule(self, part: Mapping[str, yaml.Node]) -> Schedule:
        fields = self.mapping(part["schedule"], may=("cron", "every", "missed", "grace"))
        if ("cron" in fields) == ("every" in fields):
            self.fail(part["schedule"], "schedule needs cron or every")
        missed: Missed = self.choice(fields.get("missed"), get_args(Missed), "latest")
        grace: dict[str, Any] = {"grace_ms": self.duration(fields["grace"])} if "grace" in fields else {}
        if "every" in fields:
            return Schedule(every_ms=self.duration(fields["every"]), missed=missed, **grace)
        try:
            return Schedule(cron=parse_cron(self.text(fields["cron"])), missed=missed, **grace)
        except DefinitionInvalid as error:
            self.fail(fields["cron"], error.message)

    def _watermark(self, part: Mapping[str, yaml.Node]) -> WatermarkAt:
        fields = self.mapping(part["watermark"], need=("stage",), may=("at", "every", "after"))
        if ("at" in fields) == ("every" in fields):
            self.fail(part["watermark"], "watermark needs at or every")
        stage = self.text(fields["stage"])
        if "at" in fields:
            if "after" in fields:
                self.fail(fields["after"], "after goes with every")
            return WatermarkAt(stage=stage, at_ms=self.whole(fields["at"], least=1))
        every_ms = self.duration(fields["every"])
        after_ms = self.duration(fields["after"]) if "after" in fields else 0
        if after_ms >= every_ms:
            self.fail(fields["after"], "after must be shorter than every")
        return WatermarkAt(stage=stage, every_ms=every_ms, after_ms=after_ms)

    def _status(self, part: Mapping[str, yaml.Node]) -> StatusIs:
        fields = self.mapping(part["status"], need=("node", "is"))
        return StatusIs(node=self.text(fields["node"]), states=self._states(fields["is"]))

    def _states(self, node: yaml.Node) -> tuple[str, ...]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        states = tuple(self.choice(each, NODE_STATES, "") for each in nodes)
        if not states:
            self.fail(node, "expected at least one state")
        return states
