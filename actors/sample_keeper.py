"""Removes samples that are beyond retention, on a timer. One process does it for all partitions."""

from __future__ import annotations

import logging
import threading
from typing import Final, Protocol

from rtrec_ray.errors import ServerUnavailable
from rtrec_ray.stores.samples.retention import Removed

log = logging.getLogger(__name__)

_SOON_S: Final = 5.0


class Retention(Protocol):
    """What removes them."""

    def remove_expired(self) -> Removed:
        """One look. Raises StoreUnavailable."""
        ...


class SampleKeeper:
    """`every_s` of wall time between two looks."""

    def __init__(self, retention: Retention, *, every_s: float) -> None:
        self._retention = retention
        self._every_s = every_s
        self.trouble = ""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; while PostgreSQL is away, try again at the next round."""
        wait_s = self._every_s
        while not stop.wait(wait_s):
            wait_s = self._every_s
            try:
                removed = self._retention.remove_expired()
                self.trouble = f"samples beyond retention stay: {removed.held_by}" if removed.held_by else ""
                if removed.partitions or removed.misses:
                    log.info("samples_expired", extra=removed.as_dict())
                if removed.busy:  # a day that is half detached takes no late record: soon again
                    wait_s = min(self._every_s, _SOON_S)
            except ServerUnavailable as error:
                log.warning("sample_keeper_waits", extra={"cause": error.line()})
