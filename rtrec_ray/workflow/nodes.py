"""The state machine of one node: requests, what its run reports, and time in; orders out. Wall time, ms.

A node has one run at a time. What asks for another waits in `waiting`; `give` begins the next one, which the scheduler
calls when nothing forbids it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from rtrec_ray.workflow.definition import Do, Kind, Node
from rtrec_ray.workflow.events import JOB_FAILED, JOB_STARTED, JOB_STOPPED, JOB_SUCCEEDED


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node is asked for something: a rule and the offsets that met it, or a request. `turn`: place in line."""

    rule: str = ""
    by: tuple[int, ...] = ()
    turn: int = 0
    manual: bool = False
    retry: bool = False


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """A node's state. `number`: of its newest run; `attempt`: retries used; `reason`: why its run is being stopped."""

    state: str = "idle"
    run: str | None = None
    number: int = 0
    attempt: int = 0
    since_wall_ms: int = 0
    retry_wall_ms: int | None = None
    reason: str = ""
    waiting: tuple[Cause, ...] = ()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be done, once. A start's id is its run's; a stop's is that with `.stop`."""

    id: str
    do: Literal["start", "stop"]
    workflow: str
    node: str
    run: str
    attempt: int
    reason: str
    cause: Cause
    command: tuple[str, ...] = ()
    kind: Kind = "batch"
    heartbeat_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A next state, an order if one is given, and whether the node failed for good."""

    state: NodeState
    order: Order | None = None
    failed: str | None = None


FAULTS = ("timeout", "heartbeat")


def ask(node: Node, state: NodeState, do: Do, cause: Cause, *, workflow: str) -> Decided:
    """Someone wants the node started, stopped or restarted."""
    if do == "start":
        return Decided(state=_queued(node, state, cause))
    if do == "stop":
        return _stop(msgspec.structs.replace(state, waiting=(), retry_wall_ms=None), "request", cause, workflow, node)
    if state.run is None:
        fresh = msgspec.structs.replace(state, retry_wall_ms=None)
        return Decided(state=_queued(node, fresh, cause))
    # A second restart before the first one's start is the same wish.
    again = state.waiting if state.reason == "restart" else (cause, *state.waiting)
    return _stop(msgspec.structs.replace(state, waiting=again), "restart", cause, workflow, node)


def report(node: Node, state: NodeState, event: str, run: str, *, wall_ms: int) -> Decided:
    """A run began or ended (JOB_...). What another run than the current one says changes nothing."""
    if run != state.run:
        return Decided(state=state)
    if event == JOB_STARTED:
        begun = "running" if state.state == "starting" else state.state
        return Decided(state=msgspec.structs.replace(state, state=begun, since_wall_ms=wall_ms))
    ended = msgspec.structs.replace(state, run=None, reason="", since_wall_ms=wall_ms)
    if event == JOB_SUCCEEDED:
        return Decided(state=_rest(ended, "succeeded"))
    if state.reason in FAULTS or (event == JOB_FAILED and not state.reason):
        return _failed(node, state, ended, wall_ms=wall_ms)
    assert event in (JOB_FAILED, JOB_STOPPED)
    return Decided(state=_rest(ended, "stopped"))


def look(node: Node, state: NodeState, *, workflow: str, wall_ms: int) -> Decided:
    """Time went on: a retry is due, or a run goes on for too long."""
    if state.retry_wall_ms is not None and state.retry_wall_ms <= wall_ms:
        again = (Cause(rule="retry", retry=True), *state.waiting)
        return Decided(state=msgspec.structs.replace(state, state="queued", retry_wall_ms=None, waiting=again))
    over = node.timeout_ms is not None and wall_ms - state.since_wall_ms >= node.timeout_ms
    if state.run is not None and state.state != "stopping" and over:
        return _stop(state, "timeout", Cause(rule="timeout"), workflow, node)
    return Decided(state=state)


def silent(node: Node, state: NodeState, run: str, *, workflow: str) -> Decided:
    """A run's heartbeat is overdue."""
    if run != state.run or state.state == "stopping":
        return Decided(state=state)
    return _stop(state, "heartbeat", Cause(rule="heartbeat"), workflow, node)


def ready(state: NodeState) -> Cause | None:
    """What waits to be started and could be, as far as the node itself is concerned."""
    free = state.run is None and state.retry_wall_ms is None
    return state.waiting[0] if free and state.waiting else None


def give(node: Node, state: NodeState, *, workflow: str, wall_ms: int) -> Decided:
    """Order the next run. Its id follows from the state alone, so deciding again after a crash gives the same one."""
    cause, number = state.waiting[0], state.number + 1
    run = f"{workflow}.{node.name}.{number}"
    attempt = state.attempt if cause.retry else 0
    begun = msgspec.structs.replace(
        state,
        state="starting",
        run=run,
        number=number,
        attempt=attempt,
        since_wall_ms=wall_ms,
        waiting=state.waiting[1:],
    )
    order = Order(
        id=run,
        do="start",
        workflow=workflow,
        node=node.name,
        run=run,
        attempt=attempt,
        reason="",
        cause=cause,
        command=node.command,
        kind=node.kind,
        heartbeat_ms=node.heartbeat_ms,
    )
    return Decided(state=begun, order=order)


def _queued(node: Node, state: NodeState, cause: Cause) -> NodeState:
    busy = state.run is not None and state.state != "stopping"
    enough = node.kind == "endless" or node.if_running == "skip"
    if enough or node.if_running == "again":
        if state.waiting or (busy and enough):
            return state
        if state.retry_wall_ms is not None:
            return msgspec.structs.replace(state, retry_wall_ms=0)
    calm = state.run is None and state.retry_wall_ms is None
    return msgspec.structs.replace(state, state="queued" if calm else state.state, waiting=(*state.waiting, cause))


def _stop(state: NodeState, reason: str, cause: Cause, workflow: str, node: Node) -> Decided:
    if state.run is None:
        calm = "stopped" if state.state in ("waiting", "queued") else state.state
        return Decided(state=msgspec.structs.replace(state, state=calm))
    if state.state == "stopping":  # its order is given; a person's word goes before the fault that gave it
        return Decided(state=msgspec.structs.replace(state, reason=reason))
    order = Order(
        id=f"{state.run}.stop",
        do="stop",
        workflow=workflow,
        node=node.name,
        run=state.run,
        attempt=state.attempt,
        reason=reason,
        cause=cause,
    )
    return Decided(state=msgspec.structs.replace(state, state="stopping", reason=reason), order=order)


def _failed(node: Node, state: NodeState, ended: NodeState, *, wall_ms: int) -> Decided:
    steady = state.state == "running" and wall_ms - state.since_wall_ms >= node.steady_ms
    used = 0 if steady else state.attempt
    if used >= node.retries:
        return Decided(state=_rest(ended, "failed"), failed=state.run)
    wait_ms = min(node.longest_backoff_ms, node.backoff_ms * 2 ** min(used, 40))
    return Decided(
        state=msgspec.structs.replace(ended, state="waiting", attempt=used + 1, retry_wall_ms=wall_ms + wait_ms)
    )


def _rest(ended: NodeState, state: str) -> NodeState:
    return msgspec.structs.replace(ended, state=state, attempt=0)
