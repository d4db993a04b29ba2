"""The event log in memory: for tests and for a process by itself."""

from __future__ import annotations

import builtins
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import orjson

from rtrec_ray.clock import REAL, Clock, wall_ms
from rtrec_ray.notification.base import Event, EventFilter, NewEvent, Retention, Step


class MemoryNotificationStore:
    """A NotificationStore that ends with its process. The `_in` methods act at once: there is no transaction."""

    def __init__(self, *, clock: Clock = REAL) -> None:
        self._clock = clock
        self._changed = threading.Condition()  # of a lock that its holder may take again
        self._events: list[Event] = []
        self._trimmed = 0  # offset of the last event removed
        self._versions: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._cursors: dict[str, tuple[int, int]] = {}  # offset, and when it was last heard of, wall ms

    def send(self, event: NewEvent, /) -> Event:
        """Append an event."""
        context = orjson.loads(event.context_json())
        with self._changed:
            self._versions[event.namespace, event.key] += 1
            sent = Event(
                offset=self.end_offset() + 1,
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

    def send_many(self, events: Sequence[NewEvent], /) -> tuple[Event, ...]:
        """Append events in this order: all or none."""
        for event in events:
            event.context_json()
        with self._changed:
            return tuple(self.send(event) for event in events)

    def send_soon(self, event: NewEvent, /) -> Future[Event]:
        """Append an event at once."""
        done: Future[Event] = Future()
        done.set_result(self.send(event))
        return done

    def send_many_in(self, cur: Any, events: Sequence[NewEvent], /) -> tuple[Event, ...]:
        """Append events at once."""
        return self.send_many(events)

    def send_in(self, cur: Any, event: NewEvent, /) -> Event:
        """Append an event at once."""
        return self.send(event)

    def list(
        self, wanted: EventFilter | None = None, /, *, after_offset: int | None = None, limit: int = 1_000
    ) -> tuple[Event, ...]:
        """Wanted events, ascending: the first `limit` after `after_offset`, or without it the newest `limit`."""
        wanted = wanted or EventFilter()
        with self._changed:
            found = [event for event in self._after(after_offset or 0) if wanted.matches(event)]
        return tuple(found[-limit:] if after_offset is None else found[:limit])

    def end_offset(self) -> int:
        """The offset of the last event sent, 0 before the first."""
        return self._trimmed + len(self._events)

    def trim(self, retention: Retention, /) -> int:
        """Remove events that need not be kept; answers how many."""
        with self._changed:
            limits = [0]
            if retention.keep_ms is not None:
                limits.append(self._last_before(self._clock.now_ms() - retention.keep_ms))
            if retention.keep_events is not None:
                limits.append(self.end_offset() - retention.keep_events)
            alive_ms = wall_ms() - retention.cursor_alive_ms
            held = [offset for offset, at_ms in self._cursors.values() if at_ms > alive_ms]
            removed = max(0, min([max(limits), *held]) - self._trimmed)
            del self._events[:removed]
            self._trimmed += removed
        return removed

    def step(self, wanted: EventFilter, /, *, after_offset: int, timeout_s: float, limit: int = 1_000) -> Step:
        """Read on after `after_offset`, waiting up to `timeout_s` (wall time) while nothing new is there."""
        with self._changed:
            self._changed.wait_for(lambda: self.end_offset() > after_offset, timeout_s)
            seen = self._after(after_offset)[:limit]
        return Step(
            events=tuple(event for event in seen if wanted.matches(event)),
            position=seen[-1].offset if seen else after_offset,
        )

    def cursor(self, name: str, /) -> int:
        """Take up the cursor `name`: the offset up to which it has acknowledged; 0 for a new one."""
        with self._changed:
            offset, _ = self._cursors.get(name, (0, 0))
            self._cursors[name] = (offset, wall_ms())
        return offset

    def ack(self, name: str, offset: int, /) -> None:
        """Move the cursor `name` forward to `offset`; it never moves back."""
        with self._changed:
            self._cursors[name] = (max(offset, self.cursor(name)), wall_ms())

    def ack_in(self, cur: Any, name: str, offset: int, /) -> None:
        """Move the cursor at once."""
        self.ack(name, offset)

    def close(self) -> None:
        """Nothing to give back."""

    def _after(self, offset: int) -> builtins.list[Event]:
        return self._events[max(0, offset - self._trimmed) :]

    def _last_before(self, time_ms: int) -> int:
        young = next((event.offset for event in self._events if event.time_ms >= time_ms), self.end_offset() + 1)
        return young - 1
