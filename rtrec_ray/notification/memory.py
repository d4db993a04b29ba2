"""The event log in memory: for tests and for a process by itself."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import orjson

from rtrec_ray.clock import REAL, Clock
from rtrec_ray.notification.base import Event, EventFilter, NewEvent, Step


class MemoryNotificationStore:
    """A NotificationStore that ends with its process. The `_in` methods act at once: there is no transaction."""

    def __init__(self, *, clock: Clock = REAL) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._versions: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._cursors: dict[str, int] = {}

    def send(self, event: NewEvent, /) -> Event:
        """Append an event."""
        context = orjson.loads(event.context_json())
        with self._changed:
            self._versions[event.namespace, event.key] += 1
            sent = Event(
                offset=len(self._events) + 1,
                key=event.key,
                value=event.value,
                type=event.type,
                namespace=event.namespace,
                sender=event.sender,
                version=self._versions[event.namespace, event.key],
                time_ms=self._clock.now_ms(),
                context=context,
            )
            self._events.append(sent)
            self._changed.notify_all()
        return sent

    def send_in(self, cur: Any, event: NewEvent, /) -> Event:
        """Append an event at once."""
        return self.send(event)

    def list(
        self, wanted: EventFilter | None = None, /, *, after_offset: int | None = None, limit: int = 1_000
    ) -> tuple[Event, ...]:
        """Wanted events, ascending: the first `limit` after `after_offset`, or without it the newest `limit`."""
        wanted = wanted or EventFilter()
        with self._changed:
            found = [event for event in self._events[after_offset or 0 :] if wanted.matches(event)]
        return tuple(found[-limit:] if after_offset is None else found[:limit])

    def end_offset(self) -> int:
        """The offset of the last event, 0 when there is none."""
        return len(self._events)

    def step(self, wanted: EventFilter, /, *, after_offset: int, timeout_s: float, limit: int = 1_000) -> Step:
        """Read on after `after_offset`, waiting up to `timeout_s` (wall time) while nothing new is there."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > after_offset, timeout_s)
            seen = self._events[after_offset : after_offset + limit]
        return Step(
            events=tuple(event for event in seen if wanted.matches(event)),
            position=seen[-1].offset if seen else after_offset,
        )

    def cursor(self, name: str, /) -> int:
        """The offset up to which the cursor `name` has acknowledged; 0 for a new one."""
        return self._cursors.get(name, 0)

    def ack(self, name: str, offset: int, /) -> None:
        """Move the cursor `name` forward to `offset`; it never moves back."""
        with self._changed:
            self._cursors[name] = max(offset, self._cursors.get(name, 0))

    def ack_in(self, cur: Any, name: str, offset: int, /) -> None:
        """Move the cursor at once."""
        self.ack(name, offset)

    def close(self) -> None:
        """Nothing to give back."""
