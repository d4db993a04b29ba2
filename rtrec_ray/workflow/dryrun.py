"""What a workflow would have done over a stretch of the event log, if each of its jobs had succeeded at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.events import CONTROL_EVENTS, JOB_STARTED, JOB_SUCCEEDED, SENDER, WHOLE, WORKFLOW_REQUESTED
from rtrec_ray.workflow.scheduler import Scheduler
from rtrec_ray.workflow.stimuli import Occurred


@dataclass(frozen=True, slots=True, kw_only=True)
class Would:
    """An order that would have been given at `time_ms`, by a rule that the events at the offsets `by` met.

    `node`: the type of the event where `do` is send.
    """

    time_ms: int
    do: str
    node: str
    rule: str
    by: tuple[int, ...]


def dry_run(workflow: Workflow, events: Iterable[Occurred], *, since_ms: int, until_ms: int) -> list[Would]:
    """Go over the log from `since_ms` to `until_ms`; what its own jobs and requests said then is left out."""
    rehearsal = _Rehearsal(workflow, since_ms)
    for event in events:
        own = event.type in CONTROL_EVENTS or event.sender == SENDER
        if not (own and event.namespace == workflow.name):
            rehearsal.feed(event)
    rehearsal.end(until_ms)
    return rehearsal.found


class _Rehearsal:
    """A scheduler whose events are numbered anew, as those of the jobs that never were come in between."""

    def __init__(self, workflow: Workflow, since_ms: int) -> None:
        self._workflow = workflow
        self._scheduler = Scheduler(time_ms=since_ms)
        self._scheduler.know(workflow)
        self._offsets: dict[int, int] = {}
        self._number = 0
        self.found: list[Would] = []
        context = {"digest": workflow.digest, "first": True}
        self._take(_own(workflow, WORKFLOW_REQUESTED, WHOLE, "apply", since_ms, context))

    def feed(self, event: Occurred) -> None:
        """The next event of the log."""
        self._advance(event.time_ms)
        if (event.type, event.value) != (WORKFLOW_REQUESTED, "remove"):  # it was another that was taken out
            self._take(event)

    def end(self, until_ms: int) -> None:
        """Schedules and silences up to the end."""
        self._advance(until_ms)

    def _advance(self, until_ms: int) -> None:
        """To each time that is due, as a scheduler that is always there would."""
        while (due := self._scheduler.next_ms()) is not None and due <= until_ms:
            self._scheduler.tick(now_ms=due, wall_ms=0)
            self._pretend()

    def _take(self, event: Occurred) -> None:
        self._number += 1
        self._offsets[self._number] = event.offset
        self._scheduler.handle(replace(event, offset=self._number), now_ms=event.time_ms, wall_ms=0)
        self._pretend()

    def _pretend(self) -> None:
        """Let each job that was started begin, and a batch job succeed."""
        kinds = {node.name: node.kind for node in self._workflow.nodes}
        changes, now_ms = self._scheduler.changes(), self._scheduler.time_ms
        for sent in changes.announcements:
            if sent.type not in CONTROL_EVENTS:
                by = self._known(sent.context["by"])
                self.found.append(Would(time_ms=now_ms, do="send", node=sent.type, rule=sent.context["rule"], by=by))
                self._take(_own(self._workflow, sent.type, sent.key, sent.value, now_ms, {}))
        for order in changes.orders:
            by = self._known(order.cause.by)
            self.found.append(Would(time_ms=now_ms, do=order.do, node=order.node, rule=order.cause.rule, by=by))
            says = [JOB_STARTED, JOB_SUCCEEDED] if kinds[order.node] == "batch" else [JOB_STARTED]
            for kind in says if order.do == "start" else ["JOB_STOPPED"]:
                self._take(_own(self._workflow, kind, order.node, order.run, now_ms, {}))

    def _known(self, by: Iterable[int]) -> tuple[int, ...]:
        """The offsets of those events that were in the log."""
        return tuple(self._offsets[offset] for offset in by if self._offsets.get(offset))


def _own(workflow: Workflow, kind: str, key: str, value: str, time_ms: int, context: dict[str, Any]) -> Occurred:
    return Occurred(
        offset=0,
        key=key,
        value=value,
        type=kind,
        namespace=workflow.name,
        sender=SENDER,
        time_ms=time_ms,
        context=context,
    )
