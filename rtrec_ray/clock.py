"""The one place that reads the machine's time.

The configured clock runs from an origin at a speed, so that a week of a log passes in minutes for the pipeline, serving
and training alike. Leases, heartbeats, idleness and back-off use wall time: a slow disk does not become fast with the
log.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Protocol

LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, ms since 1970 UTC: no date is later, and all sums with windows stay within 64 bits."""


def wall_ms() -> int:
    """The machine's time, ms since 1970 UTC."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds that never go back, for durations."""
    return time.monotonic()


class Clock(Protocol):
    """What tells the time of events."""

    @property
    def speed(self) -> float:
        """Event ms per ms of machine time."""
        ...

    def now_ms(self) -> int:
        """The time of an event that happens now, ms UTC."""
        ...

    def at(self, wall: int, /) -> int:
        """The time of an event that happened at `wall` (ms of the machine's time), ms UTC."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledClock:
    """Event time as a line through (origin_wall_ms, origin_event_ms) with slope `speed` (event ms per wall ms).

    >>> ScaledClock(origin_event_ms=0, origin_wall_ms=1_000, speed=60.0).at(2_000)
    60000
    """

    origin_event_ms: int = 0
    origin_wall_ms: int = 0
    speed: float = 1.0

    def now_ms(self) -> int:
        """The time of an event that happens now, ms UTC."""
        return self.at(wall_ms())

    def at(self, wall: int, /) -> int:
        """The time of an event that happened at `wall`, ms UTC."""
        return self.origin_event_ms + round((wall - self.origin_wall_ms) * self.speed)


REAL = ScaledClock()


class ManualClock:
    """A clock that a test moves.

    >>> clock = ManualClock(now_ms=5); clock.advance(10); clock.now_ms()
    15
    """

    def __init__(self, *, now_ms: int = 0) -> None:
        self._now_ms = now_ms
        self.speed = 1.0

    def now_ms(self) -> int:
        """The time the test set, ms."""
        return self._now_ms

    def at(self, wall: int, /) -> int:
        """A manual clock's event time and wall time are the same."""
        return wall

    def advance(self, ms: int, /) -> None:
        """Move on by `ms`."""
        self._now_ms += ms
