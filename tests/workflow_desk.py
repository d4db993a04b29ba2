"""Workflows for tests, and the way from the event log to a scheduler."""

from __future__ import annotations

from actors.workflow_log import new_event, occurred
from rtrec_ray.clock import Clock
from rtrec_ray.notification import Event, MemoryNotificationStore
from rtrec_ray.stores.workflow.memory import MemoryWorkflowStore
from rtrec_ray.workflow.conditions import EventIs
from rtrec_ray.workflow.definition import Action, Node, Rule, Workflow
from rtrec_ray.workflow.events import Announcement
from rtrec_ray.workflow.stimuli import Occurred

__all__ = ["Desk", "node", "on", "workflow"]


def node(name: str, **more: object) -> Node:
    return Node(name=name, command=("true",), **more)  # type: ignore[arg-type]


def on(name: str, when: object, *, do: str = "start", node: str = "n", **more: object) -> Rule:
    condition = EventIs(key=when) if isinstance(when, str) else when
    return Rule(name=name, when=condition, then=(Action(do=do, node=node),), **more)  # type: ignore[arg-type]


def workflow(nodes: tuple[Node, ...], rules: tuple[Rule, ...], *, name: str = "w", **more: object) -> Workflow:
    return Workflow(name=name, nodes=nodes, rules=rules, **more)  # type: ignore[arg-type]


class Desk:
    """A log and a store in memory that belong together."""

    def __init__(self, clock: Clock) -> None:
        self.log = MemoryNotificationStore(clock=clock)
        self.store = MemoryWorkflowStore(self._send)

    def _send(self, cursor: object, what: Announcement) -> Event:
        return self.log.send_in(cursor, new_event(what))

    def events(self, after_offset: int = 0) -> list[Occurred]:
        return [occurred(event) for event in self.log.list(after_offset=after_offset, limit=100_000)]
