"""A workflow as a value: nodes, and rules that start, stop and restart them. `file` reads it from YAML.

>>> talk = Workflow(
...     name="talk",
...     nodes=(Node(name="train", command=("train.py",)), Node(name="serve", kind="endless", command=("serve",))),
...     rules=(Rule(name="online", when=EventIs(type="MODEL_VALIDATED"), then=(Action(do="start", node="serve"),)),),
... )
>>> check(talk)
[]
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import orjson

from rtrec_ray.workflow.conditions import (
    Absence,
    AllOf,
    Condition,
    EventIs,
    Sequence,
    StatusIs,
    leaves,
    terms_of,
)
from rtrec_ray.workflow.cron import Cron
from rtrec_ray.workflow.events import JOB_EVENTS

Kind = Literal["batch", "endless"]
Do = Literal["start", "stop", "restart"]
IfRunning = Literal["queue", "skip"]

NODE_STATES: Final = ("idle", "queued", "starting", "running", "stopping", "waiting", "succeeded", "failed", "stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A job. Durations in ms of wall time; None is no limit.

    `retries`: how often a failed run is started again, after `backoff_ms`, doubling up to `longest_backoff_ms`; a
    success, or `steady_ms` of running, makes them available again. `heartbeat_ms`: an endless job that is silent for
    longer is stopped and counts as failed. `if_running`: a start while a run goes on waits for its end, or is let go;
    an endless job that runs needs no start.
    """

    name: str
    command: tuple[str, ...]
    kind: Kind = "batch"
    timeout_ms: int | None = None
    heartbeat_ms: int | None = None
    retries: int = 0
    backoff_ms: int = 1_000
    longest_backoff_ms: int = 60_000
    steady_ms: int = 600_000
    if_running: IfRunning = "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a rule does: to a node of its workflow, or to a workflow by name; one of the two."""

    do: Do
    node: str | None = None
    workflow: str | None = None

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.do} {self.node or f'workflow {self.workflow}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When the condition is met, act. `once`: the first time only.

    `only_if`: node → states that it must be in at that moment; otherwise the meeting is used up without an act.
    """

    name: str
    when: Condition
    then: tuple[Action, ...]
    once: bool = False
    only_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the condition and how often it counts: a rule that keeps it keeps what it has seen, when it is applied."""
        return _digest([canonical(self.when), self.once])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow. `concurrency`: how many batch runs go on at a time; None is no limit. Others wait in a queue."""

    name: str
    nodes: tuple[Node, ...]
    rules: tuple[Rule, ...]
    concurrency: int | None = None

    @property
    def digest(self) -> str:
        """The content's hash: a version."""
        rules = [[rule.name, rule.digest, [asdict(a) for a in rule.then], dict(rule.only_if)] for rule in self.rules]
        return _digest([self.name, self.concurrency, [asdict(node) for node in self.nodes], rules])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong, and with which rule or node, by its place in the list."""

    what: str
    rule: int | None = None
    node: int | None = None


def canonical(condition: Condition) -> Any:
    """A JSON value that is equal for equal conditions.

    >>> canonical(EventIs(key="model"))
    ['EventIs', {'key': 'model', 'value': None, 'type': None, 'namespace': None, 'sender': None}]
    """
    inner = [canonical(term) for term in terms_of(condition)]
    fields = {name: getattr(condition, name) for name in type(condition).__dataclass_fields__}
    plain = {name: each.text if isinstance(each, Cron) else each for name, each in fields.items()}
    own = {name: each for name, each in plain.items() if name not in ("term", "terms")}
    return [type(condition).__name__, own, *([inner] if inner else [])]


def check(workflow: Workflow) -> list[Fault]:
    """What is wrong with a workflow as a whole: names, contradictions, circles."""
    return [*_names(workflow), *_contradictions(workflow), *_circles(workflow)]


def _names(workflow: Workflow) -> list[Fault]:
    faults, nodes = [], [node.name for node in workflow.nodes]
    for at, name in enumerate(nodes):
        if name in nodes[:at]:
            faults.append(Fault(what=f'a second node "{name}"', node=at))
    for at, rule in enumerate(workflow.rules):
        if rule.name in [earlier.name for earlier in workflow.rules[:at]]:
            faults.append(Fault(what=f'a second rule "{rule.name}"', rule=at))
        named = [action.node for action in rule.then if action.node is not None]
        named += [leaf.node for leaf in leaves(rule.when) if isinstance(leaf, StatusIs)]
        faults += [Fault(what=f'unknown node "{n}"', rule=at) for n in (*named, *rule.only_if) if n not in nodes]
    return faults


def _contradictions(workflow: Workflow) -> list[Fault]:
    """The same condition, under overlapping `only_if`, starts and stops the same node or workflow."""
    faults: list[Fault] = []
    acts: list[tuple[str, Rule, Action]] = []
    for at, rule in enumerate(workflow.rules):
        for action in rule.then:
            for digest, other, earlier in acts:
                if digest == _digest(canonical(rule.when)) and _opposed(action, earlier) and _overlap(rule, other):
                    what = f'rule "{rule.name}" would {action.text} and rule "{other.name}" {earlier.text}'
                    faults.append(Fault(what=f"{what} by the same condition", rule=at))
            acts.append((_digest(canonical(rule.when)), rule, action))
    return faults


def _opposed(one: Action, other: Action) -> bool:
    same = (one.node, one.workflow) == (other.node, other.workflow)
    return same and one.do != other.do


def _overlap(one: Rule, other: Rule) -> bool:
    shared = set(one.only_if) & set(other.only_if)
    return all(set(one.only_if[node]) & set(other.only_if[node]) for node in shared)


def _circles(workflow: Workflow) -> list[Fault]:
    """Starts that lead to themselves by what nodes do alone: they would never end."""
    leads: dict[str, set[tuple[str, int]]] = {}
    for at, rule in enumerate(workflow.rules):
        for source in _own_causes(rule.when, workflow.name) or ():
            for action in rule.then:
                if action.node is not None and action.do != "stop" and not rule.once:
                    leads.setdefault(source, set()).add((action.node, at))
    found: dict[int, Fault] = {}
    for source, targets in leads.items():
        for target, at in targets:
            if source in _reached(target, leads):
                what = f'starting "{target}" leads to starting it again without an event from outside'
                found.setdefault(at, Fault(what=what, rule=at))
    return list(found.values())


def _reached(node: str, leads: dict[str, set[tuple[str, int]]]) -> set[str]:
    reached, waiting = {node}, [node]
    while waiting:
        for target, _ in leads.get(waiting.pop(), ()):
            if target not in reached:
                reached.add(target)
                waiting.append(target)
    return reached


def _own_causes(condition: Condition, workflow: str) -> set[str] | None:
    """The nodes whose doings alone can meet the condition; None when something else is needed, such as an event."""
    if isinstance(condition, StatusIs):
        return {condition.node}
    if isinstance(condition, EventIs):
        own = condition.type in JOB_EVENTS and condition.key is not None and condition.namespace in (None, workflow)
        return {str(condition.key)} if own else None
    if isinstance(condition, Absence):  # a silence passes by itself, but as slowly as it says
        return None
    inner = [_own_causes(term, workflow) for term in terms_of(condition)]
    known = [causes for causes in inner if causes is not None]
    if not known or (isinstance(condition, AllOf | Sequence) and len(known) < len(inner)):
        return None
    return set().union(*known)


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
