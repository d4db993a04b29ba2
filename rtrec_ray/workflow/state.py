"""A workflow as it stands: what is stored of it, what must be stored together, and how it is held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.events import Announcement
from rtrec_ray.workflow.nodes import NodeState, Order
from rtrec_ray.workflow.rules import Place, RuleState, begin
from rtrec_ray.workflow.stimuli import StatusChanged


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a rule would have sent, had its workflow not been paused."""

    rule: str
    type: str
    key: str
    value: str
    by: tuple[int, ...] = ()

    @property
    def kind(self) -> tuple[str, str, str]:
        """Of all that are alike the newest is held: a pause may be long, and the last word says what is wanted now."""
        return self.rule, self.type, self.key

    def announcement(self, workflow: str) -> Announcement:
        """The event."""
        context = {"rule": self.rule, "by": list(self.by)}
        return Announcement(type=self.type, key=self.key, value=self.value, workflow=workflow, context=context)


class WorkflowState(msgspec.Struct, frozen=True, kw_only=True):
    """`active`: its rules act. `paused`: starts wait, and the events that rules send, in `held`.

    `turn`: the last place in the line of starts.
    """

    digest: str
    active: bool = True
    paused: bool = False
    turn: int = 0
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A workflow as it is stored."""

    definition: Workflow
    state: WorkflowState
    rules: Mapping[str, RuleState]
    nodes: Mapping[str, NodeState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What must be stored together. None in place of a state: it is gone.

    `position`: the last event handled; `time_ms`: the last time told.
    """

    position: int
    time_ms: int
    workflows: Mapping[str, WorkflowState | None] = field(default_factory=dict)
    rules: Mapping[Place, RuleState | None] = field(default_factory=dict)
    nodes: Mapping[Place, NodeState | None] = field(default_factory=dict)
    orders: tuple[Order, ...] = ()
    announcements: tuple[Announcement, ...] = ()


class Running:
    """A workflow in memory."""

    def __init__(self, saved: Saved) -> None:
        self.definition = saved.definition
        self.state = saved.state
        self.rules = dict(saved.rules)
        self.nodes = dict(saved.nodes)
        self.rule_by_name = {rule.name: rule for rule in saved.definition.rules}
        self.node_by_name = {node.name: node for node in saved.definition.nodes}


Hold = Literal["paused", "concurrency"]


def hold_of(flow: Saved | Running, at: str) -> Hold | None:
    """Why a start that the node waits for may not be given, apart from the node itself; None: it may."""
    if flow.state.paused and not flow.nodes[at].waiting[0].manual:
        return "paused"
    limit = flow.definition.concurrency
    if limit is None:
        return None
    batch = [node.name for node in flow.definition.nodes if node.kind == "batch"]
    return "concurrency" if at in batch and len(going(flow)) >= limit else None


def going(flow: Saved | Running) -> list[str]:
    """The batch nodes that have a run."""
    return [node.name for node in flow.definition.nodes if node.kind == "batch" and flow.nodes[node.name].run]


def applied(definition: Workflow, old: Running | None, *, fresh: NodeState, time_ms: int) -> Running:
    """The workflow by a definition from now on: nodes, and rules that did not change, go on with what they are.

    `fresh`: of nodes that were not there.
    """
    kept = {} if old is None else old.nodes
    nodes = {node.name: kept.get(node.name, fresh) for node in definition.nodes}
    status = [StatusChanged(node=name, state=each.state, time_ms=time_ms) for name, each in nodes.items()]
    rules = {}
    for rule in definition.rules:
        earlier = None if old is None else old.rules.get(rule.name)
        same = earlier is not None and earlier.digest == rule.digest
        rules[rule.name] = earlier if earlier is not None and same else begin(rule, time_ms, status)
    state = WorkflowState(digest=definition.digest) if old is None else old.state
    state = msgspec.structs.replace(state, digest=definition.digest)
    return Running(Saved(definition=definition, state=state, rules=rules, nodes=nodes))
