"""The Ray actor of everything that never ends: threads that work, and a process that ends when one of them does.

Ray starts the process again (max_restarts), and the work goes on from what was committed: nothing else supervises it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rtrec_ray.facts import log_facts
from rtrec_ray.garbage import collect_rarely

log = logging.getLogger(__name__)


class Work(Protocol):
    """Something that never ends of itself."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; leave what was done in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What an actor says of itself. `trouble`: what hinders its work, empty while nothing does."""

    pid: int
    trouble: str


class StageActor:
    """Runs each piece of work in a thread. They are made in the actor's own process."""

    def __init__(self, make_work: Callable[[], Sequence[Work]]) -> None:
        log_facts()
        self._stop = threading.Event()
        self._work = make_work()
        collect_rarely()  # looking for cycles took a quarter of the time
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in self._work]
        for thread in self._threads:
            thread.start()

    def health(self) -> Health:
        """Whether it works, and what hinders it."""
        troubles = (getattr(each, "trouble", "") for each in self._work)
        return Health(pid=os.getpid(), trouble="; ".join(filter(None, troubles)))

    def stop(self) -> None:
        """Let the work end in order, and return when it has."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Work) -> None:
        try:
            work.run(self._stop)
        except Exception:
            log.exception("work_crashed")
        if not self._stop.is_set():
            # An actor whose thread is dead would look alive: end the process, so that Ray starts it again.
            os._exit(70)
