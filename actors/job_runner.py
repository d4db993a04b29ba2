"""Where jobs run: the port, and a runner in memory that finishes jobs as a test says."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from rtrec_ray.stores.workflow.store import End, WorkflowStore
from rtrec_ray.workflow.nodes import Order

# unknown: the job server never heard of it, or forgot it when it died.
JobState = Literal["going", "ended", "unknown"]


class JobRunner(Protocol):
    """Runs jobs by the id of their run. Every method raises ServerUnavailable while the job server is away."""

    def start(self, order: Order, /) -> None:
        """Submit the job of a start; a second time for the same run does no work."""
        ...

    def stop(self, run_id: str, /) -> None:
        """Let a job end; one that is over or unknown is passed over."""
        ...

    def look(self, run_ids: Sequence[str], /) -> Mapping[str, JobState]:
        """How the jobs stand."""
        ...

    def log(self, run_id: str, /) -> str:
        """What a job wrote."""
        ...


class MemoryJobRunner:
    """Jobs that claim their run as they are submitted, and end at once (`ends`), when told, or never.

    `ends`: node → how its jobs end; a node that is not there goes on.
    """

    def __init__(self, store: WorkflowStore, *, ends: Mapping[str, End] | None = None) -> None:
        self._store = store
        self._ends = dict(ends or {})
        self.submitted: list[str] = []
        self.claimed: list[str] = []
        self._going: set[str] = set()

    def start(self, order: Order, /) -> None:
        """See JobRunner."""
        self.submitted.append(order.run)
        if self._store.claim(order.run, owner=uuid.uuid4().hex) is None:
            return
        self.claimed.append(order.run)
        self._going.add(order.run)
        if order.node in self._ends:
            self.end(order.run, self._ends[order.node])

    def stop(self, run_id: str, /) -> None:
        """See JobRunner."""
        if run_id in self._going:
            self.end(run_id, "stopped")

    def look(self, run_ids: Sequence[str], /) -> Mapping[str, JobState]:
        """See JobRunner."""
        return {run: "going" if run in self._going else "unknown" for run in run_ids}

    def log(self, run_id: str, /) -> str:
        """See JobRunner."""
        return ""

    def end(self, run_id: str, state: End) -> None:
        """A job ends by itself."""
        self._going.discard(run_id)
        self._store.finish(run_id, state)

    def lose(self) -> None:
        """The job server dies with all its jobs."""
        self._going.clear()
