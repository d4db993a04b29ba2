"""Many listeners that are called back, with a handful of threads.

One thread follows the log and only tells which subscriptions an event concerns; each of these then reads on from its
own place, in one of a few threads, one at a time. So a slow callback holds up nobody else (as long as a thread is
free), what nobody wants wakes nobody, and a subscription that was away reads what it missed.
Delivery is at least once: what was handed out but not acknowledged comes again after a restart.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import count
from queue import SimpleQueue
from typing import Final

from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification.base import Event, EventFilter, NotificationStore
from rtrec_ray.notification.listener import NOW, DurableCursor

log = logging.getLogger(__name__)

Callback = Callable[[Event], object]

_ANY: Final = EventFilter()
_LOOK_S: Final = 0.5  # how soon a closed switchboard ends, at the latest
_READ: Final = 1_000


class Subscription:
    """A place in the log and what is called for each wanted event after it, in order.

    A callback that raises is called again with the same event, after a back-off: later events wait, since skipping one
    would lose it. `failure`: the last error of a stuck event.
    """

    def __init__(self, store: NotificationStore, callback: Callback, *, start: int | str, wanted: EventFilter) -> None:
        self.wanted = wanted
        self.failure: Exception | None = None
        self.failures = 0
        self._store = store
        self._callback = callback
        self._cursor = DurableCursor(store, start) if isinstance(start, str) and start != NOW else None
        self._position: int | None = None
        if self._cursor is None:
            self._position = start if isinstance(start, int) else store.end_offset()
        self._caught_up = False  # until then the table is asked; after that, the log's end in memory
        self._pending: deque[Event] = deque()
        self._acknowledged = -1
        self._closed = threading.Event()
        # The switchboard's: whether it waits for a thread or has one, and whether it is to look again after that.
        self.busy = False
        self.again = False

    def close(self) -> None:
        """Call back no more, after the callback that runs."""
        self._closed.set()

    def deliver(self) -> None:
        """Call back with everything that is there, then acknowledge it. Raises what the callback raises.

        Raises StoreUnavailable.
        """
        try:
            if self._cursor is not None:
                self._cursor.look_after()  # also of one whose callback fails, or for whom nothing comes
            while self._fill() and not self._closed.is_set():
                while self._pending and not self._closed.is_set():
                    self._callback(self._pending[0])
                    self._pending.popleft()
                self._acknowledge()
        except Exception:
            self._acknowledge()
            raise
        self._acknowledge()

    def _fill(self) -> bool:
        """Read on; whether there may be more."""
        if self._pending:
            return True
        before = self._position
        if before is None:
            assert self._cursor is not None
            before = self._cursor.take_up()
            self._acknowledged = before
        if self._caught_up:
            step = self._store.step(self.wanted, after_offset=before, timeout_s=0.0, limit=_READ)
            events, self._position = step.events, step.position
        else:
            # The end is read first: what is sent between the two is then read again rather than skipped.
            end = self._store.end_offset()
            events = self._store.list(self.wanted, after_offset=before, limit=_READ)
            self._caught_up = len(events) < _READ
            self._position = max([end, *(event.offset for event in events)]) if self._caught_up else events[-1].offset
        self._pending.extend(events)
        return self._position > before or not self._caught_up

    def _acknowledge(self) -> None:
        """A durable cursor moves also past what was not wanted, or it would hold up the log's trimming for ever."""
        if self._cursor is None or self._position is None:
            return
        done = self._pending[0].offset - 1 if self._pending else self._position
        if done > self._acknowledged:
            self._store.ack(self._cursor.name, done)
            self._acknowledged = done


class Switchboard:
    """Calls back the listeners of a process, with `threads` threads and the store's one connection that waits.

    `tidy_s`: how often, in s of wall time, also those whom no event concerned move on: their cursors stay alive.

    >>> from rtrec_ray.notification import MemoryNotificationStore, NewEvent
    >>> store, heard = MemoryNotificationStore(), SimpleQueue()
    >>> board = Switchboard(store)
    >>> _ = board.listen(lambda event: heard.put(event.value), start="gate", wanted=EventFilter(key="model"))
    >>> _ = store.send(NewEvent(key="model", value="7"))
    >>> heard.get(timeout=10.0)
    '7'
    >>> board.close()
    """

    def __init__(self, store: NotificationStore, *, threads: int = 4, tidy_s: float = 60.0) -> None:
        self._store = store
        self._tidy_s = tidy_s
        self._backoff = Backoff()
        self._lock = threading.Lock()
        self._by_key: defaultdict[str | None, list[Subscription]] = defaultdict(list)
        self._later: list[tuple[float, int, Subscription]] = []
        self._number = count()
        self._ready: SimpleQueue[Subscription | None] = SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, name="switchboard", daemon=True),
            *(threading.Thread(target=self._work, name=f"switchboard-{n}", daemon=True) for n in range(threads)),
        ]
        for thread in self._threads:
            thread.start()

    def listen(self, callback: Callback, *, start: int | str, wanted: EventFilter | None = None) -> Subscription:
        """Call back with each wanted event after `start`, in order.

        `start`: an offset (events after it), `NOW` (events after the last one there is), or the name of a durable
        cursor (events it has not acknowledged). Raises StoreUnavailable (of `NOW`, which cannot wait).
        """
        made = Subscription(self._store, callback, start=start, wanted=wanted or _ANY)
        with self._lock:
            self._by_key[made.wanted.key].append(made)
        self._ring([made])
        return made

    def forget(self, subscription: Subscription) -> None:
        """Call it back no more."""
        subscription.close()
        with self._lock:
            self._by_key[subscription.wanted.key].remove(subscription)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Call back no more; waits up to `timeout_s` for callbacks that run. The store is the caller's to close."""
        self._closed.set()
        for subscription in self._everybody():
            subscription.close()
        for _ in self._threads[1:]:
            self._ready.put(None)
        until_s = monotonic_s() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - monotonic_s()))

    def _follow(self) -> None:
        position, failures, tidy_at_s = None, 0, monotonic_s() + self._tidy_s
        while not self._closed.is_set():
            try:
                if position is None:
                    position = self._store.end_offset()
                    self._ring(self._everybody())  # who read before this moment might miss what came until it
                step = self._store.step(_ANY, after_offset=position, timeout_s=self._pause_s(), limit=_READ)
            except StoreUnavailable:
                failures += 1
                self._closed.wait(self._backoff.wait_s(failures))
                continue
            position, failures = step.position, 0
            self._ring(self._concerned(step.events))
            self._ring(self._due())
            if monotonic_s() >= tidy_at_s:
                tidy_at_s = monotonic_s() + self._tidy_s
                self._ring(self._everybody())

    def _work(self) -> None:
        while (subscription := self._ready.get()) is not None:
            try:
                subscription.deliver()
            except Exception as error:  # noqa: BLE001 - told by `failure`, and the callback is tried again
                self._put_off(subscription, error)
            else:
                subscription.failure, subscription.failures = None, 0
                self._release(subscription)

    def _put_off(self, subscription: Subscription, error: Exception) -> None:
        subscription.failure = error
        subscription.failures += 1
        log.warning("event_callback_failed", extra={"failures": subscription.failures}, exc_info=error)
        due_s = monotonic_s() + self._backoff.wait_s(subscription.failures)
        with self._lock:
            heapq.heappush(self._later, (due_s, next(self._number), subscription))

    def _release(self, subscription: Subscription) -> None:
        with self._lock:
            again, subscription.again, subscription.busy = subscription.again, False, False
        if again:
            self._ring([subscription])

    def _ring(self, concerned: Iterable[Subscription]) -> None:
        """Let each read on; one that reads already looks again after that."""
        for subscription in concerned:
            with self._lock:
                busy, subscription.busy = subscription.busy, True
                subscription.again |= busy
            if not busy:
                self._ready.put(subscription)

    def _concerned(self, events: tuple[Event, ...]) -> list[Subscription]:
        found: dict[int, Subscription] = {}
        with self._lock:
            for event in events:
                for subscription in (*self._by_key.get(event.key, ()), *self._by_key.get(None, ())):
                    if id(subscription) not in found and subscription.wanted.matches(event):
                        found[id(subscription)] = subscription
        return list(found.values())

    def _everybody(self) -> list[Subscription]:
        with self._lock:
            return [subscription for same_key in self._by_key.values() for subscription in same_key]

    def _due(self) -> list[Subscription]:
        """Those whose callback is to be tried again: they are free to be rung."""
        due = []
        with self._lock:
            while self._later and self._later[0][0] <= monotonic_s():
                subscription = heapq.heappop(self._later)[2]
                subscription.busy = False
                due.append(subscription)
        return due

    def _pause_s(self) -> float:
        with self._lock:
            next_s = self._later[0][0] if self._later else float("inf")
        return min(_LOOK_S, max(0.0, next_s - monotonic_s()))
