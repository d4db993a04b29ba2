"""`/v1/notifications`: the event log over HTTP. Who reads from an offset and waits holds no thread meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec

from rtrec_ray.errors import RecordInvalid, StoreUnavailable
from rtrec_ray.notification import Event, EventFilter, NewEvent, NotificationStore, Step
from serving.schema import FieldFault

MOST_EVENTS: Final = 1_000
MOST_WAIT_S: Final = 30.0
_LOOK_S: Final = 1.0
_TEXTS: Final = ("key", "type", "namespace", "sender")
_NUMBERS: Final = ("version", "after_version", "from_ms", "to_ms")
_INT64: Final = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a reader asked for. `after_offset`: None is the newest `limit`; `wait_s`: for the first event, wall time."""

    wanted: EventFilter
    after_offset: int | None = None
    limit: int = 100
    wait_s: float = 0.0


class AskInvalid(Exception):
    """A parameter is wrong; `fault` names it."""

    def __init__(self, fault: FieldFault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


def parse_ask(query: Mapping[str, str]) -> Ask:
    """The question behind a query string. Raises AskInvalid.

    >>> parse_ask({"key": "model", "after_offset": "7"}).after_offset
    7
    """
    known = {*_TEXTS, *_NUMBERS, "after_offset", "limit", "wait_s"}
    for name, text in query.items():
        if name not in known:
            raise AskInvalid(FieldFault(field=name, reason=f"is not one of {', '.join(sorted(known))}"))
        if "\0" in text or len(text) > 1_000:
            raise AskInvalid(FieldFault(field=name, reason="contains U+0000 or is longer than 1000 characters"))
    fields: dict[str, Any] = {name: query[name] for name in _TEXTS if name in query}
    fields |= {name: _whole(name, query[name], most=_INT64 - 1) for name in _NUMBERS if name in query}
    after = query.get("after_offset")
    return Ask(
        wanted=EventFilter(**fields),
        after_offset=None if after is None else _whole("after_offset", after, most=_INT64 - 1),
        limit=_whole("limit", query.get("limit", "100"), least=1, most=MOST_EVENTS),
        wait_s=float(_whole("wait_s", query.get("wait_s", "0"), most=int(MOST_WAIT_S))),
    )


def parse_events(body: bytes) -> list[NewEvent]:
    """The events of a body: one object or a list of them. Raises RecordInvalid."""
    try:
        given = msgspec.json.decode(body, type=NewEvent | list[NewEvent])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordInvalid(f"{error}") from error
    events = [given] if isinstance(given, NewEvent) else given
    if not 1 <= len(events) <= MOST_EVENTS:
        raise RecordInvalid(f"has {len(events)} events, not 1 to {MOST_EVENTS}")
    for event in events:
        event.context_json()
    return events


def read_log(store: NotificationStore, ask: Ask) -> Step:
    """What is there now. Raises StoreUnavailable."""
    if ask.after_offset is not None:
        # The end is read first: what is sent between the two is read with the next question rather than skipped.
        end = store.end_offset()
        events = store.list(ask.wanted, after_offset=ask.after_offset, limit=ask.limit)
        last = events[-1].offset if events else ask.after_offset
        return Step(events=events, position=last if len(events) == ask.limit else max(end, last))
    end = store.end_offset()
    events = store.list(ask.wanted, limit=ask.limit)
    return Step(events=events, position=max([end, *(event.offset for event in events)]))


def plain(step: Step) -> dict[str, Any]:
    """The answer. `position`: the `after_offset` of the next question."""
    return {"events": [_plain(event) for event in step.events], "position": step.position}


class Growth:
    """Wakes those who wait for the log to grow, on their event loops; one thread, from the first who waits."""

    def __init__(self, store: NotificationStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._needed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    async def wait(self, grown: asyncio.Event, timeout_s: float) -> None:
        """Until the log grew since `begin` gave `grown`, or the time is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(grown.wait(), timeout_s)

    def begin(self) -> asyncio.Event:
        """From now on the event is set when the log grows; take it before looking, and `forget` it."""
        event = asyncio.Event()
        with self._lock:
            self._waiting.append((asyncio.get_running_loop(), event))
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._follow, name="log-growth", daemon=True)
                self._thread.start()
        self._needed.set()
        return event

    def forget(self, event: asyncio.Event) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._waiting = [waiting for waiting in self._waiting if waiting[1] is not event]

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._needed.set()
        if self._thread is not None:
            self._thread.join(2 * _LOOK_S)

    def _follow(self) -> None:
        position: int | None = None
        while not self._closed.is_set():
            try:
                if position is None:
                    position = self._store.end_offset()
                    self._wake()
                step = self._store.step(EventFilter(), after_offset=position, timeout_s=_LOOK_S)
            except StoreUnavailable:
                self._closed.wait(_LOOK_S)
                continue
            if step.position > position:
                position = step.position
                self._wake()
            if not self._anybody():
                position = None  # nobody waits: rest until somebody does, and begin from the end there is then
                self._needed.wait()
                self._needed.clear()

    def _anybody(self) -> bool:
        with self._lock:
            if not self._waiting:
                self._needed.clear()
            return bool(self._waiting) or self._closed.is_set()

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)


def _whole(name: str, text: str, *, least: int = 0, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    raise AskInvalid(FieldFault(field=name, reason=f"is not a whole number from {least} to {most}"))


def _plain(event: Event) -> dict[str, Any]:
    return asdict(event)
