"""When a run of the static features begins by itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class DailyRuns:
    """Lets a run begin whenever one is due. One process does it for all.

    `due`: whether there is something to do; `run`: does it, and returns soon after its event is set. `every_s` of wall
    time between two looks.
    """

    def __init__(self, *, due: Callable[[], bool], run: Callable[[threading.Event], None], every_s: float) -> None:
        self._due = due
        self._run = run
        self._every_s = every_s
        self.trouble = ""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. A run that fails is begun again at the next look: it must not stop its stage."""
        while not stop.wait(self._every_s):
            try:
                if self._due():
                    self._run(stop)
                self.trouble = ""
            except Exception as error:
                self.trouble = f"static features: {error}"
                log.exception("daily_run_failed")
