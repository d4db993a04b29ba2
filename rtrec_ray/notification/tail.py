"""The newest part of the event log, read once for all listeners of a process.

One thread and one connection: LISTEN tells that the log grew, the table says by what. A lost connection loses nothing,
since the table is read on from the last offset when it comes back. Listeners further behind read the table themselves.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from rtrec_ray.backoff import Backoff
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification.base import Event
from rtrec_ray.postgres.connection import Connection, PostgresOptions, connect, translated
from rtrec_ray.postgres.statements import load

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """`keep`: events kept in memory at least; `look_every_s`: looks at the table without a NOTIFY, s of wall time."""

    keep: int = 10_000
    look_every_s: float = 5.0
    backoff: Backoff = field(default_factory=Backoff)


class Tail:
    """Follows the log in a thread, from the first `after` until `close`.

    `read(connection, after_offset, limit)` and `end(connection)` are the store's statements.
    """

    def __init__(
        self,
        postgres: PostgresOptions,
        *,
        read: Callable[[Connection, int, int], tuple[Event, ...]],
        end: Callable[[Connection], int],
        options: TailOptions,
    ) -> None:
        self._postgres = postgres
        self._read = read
        self._read_end = end
        self._options = options
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._start: int | None = None  # offset before the first event kept; None until the log was first reached
        self._end = 0
        self._closed = threading.Event()
        self._wake_up, self._woken = socket.socketpair()
        self._thread: threading.Thread | None = None

    def after(self, offset: int, *, timeout_s: float, limit: int) -> list[Event] | None:
        """Events after `offset`, waiting up to `timeout_s` for the first; None when they lie before what is kept."""
        self._ensure_running()
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or self._grown_past(offset), timeout_s)
            if self._start is None:
                return []
            if offset < self._start:
                return None
            first = bisect_right(self._events, offset, key=lambda event: event.offset)
            return self._events[first : first + limit]

    def close(self) -> None:
        """End the thread and its connection. Closing twice is harmless."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._wake_up.send(b"!")
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._postgres.connect_timeout_s + 5.0)
        self._wake_up.close()
        self._woken.close()

    def _grown_past(self, offset: int) -> bool:
        return self._start is not None and self._end > offset

    def _ensure_running(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="event-tail", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                connection = connect(self._postgres, application="rtrec-events")
                try:
                    with translated():
                        self._begin(connection)
                        failures = 0
                        self._follow(connection)
                finally:
                    connection.close()
            except StoreUnavailable as error:
                failures += 1
                log.warning("event_log_away", extra={"failures": failures, "cause": error.message})
                self._closed.wait(self._options.backoff.wait_s(failures))

    def _begin(self, connection: Connection) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # Before the first look at the table, or an event sent between the two would wait for the next look.
            cursor.execute(load(__package__, "notification.sql")["listen"])
        if self._start is None:
            end = self._read_end(connection)
            with self._changed:
                self._start = self._end = end
                self._changed.notify_all()

    def _follow(self, connection: Connection) -> None:
        while not self._closed.is_set():
            while new := self._read(connection, self._end, self._options.keep):
                self._append(new)
            select.select([connection.fileno(), self._woken.fileno()], [], [], self._options.look_every_s)
            connection.poll()
            connection.notifies.clear()

    def _append(self, new: tuple[Event, ...]) -> None:
        with self._changed:
            self._events += new
            self._end = new[-1].offset
            surplus = len(self._events) - self._options.keep
            if surplus > self._options.keep:  # trimmed in large steps: deleting from a list's front costs its length
                self._start = self._events[surplus - 1].offset
                del self._events[:surplus]
            self._changed.notify_all()
