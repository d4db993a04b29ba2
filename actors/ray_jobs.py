"""Jobs of a workflow as Ray Jobs: the submission id is the run's id, so a second submission is refused by Ray."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from actors.job_runner import JobState
from rtrec_ray.errors import RayUnavailable
from rtrec_ray.workflow.nodes import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJobsOptions:
    """`address`: of the job server (the dashboard). `command`: what runs a run, to which its id is added.

    `prefix`: sets the runs of this system apart from those of others on one cluster, and of one that was before it.
    """

    address: str
    command: tuple[str, ...]
    prefix: str = "rtrec"
    environment: Mapping[str, str] = field(default_factory=dict)


class RayJobRunner:
    """See JobRunner."""

    def __init__(self, options: RayJobsOptions) -> None:
        self._options = options
        self._made: Any = None

    def start(self, order: Order, /) -> None:
        """See JobRunner."""
        words = [*self._options.command, order.run]
        with _translated():
            if self._status(order.run) is not None:
                return
            self._client().submit_job(
                entrypoint=shlex.join(words),
                submission_id=self._id(order.run),
                metadata={"workflow": order.workflow, "node": order.node},
                runtime_env={"env_vars": dict(self._options.environment)},
            )

    def stop(self, run_id: str, /) -> None:
        """See JobRunner."""
        with _translated():
            if self._status(run_id) in ("PENDING", "RUNNING"):
                self._client().stop_job(self._id(run_id))

    def look(self, run_ids: Sequence[str], /) -> Mapping[str, JobState]:
        """See JobRunner."""
        with _translated():
            return {run_id: _state(self._status(run_id)) for run_id in run_ids}

    def log(self, run_id: str, /) -> str:
        """See JobRunner."""
        with _translated():
            if self._status(run_id) is None:
                return ""
            return str(self._client().get_job_logs(self._id(run_id)))

    def _status(self, run_id: str) -> str | None:
        try:
            return str(self._client().get_job_status(self._id(run_id)).value)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return None
            raise

    def _client(self) -> Any:
        if self._made is None:
            from ray.job_submission import JobSubmissionClient  # asks the server its version as it is made

            self._made = JobSubmissionClient(self._options.address)
        return self._made

    def _id(self, run_id: str) -> str:
        return f"{self._options.prefix}.{run_id}"


def _state(status: str | None) -> JobState:
    if status is None:
        return "unknown"
    return "going" if status in ("PENDING", "RUNNING") else "ended"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, OSError) as error:
        cause = (str(error).strip() or repr(error)).splitlines()[-1]
        raise RayUnavailable(
            f"Ray's job server does not answer: {cause}", mend="`rtrec status` shows its address"
        ) from error
