"""The event log in PostgreSQL: the table is the truth, LISTEN and NOTIFY are for speed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, Final

import orjson

from rtrec_ray.clock import REAL, Clock
from rtrec_ray.notification.base import Event, EventFilter, NewEvent, Retention, Step
from rtrec_ray.notification.sender import GroupSender
from rtrec_ray.notification.tail import Tail, TailOptions
from rtrec_ray.postgres import counter
from rtrec_ray.postgres.connection import Connection, Cursor, Pool, PostgresOptions
from rtrec_ray.postgres.statements import load

_COUNTER: Final = "events"
_TEXTS: Final = ("namespace", "key", "value", "type", "sender")
_TRIMMED_AT_ONCE: Final = 10_000
_CONNECTIONS: Final = 4  # one sends, the others read and acknowledge; opened when they are needed


class PostgresNotificationStore:
    """A NotificationStore on meta.events. Make one per process: its listeners share one waiting connection.

    `clock`: tells `time_ms`. `tail`: how much of the log's end is kept in memory for listeners.
    """

    def __init__(self, options: PostgresOptions, *, clock: Clock = REAL, tail: TailOptions | None = None) -> None:
        self._clock = clock
        self._sql = load(__package__, "notification.sql")
        self._pool = Pool(options, size=_CONNECTIONS, application="rtrec-events")
        self._sender = GroupSender(self.send_many)
        self._tail = Tail(options, read=self._read_with, end=self._end_with, options=tail or TailOptions())

    def send(self, event: NewEvent, /) -> Event:
        """Append an event in a transaction that those sent meanwhile share. Raises StoreUnavailable."""
        return self.send_soon(event).result()

    def send_many(self, events: Sequence[NewEvent], /) -> tuple[Event, ...]:
        """Append events in this order, in one transaction. Raises StoreUnavailable."""
        with self._pool.transaction() as cur:
            return self.send_many_in(cur, events)

    def send_soon(self, event: NewEvent, /) -> Future[Event]:
        """Append an event without waiting for it."""
        event.context_json()  # refused here, and not among those that share its transaction
        return self._sender.submit(event)

    def send_in(self, cur: Cursor, event: NewEvent, /) -> Event:
        """Append an event in the caller's transaction: seen if, and only if, that commits."""
        return self.send_many_in(cur, [event])[0]

    def send_many_in(self, cur: Cursor, events: Sequence[NewEvent], /) -> tuple[Event, ...]:
        """Append events in the caller's transaction."""
        if not events:
            return ()
        contexts = [event.context_json().decode() for event in events]
        first = counter.take(cur, _COUNTER, len(events))
        time_ms = self._clock.now_ms()
        columns = {name: [getattr(event, name) for event in events] for name in _TEXTS}
        cur.execute(self._sql["send"], {**columns, "context": contexts, "first": first, "time_ms": time_ms})
        return tuple(
            Event(
                offset=offset,
                version=version,
                time_ms=time_ms,
                context=orjson.loads(context),
                **{name: getattr(event, name) for name in _TEXTS},
            )
            for (offset, version), event, context in zip(cur.fetchall(), events, contexts, strict=True)
        )

    def list(
        self, wanted: EventFilter | None = None, /, *, after_offset: int | None = None, limit: int = 1_000
    ) -> tuple[Event, ...]:
        """Wanted events, ascending: the first `limit` after `after_offset`, or without it the newest `limit`."""
        values = {**asdict(wanted or EventFilter()), "after_offset": after_offset, "limit": limit}
        with self._pool.transaction() as cur:
            if after_offset is not None:
                cur.execute(self._sql["list_after"], values)
                return tuple(map(_event, cur.fetchall()))
            cur.execute(self._sql["list_newest"], values)
            return tuple(map(_event, reversed(cur.fetchall())))

    def end_offset(self) -> int:
        """The offset of the last event, 0 when there is none."""
        with self._pool.transaction() as cur:
            return self._end(cur)

    def trim(self, retention: Retention, /) -> int:
        """Remove events that need not be kept, some at a time; answers how many."""
        keep_ms, end = retention.keep_ms, self.end_offset()
        values = {
            "before_ms": None if keep_ms is None else self._clock.now_ms() - keep_ms,
            "keep_events": retention.keep_events,
            "cursor_alive_ms": retention.cursor_alive_ms,
            "end": end,
        }
        removed, part = 0, _TRIMMED_AT_ONCE
        while part == _TRIMMED_AT_ONCE:
            with self._pool.transaction() as cur:
                # Looked up each time: a cursor may have been made meanwhile.
                cur.execute(self._sql["trim_limit"], values)
                (limit,) = cur.fetchone() or (0,)
                cur.execute(self._sql["trim"], {"limit": limit, "part": _TRIMMED_AT_ONCE})
                part = cur.rowcount
            removed += part
        return removed

    def step(self, wanted: EventFilter, /, *, after_offset: int, timeout_s: float, limit: int = 1_000) -> Step:
        """Read on after `after_offset`, waiting up to `timeout_s` while nothing new is there."""
        seen = self._tail.after(after_offset, timeout_s=timeout_s, limit=limit)
        if seen is None:
            return self._catch_up(wanted, after_offset=after_offset, limit=limit)
        return Step(
            events=tuple(event for event in seen if wanted.matches(event)),
            position=seen[-1].offset if seen else after_offset,
        )

    def cursor(self, name: str, /) -> int:
        """Take up the durable cursor `name`: the offset up to which it has acknowledged; 0 for a new one."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["cursor"], {"name": name})
            (offset,) = cur.fetchone() or (0,)
        return int(offset)

    def ack(self, name: str, offset: int, /) -> None:
        """Move the durable cursor `name` forward to `offset`; it never moves back."""
        with self._pool.transaction() as cur:
            self.ack_in(cur, name, offset)

    def ack_in(self, cur: Cursor, name: str, offset: int, /) -> None:
        """The same in the caller's transaction."""
        cur.execute(self._sql["ack"], {"name": name, "offset": offset})

    def close(self) -> None:
        """Close the connections and end the thread that follows the log."""
        self._sender.close()
        self._tail.close()
        self._pool.close()

    def _catch_up(self, wanted: EventFilter, *, after_offset: int, limit: int) -> Step:
        # The end is read first: what is sent between the two statements is then read again rather than skipped.
        end = self.end_offset()
        events = self.list(wanted, after_offset=after_offset, limit=limit)
        last = events[-1].offset if events else after_offset
        return Step(events=events, position=last if len(events) == limit else max(end, last))

    def _end(self, cur: Cursor) -> int:
        cur.execute(self._sql["end_offset"])
        row = cur.fetchone()
        return 0 if row is None else int(row[0])

    def _end_with(self, connection: Connection) -> int:
        with connection.cursor() as cur:
            return self._end(cur)

    def _read_with(self, connection: Connection, after_offset: int, limit: int) -> tuple[Event, ...]:
        values = {**asdict(EventFilter()), "after_offset": after_offset, "limit": limit}
        with connection.cursor() as cur:
            cur.execute(self._sql["list_after"], values)
            return tuple(map(_event, cur.fetchall()))


def _event(row: tuple[Any, ...]) -> Event:
    offset, key, value, type_, namespace, sender, version, time_ms, context = row
    return Event(
        offset=offset,
        key=key,
        value=value,
        type=type_,
        namespace=namespace,
        sender=sender,
        version=version,
        time_ms=time_ms,
        context=context,
    )
