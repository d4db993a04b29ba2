"""The event log in PostgreSQL: the table is the truth, LISTEN and NOTIFY are for speed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson

from rtrec_ray.clock import REAL, Clock
from rtrec_ray.notification.base import Event, EventFilter, NewEvent, Step
from rtrec_ray.notification.tail import Tail, TailOptions
from rtrec_ray.postgres import counter
from rtrec_ray.postgres.connection import Connection, Cursor, Pool, PostgresOptions
from rtrec_ray.postgres.statements import load

_COUNTER = "events"


class PostgresNotificationStore:
    """A NotificationStore on meta.events. Make one per process: its listeners share one waiting connection.

    `clock`: tells `time_ms`. `tail`: how much of the log's end is kept in memory for listeners.
    """

    def __init__(self, options: PostgresOptions, *, clock: Clock = REAL, tail: TailOptions | None = None) -> None:
        self._clock = clock
        self._sql = load(__package__, "notification.sql")
        self._pool = Pool(options, size=2, application="rtrec-events")
        self._tail = Tail(options, read=self._read_with, end=self._end_with, options=tail or TailOptions())

    def send(self, event: NewEvent, /) -> Event:
        """Append an event in a transaction of its own. Raises StoreUnavailable."""
        with self._pool.transaction() as cur:
            return self.send_in(cur, event)

    def send_in(self, cur: Cursor, event: NewEvent, /) -> Event:
        """Append an event in the caller's transaction: seen if, and only if, that commits."""
        context = event.context_json().decode()
        offset = counter.take(cur, _COUNTER)
        time_ms = self._clock.now_ms()
        row = {
            "offset": offset,
            "namespace": event.namespace,
            "key": event.key,
            "value": event.value,
            "type": event.type,
            "sender": event.sender,
            "time_ms": time_ms,
            "context": context,
        }
        cur.execute(self._sql["send"], row)
        version, _ = cur.fetchone() or (0, None)
        return Event(**{**row, "version": int(version), "context": orjson.loads(context)})

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
        """The offset up to which the durable cursor `name` has acknowledged; 0 for a new one."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["cursor"], {"name": name})
            row = cur.fetchone()
        return 0 if row is None else int(row[0])

    def ack(self, name: str, offset: int, /) -> None:
        """Move the durable cursor `name` forward to `offset`; it never moves back."""
        with self._pool.transaction() as cur:
            self.ack_in(cur, name, offset)

    def ack_in(self, cur: Cursor, name: str, offset: int, /) -> None:
        """The same in the caller's transaction."""
        cur.execute(self._sql["ack"], {"name": name, "offset": offset})

    def close(self) -> None:
        """Close the connections and end the thread that follows the log."""
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
