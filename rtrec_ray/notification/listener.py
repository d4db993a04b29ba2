"""Listeners: readers of the event log that ask, in order, and miss nothing. `switchboard.py` has those that are called.

A listener starts after an offset, now, or where a durable cursor stands; a new cursor stands before the first event.
Delivery is at least once: what was handed out but not acknowledged comes again after a restart.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification.base import Event, EventFilter, NotificationStore

NOW: Final = "now"
_CARE_S: Final = 3_600.0


class DurableCursor:
    """A durable cursor with somebody at it: it stays alive however long nothing is acknowledged."""

    def __init__(self, store: NotificationStore, name: str) -> None:
        self.name = name
        self._store = store
        self._due_s = 0.0

    def take_up(self) -> int:
        """Where it stands. Raises StoreUnavailable."""
        offset = self._store.cursor(self.name)
        self._due_s = monotonic_s() + _CARE_S
        return offset

    def look_after(self) -> None:
        """Say each hour that somebody is there. Raises StoreUnavailable."""
        if monotonic_s() >= self._due_s:
            self.take_up()


class Listener:
    """A place in the event log.

    `start`: an offset (events after it), `NOW` (events after the last one there is), or the name of a durable cursor
    (events it has not acknowledged). `wanted`: which events are handed out; None is all.

    >>> from rtrec_ray.notification import MemoryNotificationStore, NewEvent
    >>> store = MemoryNotificationStore()
    >>> listener = Listener(store, start="gate", wanted=EventFilter(key="model"))
    >>> _ = store.send(NewEvent(key="model", value="7"))
    >>> for event in listener.poll(timeout_s=1.0):
    ...     print(event.value)
    ...     listener.ack(event.offset)
    7
    """

    def __init__(self, store: NotificationStore, *, start: int | str, wanted: EventFilter | None = None) -> None:
        self._store = store
        self._wanted = wanted or EventFilter()
        self._cursor = DurableCursor(store, start) if isinstance(start, str) and start != NOW else None
        self._closed = threading.Event()
        self._backoff = Backoff()
        # A cursor is read at the first poll, so that a listener can be made while the store is away; "now" cannot wait.
        self._position: int | None = None
        if isinstance(start, int):
            self._position = start
        elif start == NOW:
            self._position = store.end_offset()

    def poll(self, timeout_s: float) -> Iterator[Event]:
        """The events that are there, waiting up to `timeout_s` (wall time) for the first one.

        What the caller leaves in the iterator comes with the next poll. Nothing comes while the store is away.
        """
        deadline = monotonic_s() + timeout_s
        failures = 0
        while not self._closed.is_set():
            left_s = max(0.0, deadline - monotonic_s())
            try:
                here = self._here()
                if self._cursor is not None:
                    self._cursor.look_after()
                step = self._store.step(self._wanted, after_offset=here, timeout_s=left_s)
            except StoreUnavailable:
                failures += 1
                self._closed.wait(min(left_s, self._backoff.wait_s(failures)))
            else:
                failures = 0
                for event in step.events:
                    self._position = event.offset
                    yield event
                self._position = step.position
                if step.events:
                    return
            if monotonic_s() >= deadline:
                return

    def ack(self, offset: int) -> None:
        """Everything up to `offset` is done: a durable cursor will not hand it out again. Raises StoreUnavailable.

        A listener without a cursor keeps its place by itself, so there it does nothing.
        """
        if self._cursor is not None:
            self._store.ack(self._cursor.name, offset)

    def close(self) -> None:
        """End a poll that waits, at the latest when its store next answers."""
        self._closed.set()

    def _here(self) -> int:
        if self._position is None:
            assert self._cursor is not None
            self._position = self._cursor.take_up()
        return self._position
