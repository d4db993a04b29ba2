"""What a switchboard does in moments that a test must make itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification import Event, EventFilter, MemoryNotificationStore, NewEvent, Step, Switchboard


class _Late(MemoryNotificationStore):
    """Lets an event come just after a subscription has looked and found nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = threading.Event()
        self.rung: Callable[[], bool] = lambda: False

    def step(self, wanted: EventFilter, /, **asked: Any) -> Step:
        found = super().step(wanted, **asked)
        if self.armed.is_set() and wanted.key == "k" and not found.events:
            self.armed.clear()
            self.send(NewEvent(key="k", value="late"))
            while not self.rung():
                threading.Event().wait(0.001)
        return found


def test_what_comes_between_the_last_look_and_the_rest_is_not_left_lying(eventually: Callable[..., None]) -> None:
    store, heard = _Late(), []
    board = Switchboard(store, threads=1, tidy_s=3_600.0)
    subscription = board.listen(lambda event: heard.append(event.value), start=0, wanted=EventFilter(key="k"))
    store.rung = lambda: subscription.again
    eventually(lambda: not subscription.busy)
    store.armed.set()
    store.send(NewEvent(key="k", value="first"))
    eventually(lambda: heard == ["first", "late"])
    board.close()


class _Away(MemoryNotificationStore):
    """Can be switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.away = threading.Event()

    def end_offset(self) -> int:
        if self.away.is_set():
            raise StoreUnavailable("switched off")
        return super().end_offset()

    def list(self, *asked: Any, **named: Any) -> tuple[Event, ...]:
        if self.away.is_set():
            raise StoreUnavailable("switched off")
        return super().list(*asked, **named)


def test_a_subscription_made_while_the_store_is_away_hears_all_when_it_is_back(eventually: Callable[..., None]) -> None:
    store, heard = _Away(), []
    store.send(NewEvent(key="k", value="before"))
    store.away.set()
    board = Switchboard(store, threads=1, tidy_s=3_600.0)
    subscription = board.listen(lambda event: heard.append(event.value), start="durable")
    eventually(lambda: isinstance(subscription.failure, StoreUnavailable))
    store.away.clear()
    eventually(lambda: heard == ["before"])
    store.send(NewEvent(key="k", value="after"))
    eventually(lambda: heard == ["before", "after"])
    board.close()
