"""What keeps the event log from growing for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing

from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification.base import NotificationStore, Retention

log = logging.getLogger(__name__)


class LogTrimmer:
    """Removes what need not be kept, each `every_s` of wall time. Several of them at a time do no harm."""

    def __init__(
        self, connect: Callable[[], NotificationStore], retention: Retention, *, every_s: float = 60.0
    ) -> None:
        self._connect = connect
        self._retention = retention
        self._every_s = every_s

    def run(self, stop: threading.Event) -> None:
        """Trim until `stop` is set; while the store is away, later."""
        with closing(self._connect()) as store:
            while not stop.is_set():
                try:
                    if removed := store.trim(self._retention):
                        log.info("events_trimmed", extra={"events": removed})
                except StoreUnavailable as error:
                    log.warning("events_not_trimmed", extra={"cause": error.message})
                stop.wait(self._every_s)
