"""Where workflows live: definitions, the scheduler's state, its orders, the runs. The port.

Two sides use it. The scheduler opens a session, which holds the lease, and moves its state, position and orders in one
transaction. Jobs claim, beat and finish their run, each change of state together with its event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from rtrec_ray.workflow.definition import Kind, Workflow
from rtrec_ray.workflow.events import JOB_FAILED, JOB_STARTED, JOB_STOPPED, JOB_SUCCEEDED, Announcement
from rtrec_ray.workflow.nodes import Order
from rtrec_ray.workflow.state import Changes, Saved

End = Literal["succeeded", "failed", "stopped"]

# Sends an event in the transaction of the given cursor, so that it is there if, and only if, that commits.
Send = Callable[[Any, Announcement], object]

# Writes more in that transaction.
Also = Callable[[Any], object]

EVENT_OF: Final = {
    "running": JOB_STARTED,
    "succeeded": JOB_SUCCEEDED,
    "failed": JOB_FAILED,
    "stopped": JOB_STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a scheduler goes on from."""

    position: int = 0
    time_ms: int = 0
    workflows: Mapping[str, Saved] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it stands. `silent_ms`: since its last heartbeat, or since it was ordered."""

    run_id: str
    workflow: str
    node: str
    kind: Kind
    state: str
    stop_requested: bool
    owner: str | None
    reason: str
    attempt: int
    heartbeat_ms: int | None
    silent_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a job that claimed its run is to do."""

    run_id: str
    workflow: str
    node: str
    command: tuple[str, ...]


class SchedulerSession(Protocol):
    """The one scheduler's access, as long as its lease is its own."""

    def commit(self, changes: Changes, /) -> None:
        """Store changes, position, orders and announcements, or nothing. Raises LeaseLost, StoreUnavailable."""
        ...

    def renew(self) -> None:
        """Keep the lease while there is nothing to commit. Raises LeaseLost, StoreUnavailable."""
        ...

    def close(self) -> None:
        """Give the lease back."""
        ...


class WorkflowStore(Protocol):
    """Every method raises StoreUnavailable while the store is away."""

    def apply(self, workflow: Workflow, /, *, also: Also | None = None) -> int:
        """Keep a definition and ask the scheduler to go by it; answers its version. Raises DefinitionInvalid.

        `also` writes in the same transaction.
        """
        ...

    def definition(self, digest: str, /) -> Workflow | None:
        """A definition that was applied."""
        ...

    def request(self, what: Announcement, /, *, also: Also | None = None) -> None:
        """Send a request to the scheduler; `also` as in apply."""
        ...

    def load(self) -> Loaded:
        """The scheduler's state as of its last commit."""
        ...

    def open_session(self, *, owner: str, ttl_ms: int) -> SchedulerSession:
        """Become the scheduler; `ttl_ms` in wall time. Raises LeaseHeld."""
        ...

    def open_orders(self, *, limit: int = 1_000) -> tuple[Order, ...]:
        """Orders that nobody has noted as carried out, oldest first."""
        ...

    def carried(self, order_id: str, /) -> None:
        """Note that an order was carried out."""
        ...

    def claim(self, run_id: str, /, *, owner: str) -> Claim | None:
        """Take a run to work on it, and say so once (JOB_STARTED). None: it is another's, or over, or unknown."""
        ...

    def beat(self, run_id: str, /, *, owner: str) -> bool:
        """Say that the job lives; answers whether it is to go on."""
        ...

    def request_stop(self, run_id: str, /) -> None:
        """Ask a run to end. One that nobody has claimed ends at once, and can be claimed no more."""
        ...

    def finish(self, run_id: str, state: End, /, *, reason: str = "", owner: str | None = None) -> bool:
        """Note how a run ended, and say so; False when it was over before, or is not `owner`'s."""
        ...

    def runs_going(self) -> tuple[Run, ...]:
        """Runs that are ordered or running."""
        ...

    def runs_of(self, workflow: str, node: str, /, *, limit: int = 20) -> tuple[Run, ...]:
        """A node's runs, newest first."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...
