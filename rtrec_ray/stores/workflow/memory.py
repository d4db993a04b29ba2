"""Workflows in memory: for tests and for a process by itself."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from rtrec_ray.clock import wall_ms
from rtrec_ray.errors import DefinitionInvalid, LeaseHeld, LeaseLost
from rtrec_ray.stores.workflow.store import EVENT_OF, Also, Claim, End, Loaded, Run, Send
from rtrec_ray.workflow.check import check
from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.events import WHOLE, WORKFLOW_REQUESTED, Announcement
from rtrec_ray.workflow.file import parse_workflow
from rtrec_ray.workflow.nodes import NodeState, Order
from rtrec_ray.workflow.rules import RuleState
from rtrec_ray.workflow.state import Changes, Saved, WorkflowState
from rtrec_ray.workflow.text import to_text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    run: Run
    command: tuple[str, ...]
    beat_ms: int


class MemoryWorkflowStore:
    """A WorkflowStore that ends with its process."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = threading.RLock()
        self._definitions: dict[str, Workflow] = {}
        self._versions: dict[str, list[str]] = {}
        self._position, self._time_ms = 0, 0
        self._workflows: dict[str, WorkflowState] = {}
        self._rules: dict[tuple[str, str], RuleState] = {}
        self._nodes: dict[tuple[str, str], NodeState] = {}
        self.orders: dict[str, Order] = {}
        self._carried: set[str] = set()
        self._runs: dict[str, _Row] = {}
        self._epoch, self._expires_ms = 0, 0

    def apply(self, workflow: Workflow, /, *, also: Also | None = None) -> int:
        """See WorkflowStore."""
        raise_faults(workflow)
        with self._lock:
            versions = self._versions.setdefault(workflow.name, [])
            asked = applying(workflow, first=not versions)
            if workflow.digest not in versions:
                versions.append(workflow.digest)
            self._definitions[workflow.digest] = workflow
            self.request(asked, also=also)
            return versions.index(workflow.digest) + 1

    def definition(self, digest: str, /) -> Workflow | None:
        """See WorkflowStore."""
        return self._definitions.get(digest)

    def request(self, what: Announcement, /, *, also: Also | None = None) -> None:
        """See WorkflowStore."""
        if also is not None:
            also(None)
        self._send(None, what)

    def load(self) -> Loaded:
        """See WorkflowStore."""
        with self._lock:
            workflows = {
                name: Saved(
                    definition=self._definitions[state.digest],
                    state=state,
                    rules={rule: each for (of, rule), each in self._rules.items() if of == name},
                    nodes={node: each for (of, node), each in self._nodes.items() if of == name},
                )
                for name, state in self._workflows.items()
            }
            return Loaded(position=self._position, time_ms=self._time_ms, workflows=workflows)

    def open_session(self, *, owner: str, ttl_ms: int) -> MemorySchedulerSession:
        """See WorkflowStore."""
        with self._lock:
            if wall_ms() < self._expires_ms:
                raise LeaseHeld("workflow[0] belongs to another scheduler")
            self._epoch += 1
            self._expires_ms = wall_ms() + ttl_ms
            return MemorySchedulerSession(self, epoch=self._epoch, ttl_ms=ttl_ms)

    def open_orders(self, *, limit: int = 1_000) -> tuple[Order, ...]:
        """See WorkflowStore."""
        with self._lock:
            return tuple(order for order in self.orders.values() if order.id not in self._carried)[:limit]

    def carried(self, order_id: str, /) -> None:
        """See WorkflowStore."""
        with self._lock:
            self._carried.add(order_id)

    def claim(self, run_id: str, /, *, owner: str) -> Claim | None:
        """See WorkflowStore."""
        with self._lock:
            row = self._runs.get(run_id)
            if row is None or (row.run.state, row.run.owner) not in (("ordered", None), ("running", owner)):
                return None
            if row.run.state == "ordered":
                self._change(run_id, state="running", owner=owner)
            return Claim(run_id=run_id, workflow=row.run.workflow, node=row.run.node, command=row.command)

    def beat(self, run_id: str, /, *, owner: str) -> bool:
        """See WorkflowStore."""
        with self._lock:
            row = self._runs.get(run_id)
            if row is None or row.run.state != "running" or row.run.owner != owner:
                return False
            self._runs[run_id] = replace(row, beat_ms=wall_ms())
            return not row.run.stop_requested

    def request_stop(self, run_id: str, /) -> None:
        """See WorkflowStore."""
        with self._lock:
            row = self._runs.get(run_id)
            if row is not None and row.run.state == "ordered":
                self._change(run_id, state="stopped", reason="stopped before it began")
            elif row is not None and row.run.state == "running":
                self._runs[run_id] = replace(row, run=replace(row.run, stop_requested=True))

    def finish(self, run_id: str, state: End, /, *, reason: str = "", owner: str | None = None) -> bool:
        """See WorkflowStore."""
        with self._lock:
            row = self._runs.get(run_id)
            if row is None or row.run.state not in ("ordered", "running") or owner not in (None, row.run.owner):
                return False
            self._change(run_id, state=state, reason=reason)
            return True

    def runs_going(self) -> tuple[Run, ...]:
        """See WorkflowStore."""
        with self._lock:
            return tuple(self._seen(row) for row in self._runs.values() if row.run.state in ("ordered", "running"))

    def runs_of(self, workflow: str, node: str, /, *, limit: int = 20) -> tuple[Run, ...]:
        """See WorkflowStore."""
        with self._lock:
            found = [row for row in self._runs.values() if (row.run.workflow, row.run.node) == (workflow, node)]
            return tuple(self._seen(row) for row in reversed(found))[:limit]

    def close(self) -> None:
        """Nothing to give back."""

    def store(self, changes: Changes, *, epoch: int, ttl_ms: int) -> None:
        """What a session commits."""
        with self._lock:
            self.hold(epoch=epoch, ttl_ms=ttl_ms)
            if repeated := [order.id for order in changes.orders if order.id in self.orders]:
                raise AssertionError(f"orders given twice: {repeated}")
            self._position, self._time_ms = changes.position, changes.time_ms
            _update(self._workflows, changes.workflows)
            _update(self._rules, changes.rules)
            _update(self._nodes, changes.nodes)
            for order in changes.orders:
                self._take(order)
            for each in changes.announcements:
                self._send(None, each)

    def hold(self, *, epoch: int, ttl_ms: int) -> None:
        """Renew the lease of `epoch`. Raises LeaseLost."""
        if epoch != self._epoch:
            raise LeaseLost(f"workflow[0] epoch {epoch} was taken over")
        self._expires_ms = wall_ms() + ttl_ms

    def release(self, *, epoch: int) -> None:
        """Give the lease of `epoch` back."""
        if epoch == self._epoch:
            self._expires_ms = 0

    def _take(self, order: Order) -> None:
        self.orders[order.id] = order
        if order.do == "start":
            run = Run(
                run_id=order.run,
                workflow=order.workflow,
                node=order.node,
                kind=order.kind,
                state="ordered",
                stop_requested=False,
                owner=None,
                reason="",
                attempt=order.attempt,
                heartbeat_ms=order.heartbeat_ms,
                silent_ms=0,
            )
            self._runs[order.run] = _Row(run=run, command=order.command, beat_ms=wall_ms())

    def _change(self, run_id: str, **changed: Any) -> None:
        run = replace(self._runs[run_id].run, **changed)
        self._runs[run_id] = replace(self._runs[run_id], run=run, beat_ms=wall_ms())
        self._send(None, told(run_id, run.workflow, run.node, run.state, run.reason))

    @staticmethod
    def _seen(row: _Row) -> Run:
        return replace(row.run, silent_ms=wall_ms() - row.beat_ms)


class MemorySchedulerSession:
    """See SchedulerSession."""

    def __init__(self, store: MemoryWorkflowStore, *, epoch: int, ttl_ms: int) -> None:
        self._store, self._epoch, self._ttl_ms = store, epoch, ttl_ms

    def commit(self, changes: Changes, /) -> None:
        """See SchedulerSession."""
        self._store.store(changes, epoch=self._epoch, ttl_ms=self._ttl_ms)

    def renew(self) -> None:
        """See SchedulerSession."""
        self._store.hold(epoch=self._epoch, ttl_ms=self._ttl_ms)

    def close(self) -> None:
        """See SchedulerSession."""
        self._store.release(epoch=self._epoch)


def raise_faults(workflow: Workflow) -> None:
    """Refuse a workflow that contradicts itself. Raises DefinitionInvalid."""
    for fault in check(workflow):
        raise DefinitionInvalid(f"workflow {workflow.name}: {fault.what}")
    text = to_text(workflow)
    if parse_workflow(text, source=f"workflow {workflow.name}") != workflow:  # what was made in Python, not read
        raise DefinitionInvalid(f"workflow {workflow.name} says what its file cannot say:\n{text}")


def applying(workflow: Workflow, *, first: bool) -> Announcement:
    """The request to go by a definition. `first`: nothing was ever applied under its name, so no run has a number."""
    context = {"digest": workflow.digest, "first": first}
    return Announcement(type=WORKFLOW_REQUESTED, key=WHOLE, value="apply", workflow=workflow.name, context=context)


def told(run_id: str, workflow: str, node: str, state: str, reason: str) -> Announcement:
    """The event of a run's change of state."""
    context = {"reason": reason} if reason else {}
    return Announcement(type=EVENT_OF[state], key=node, value=run_id, workflow=workflow, context=context)


def _update(into: dict[Any, Any], changes: Any) -> None:
    for key, value in changes.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value
