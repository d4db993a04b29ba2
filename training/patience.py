"""Doing things again while a server is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import ServerUnavailable

__all__ = ["patiently"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")


def patiently(action: Callable[[], _T], *, until: threading.Event | None = None, give_up_s: float | None = None) -> _T:
    """Do it, and again with back-off while a server is away; answers what it answers.

    Raises ServerUnavailable once `until` is set or `give_up_s` (wall time) are over; by default never.

    >>> answers = iter([ServerUnavailable("away"), 7])
    >>> def ask():
    ...     answer = next(answers)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> patiently(ask)
    7
    """
    failures, backoff, start_s = 0, Backoff(), monotonic_s()
    pause = until or threading.Event()
    while True:
        try:
            return action()
        except ServerUnavailable as error:
            failures += 1
            log.warning("training_waits_for_server", extra={"cause": error.message, "failures": failures})
            over = give_up_s is not None and monotonic_s() - start_s >= give_up_s
            if over or pause.wait(backoff.wait_s(failures)):
                raise
