"""The log from a time on, without reading what is before it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from rtrec_ray.notification.base import Event, EventFilter, NotificationStore

# Offsets follow commits and times the senders' clocks: an event may be that much older than the one before it.
_DISORDER_MS: Final = 60_000
_NEVER_MS: Final = (1 << 63) - 1
_PAGE: Final = 10_000


def events_since(store: NotificationStore, from_ms: int, *, page: int = _PAGE) -> Iterator[Event]:
    """Every event from `from_ms` on (ms UTC) that there is now, in the log's order. Raises StoreUnavailable.

    >>> from rtrec_ray.clock import ManualClock
    >>> from rtrec_ray.notification import MemoryNotificationStore, NewEvent
    >>> clock = ManualClock(now_ms=0)
    >>> store = MemoryNotificationStore(clock=clock)
    >>> for value in "abc":
    ...     clock.advance(1_000_000)
    ...     _ = store.send(NewEvent(key="k", value=value))
    >>> [event.value for event in events_since(store, 2_000_000)]
    ['b', 'c']
    """
    end = store.end_offset()
    # The time of the first event after an offset, for about as many offsets as the log's length has binary digits.
    at = bisect_left(range(end), from_ms - _DISORDER_MS, key=lambda offset: _time_after(store, offset))
    while found := store.list(EventFilter(from_ms=from_ms), after_offset=at, limit=page):
        for event in found:
            if event.offset > end:
                return
            yield event
        at = found[-1].offset


def _time_after(store: NotificationStore, offset: int) -> int:
    found = store.list(after_offset=offset, limit=1)
    return found[0].time_ms if found else _NEVER_MS
