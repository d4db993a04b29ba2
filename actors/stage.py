"""The Ray actor of a stage: a thread that runs the loop, and a process that ends when the thread does.

Ray starts the process again (max_restarts), and the loop goes on from what was committed: nothing else supervises a
stage.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from actors.task import TaskLoop
from rtrec_ray.facts import log_facts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What an actor says of itself. `trouble`: why its last session ended, empty while it works."""

    pid: int
    trouble: str


class StageActor:
    """Runs one share of a stage. `make_loop` is called in the actor's own process."""

    def __init__(self, make_loop: Callable[[], TaskLoop]) -> None:
        log_facts()
        self._stop = threading.Event()
        self._loop = make_loop()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def health(self) -> Health:
        """Whether it works, and what hinders it."""
        return Health(pid=os.getpid(), trouble=self._loop.trouble)

    def stop(self) -> None:
        """Commit what there is, give the leases back, and return when that is done."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run(self._stop)
        except Exception:
            log.exception("stage_crashed")
            # An actor whose thread is dead would look alive: end the process, so that Ray starts it again.
            os._exit(70)
