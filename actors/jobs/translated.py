"""What happened in a task of Ray Data, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from rtrec_ray.errors import RayUnavailable, RtrecError


@contextmanager
def translated(task: str) -> Iterator[None]:
    """Raises the error of ours that a task raised, where Ray raises one of its own around it; RayUnavailable of others.

    `task`: what the tasks do, for people.
    """
    try:
        yield
    except RayError as error:
        cause = _cause(error)
        if cause is not None:
            raise type(cause)(cause.message, mend=cause.mend) from error
        raise RayUnavailable(
            f"a task that {task} ended: {(str(error).strip() or type(error).__name__).splitlines()[-1]}",
            mend="run it again; what was done stays done",
        ) from error


def _cause(error: BaseException) -> RtrecError | None:
    """The error that our code raised in the task."""
    step: BaseException | None = error
    while step is not None:
        inner = getattr(step, "cause", None)
        if isinstance(inner, RtrecError):
            return inner
        step = step.__cause__
    return None
