"""Group commit: what many threads send while one transaction commits goes together in the next.

A commit costs a flush of the disk, and the counter of offsets is locked meanwhile, so one transaction per event is as
fast as the disk turns. (DeWitt et al., "Implementation techniques for main memory database systems", SIGMOD 1984.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Final

from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification.base import Event, NewEvent

_MOST: Final = 1_000  # events in one transaction

_Waiting = tuple[NewEvent, "Future[Event]"]


class GroupSender:
    """One thread that sends in the order of `submit`. `commit` appends events in one transaction, all or none.

    >>> from rtrec_ray.notification.memory import MemoryNotificationStore
    >>> sender = GroupSender(MemoryNotificationStore().send_many)
    >>> sender.submit(NewEvent(key="k", value="v")).result().offset
    1
    >>> sender.close()
    """

    def __init__(self, commit: Callable[[Sequence[NewEvent]], Sequence[Event]]) -> None:
        self._commit = commit
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, event: NewEvent) -> Future[Event]:
        """Send it as soon as its turn comes; the future raises what `commit` raised. Raises StoreUnavailable."""
        done: Future[Event] = Future()
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the event log was closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="event-sender", daemon=True)
                self._thread.start()
            self._queue.put((event, done))
        return done

    def close(self) -> None:
        """Send what waits, and end the thread. Closing twice is harmless."""
        with self._lock:
            if not self._closed:
                self._queue.put(None)
            self._closed = True
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, ended = self._gather(first)
            self._send(group)
            if ended:
                return

    def _gather(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """The first and whatever waits behind it; and whether that was all there will ever be."""
        group = [first]
        try:
            while len(group) < _MOST:
                waiting = self._queue.get_nowait()
                if waiting is None:
                    return group, True
                group.append(waiting)
        except Empty:
            pass
        return group, False

    def _send(self, group: list[_Waiting]) -> None:
        try:
            sent = self._commit([event for event, _ in group])
        except StoreUnavailable as error:
            for _, done in group:
                done.set_exception(error)
        except Exception as error:  # noqa: BLE001 - it is raised where the future is asked
            if len(group) == 1:
                group[0][1].set_exception(error)
                return
            # One event that the table refuses must not take its neighbours along.
            for alone in group:
                self._send([alone])
        else:
            for (_, done), event in zip(group, sent, strict=True):
                done.set_result(event)
