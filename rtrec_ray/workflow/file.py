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
    if_running: queue                # or skip: what a start does while a run goes on
rules:
  - name: daily
    when: {schedule: {cron: "0 3 * * *", missed: latest}}
    then: [{start: train}]           # start, stop, restart: NODE, or {workflow: NAME}
    once: false
    only_if: {train: [idle, succeeded, failed, stopped]}

Conditions: {event: {type, key, value, namespace, sender}}, {all: [...]}, {any: [...]}, {sequence: [...]},
{count: N, of: ...}, {within: 10m, of: ...}, {absence: 10m, of: ...}, {schedule: {cron: ...} or {every: 1h}},
{watermark: {stage: samples, at: MS} or {stage: samples, every: 1h}}, {status: {node: train, is: [failed]}}.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

import yaml

from rtrec_ray.errors import DefinitionInvalid
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
from rtrec_ray.workflow.definition import NODE_STATES, Action, Do, IfRunning, Kind, Node, Rule, Workflow, check

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(\d{1,15})(ms|s|m|h|d)")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_NODE_KEYS: Final = ("kind", "timeout", "retries", "heartbeat", "if_running")


def load_workflow(path: Path) -> Workflow:
    """Read a file. Raises DefinitionInvalid with file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionInvalid(f"{path} cannot be read: {error}", mend="name an existing workflow.yaml") from error
    return parse_workflow(text, source=str(path))


def parse_workflow(text: str, *, source: str = "workflow.yaml") -> Workflow:
    r"""The workflow in a file's text. Raises DefinitionInvalid with line and key; `source` names the file.

    >>> parse_workflow("name: w\nnodes: []\nrules: []\nnode: []\n")
    Traceback (most recent call last):
    rtrec_ray.errors.DefinitionInvalid: workflow.yaml, line 4: unknown key "node"
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise DefinitionInvalid(f"{source}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if node is None:
        raise DefinitionInvalid(f"{source}: the file is empty")
    return _Reader(source).workflow(node)


class _Reader:
    """Walks the nodes of the file, which know their lines."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._conditions: dict[str, Callable[[Mapping[str, yaml.Node]], Condition]] = {
            "event": self._event,
            "all": lambda part: AllOf(terms=self._terms(part["all"])),
            "any": lambda part: AnyOf(terms=self._terms(part["any"])),
            "sequence": lambda part: Sequence(terms=self._terms(part["sequence"])),
            "count": lambda part: Count(n=self._positive(part["count"]), term=self._condition(part["of"])),
            "within": lambda part: Within(ms=self._duration(part["within"]), term=self._condition(part["of"])),
            "absence": lambda part: Absence(ms=self._duration(part["absence"]), term=self._condition(part["of"])),
            "schedule": self._schedule,
            "watermark": self._watermark,
            "status": self._status,
        }

    def workflow(self, node: yaml.Node) -> Workflow:
        top = self._mapping(node, need=("name", "nodes", "rules"), may=("concurrency",))
        nodes, rules = self._sequence(top["nodes"]), self._sequence(top["rules"])
        found = Workflow(
            name=self._name(top["name"]),
            concurrency=self._positive(top["concurrency"]) if "concurrency" in top else None,
            nodes=tuple(map(self._node, nodes)),
            rules=tuple(map(self._rule, rules)),
        )
        for fault in check(found):
            at = rules[fault.rule] if fault.rule is not None else nodes[fault.node or 0]
            self._fail(at, fault.what)
        return found

    def _node(self, node: yaml.Node) -> Node:
        part = self._mapping(node, need=("name", "command"), may=_NODE_KEYS)
        kind: Kind = self._choice(part.get("kind"), get_args(Kind), "batch")
        if kind == "batch" and "heartbeat" in part:
            self._fail(part["heartbeat"], "heartbeat is for endless jobs")
        if kind == "endless":
            for key in ("timeout", "if_running"):
                if key in part:
                    self._fail(part[key], f"{key} is for batch jobs")
        if_running: IfRunning = self._choice(part.get("if_running"), get_args(IfRunning), "queue")
        return Node(
            name=self._name(part["name"]),
            command=self._command(part["command"]),
            kind=kind,
            timeout_ms=self._duration(part["timeout"]) if "timeout" in part else None,
            heartbeat_ms=self._duration(part["heartbeat"]) if "heartbeat" in part else None,
            if_running=if_running,
            **self._retries(part.get("retries")),
        )

    def _retries(self, node: yaml.Node | None) -> dict[str, int]:
        if node is None:
            return {}
        part = self._mapping(node, need=("times",), may=("first", "longest", "steady"))
        names = {"first": "backoff_ms", "longest": "longest_backoff_ms", "steady": "steady_ms"}
        given = {names[key]: self._duration(value) for key, value in part.items() if key in names}
        return {"retries": self._positive(part["times"]), **given}

    def _command(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.SequenceNode):
            words = tuple(map(self._text, node.value))
        else:
            try:
                words = tuple(shlex.split(self._text(node)))
            except ValueError as error:
                self._fail(node, f"command: {error}")
        if not words:
            self._fail(node, "command must not be empty")
        return words

    def _rule(self, node: yaml.Node) -> Rule:
        part = self._mapping(node, need=("name", "when", "then"), may=("once", "only_if"))
        then = tuple(map(self._action, self._sequence(part["then"])))
        if not then:
            self._fail(part["then"], "then must name at least one act")
        only_if = self._mapping(part["only_if"]) if "only_if" in part else {}
        return Rule(
            name=self._name(part["name"]),
            when=self._condition(part["when"]),
            then=then,
            once=self._choice(part.get("once"), ("true", "false"), "false") == "true",
            only_if={name: self._states(each) for name, each in only_if.items()},
        )

    def _action(self, node: yaml.Node) -> Action:
        part = self._mapping(node, may=get_args(Do))
        if len(part) != 1:
            self._fail(node, f"expected one of {', '.join(get_args(Do))}")
        do, target = next(iter(part.items()))
        if isinstance(target, yaml.ScalarNode):
            return Action(do=do, node=self._text(target))  # type: ignore[arg-type]
        if do == "restart":
            self._fail(target, "a workflow is started or stopped")
        return Action(do=do, workflow=self._name(self._mapping(target, need=("workflow",))["workflow"]))  # type: ignore[arg-type]

    def _condition(self, node: yaml.Node) -> Condition:
        part = self._mapping(node, may=(*self._conditions, "of"))
        kinds = [key for key in part if key != "of"]
        if len(kinds) != 1:
            self._fail(node, f"expected one of {', '.join(self._conditions)}")
        if ("of" in part) != (kinds[0] in ("count", "within", "absence")):
            self._fail(node, '"of" is needed by count, within and absence, and by these alone')
        return self._conditions[kinds[0]](part)

    def _terms(self, node: yaml.Node) -> tuple[Condition, ...]:
        terms = tuple(map(self._condition, self._sequence(node)))
        if not terms:
            self._fail(node, "expected at least one condition")
        return terms

    def _event(self, part: Mapping[str, yaml.Node]) -> EventIs:
        fields = self._mapping(part["event"], may=EVENT_FIELDS)
        if not fields:
            self._fail(part["event"], f"event needs at least one of {', '.join(EVENT_FIELDS)}")
        return EventIs(**{name: self._text(each) for name, each in fields.items()})

    def _schedule(self, part: Mapping[str, yaml.Node]) -> Schedule:
        fields = self._mapping(part["schedule"], may=("cron", "every", "missed", "grace"))
        if ("cron" in fields) == ("every" in fields):
            self._fail(part["schedule"], "schedule needs cron or every")
        missed: Missed = self._choice(fields.get("missed"), get_args(Missed), "latest")
        grace: dict[str, Any] = {"grace_ms": self._duration(fields["grace"])} if "grace" in fields else {}
        if "every" in fields:
            return Schedule(every_ms=self._duration(fields["every"]), missed=missed, **grace)
        try:
            return Schedule(cron=parse_cron(self._text(fields["cron"])), missed=missed, **grace)
        except DefinitionInvalid as error:
            self._fail(fields["cron"], error.message)

    def _watermark(self, part: Mapping[str, yaml.Node]) -> WatermarkAt:
        fields = self._mapping(part["watermark"], need=("stage",), may=("at", "every"))
        if ("at" in fields) == ("every" in fields):
            self._fail(part["watermark"], "watermark needs at or every")
        stage = self._text(fields["stage"])
        if "at" in fields:
            return WatermarkAt(stage=stage, at_ms=self._positive(fields["at"]))
        return WatermarkAt(stage=stage, every_ms=self._duration(fields["every"]))

    def _status(self, part: Mapping[str, yaml.Node]) -> StatusIs:
        fields = self._mapping(part["status"], need=("node", "is"))
        return StatusIs(node=self._text(fields["node"]), states=self._states(fields["is"]))

    def _states(self, node: yaml.Node) -> tuple[str, ...]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        states = tuple(self._choice(each, NODE_STATES, "") for each in nodes)
        if not states:
            self._fail(node, "expected at least one state")
        return states

    def _mapping(
        self, node: yaml.Node, *, need: tuple[str, ...] = (), may: tuple[str, ...] = ()
    ) -> Mapping[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, "expected key: value")
        found: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = self._text(key_node)
            if key in found:
                self._fail(key_node, f'"{key}" stands here twice')
            if (need or may) and key not in need + may:
                self._fail(key_node, f'unknown key "{key}"')
            found[key] = value_node
        for key in need:
            if key not in found:
                self._fail(node, f'"{key}" is missing')
        return found

    def _sequence(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, "expected a list")
        return list(node.value)

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._fail(node, "expected text")
        return str(node.value)

    def _name(self, node: yaml.Node) -> str:
        text = self._text(node)
        if not _NAME.fullmatch(text):
            self._fail(node, f'"{text}" is not a name: lower-case letters, digits, _ and -')
        return text

    def _choice(self, node: yaml.Node | None, allowed: tuple[str, ...], default: str) -> Any:
        if node is None:
            return default
        text = self._text(node)
        if text not in allowed:
            self._fail(node, f'expected one of {", ".join(allowed)}, not "{text}"')
        return text

    def _positive(self, node: yaml.Node) -> int:
        text = self._text(node)
        if not re.fullmatch(r"\d{1,18}", text) or int(text) < 1:
            self._fail(node, f'expected a whole number of 1 or more, not "{text}"')
        return int(text)

    def _duration(self, node: yaml.Node) -> int:
        text = self._text(node)
        match = _DURATION.fullmatch(text)
        if match is None or int(match[1]) == 0:
            self._fail(node, f'expected a duration like 10s or 5m, not "{text}"')
        return int(match[1]) * _UNITS[match[2]]

    def _fail(self, node: Any, what: str) -> NoReturn:
        raise DefinitionInvalid(f"{self._source}, line {node.start_mark.line + 1}: {what}")
