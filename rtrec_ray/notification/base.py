"""What an event is, and the port of the stores that keep them.

An event's `offset` is its place in the log: offsets rise by one in commit order, so who has read n has missed nothing
before n. Its `version` rises by one for each event of the same (namespace, key).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from rtrec_ray.errors import RecordInvalid

MODEL: Final = "model"  # the key of every event about a model version; the value is the version as text
MODEL_GENERATED: Final = "MODEL_GENERATED"
MODEL_VALIDATED: Final = "MODEL_VALIDATED"
MODEL_REJECTED: Final = "MODEL_REJECTED"
MODEL_DEPLOYED: Final = "MODEL_DEPLOYED"
MODEL_DEPRECATED: Final = "MODEL_DEPRECATED"

# What the rules of the system's workflow send to jobs that run already; the value is the version that it is about.
VALIDATION_REQUESTED: Final = "VALIDATION_REQUESTED"  # to the gate: judge what waits
INCREMENTS_REQUESTED: Final = "INCREMENTS_REQUESTED"  # to the increments: look which version to go on from
RELOAD_REQUESTED: Final = "RELOAD_REQUESTED"  # to serving: look which version should serve

SYSTEM: Final = "system"  # the key of events about the whole; the value is its parts
SYSTEM_STARTED: Final = "SYSTEM_STARTED"

CHANGE_LOG: Final = "change_log"  # the key of events about consumers of samples; the value is the consumer's name
CHANGE_LOG_FELL_BACK: Final = "CHANGE_LOG_FELL_BACK"

FEATURES: Final = "features"  # the key of events about feature views; the value names them, "name@version,..."
FEATURES_APPLIED: Final = "FEATURES_APPLIED"

DEFAULT_NAMESPACE: Final = "default"

# JSON writes U+0000 as an escape, which jsonb refuses; an even number of backslashes before it is text, not an escape.
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event to send. `context` is what listeners need beside the value: metrics, a reason (anything JSON takes)."""

    key: str
    value: str
    type: str = ""
    namespace: str = DEFAULT_NAMESPACE
    sender: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.key:
            raise RecordInvalid("an event needs a key")
        for name in ("key", "value", "type", "namespace", "sender"):
            _check_text(name, getattr(self, name))

    def context_json(self) -> bytes:
        """The context as JSON; NumPy's numbers are numbers, NaN is null. Raises RecordInvalid."""
        try:
            text = orjson.dumps(dict(self.context), option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise RecordInvalid(f"the context of event {self.key!r} is not JSON: {error}") from error
        if _NUL_ESCAPE.search(text):
            raise RecordInvalid(f"the context of event {self.key!r} contains U+0000")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A sent event. `time_ms`: when it was sent by the system's clock, ms UTC."""

    offset: int
    key: str
    value: str
    type: str
    namespace: str
    sender: str
    version: int
    time_ms: int
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events are wanted; None is any. `after_version`: versions above it; times in [from_ms, to_ms), ms UTC.

    >>> EventFilter(key="model") == EventFilter(key="model", type=None)
    True
    """

    key: str | None = None
    type: str | None = None
    namespace: str | None = None
    sender: str | None = None
    version: int | None = None
    after_version: int | None = None
    from_ms: int | None = None
    to_ms: int | None = None

    def matches(self, event: Event) -> bool:
        """Whether the event is wanted."""
        return (
            self.key in (None, event.key)
            and self.type in (None, event.type)
            and self.namespace in (None, event.namespace)
            and self.sender in (None, event.sender)
            and self._is_within(event)
        )

    def _is_within(self, event: Event) -> bool:
        return (
            self.version in (None, event.version)
            and (self.after_version is None or event.version > self.after_version)
            and (self.from_ms is None or event.time_ms >= self.from_ms)
            and (self.to_ms is None or event.time_ms < self.to_ms)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which events may go: older than `keep_ms` by the system's clock, or before the newest `keep_events`.

    None keeps all. What a durable cursor has not acknowledged stays as long as that cursor is alive: it acknowledged
    something, or a listener took it up or waited at it, within `cursor_alive_ms` of wall time.
    """

    keep_ms: int | None = 30 * 86_400_000
    keep_events: int | None = None
    cursor_alive_ms: int = 7 * 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a reader through the log: the wanted events, and the offset up to which everything was looked at."""

    events: tuple[Event, ...]
    position: int


class NotificationStore(Protocol):
    """The event log. Every method raises StoreUnavailable while the store is away."""

    def send(self, event: NewEvent, /) -> Event:
        """Append an event in a transaction of its own."""
        ...

    def send_many(self, events: Sequence[NewEvent], /) -> tuple[Event, ...]:
        """Append events in this order, in one transaction: all or none."""
        ...

    def send_soon(self, event: NewEvent, /) -> Future[Event]:
        """Append an event without waiting for it: those of one thread keep their order, and many share a transaction.

        The future raises StoreUnavailable.
        """
        ...

    def send_in(self, cur: Any, event: NewEvent, /) -> Event:
        """Append an event in the caller's transaction `cur`: seen if, and only if, that commits.

        Other senders wait from here to that transaction's end, so send last.
        """
        ...

    def send_many_in(self, cur: Any, events: Sequence[NewEvent], /) -> tuple[Event, ...]:
        """The same for several, in this order."""
        ...

    def list(
        self, wanted: EventFilter | None = None, /, *, after_offset: int | None = None, limit: int = 1_000
    ) -> tuple[Event, ...]:
        """Wanted events, ascending: the first `limit` after `after_offset`, or without it the newest `limit`."""
        ...

    def end_offset(self) -> int:
        """The offset of the last event sent, 0 before the first; it stands when that event is trimmed."""
        ...

    def trim(self, retention: Retention, /) -> int:
        """Remove events that need not be kept; answers how many. Versions of keys and offsets go on as they were."""
        ...

    def step(self, wanted: EventFilter, /, *, after_offset: int, timeout_s: float, limit: int = 1_000) -> Step:
        """Read on after `after_offset`, waiting up to `timeout_s` (wall time) while nothing new is there.

        A store that is away looks like one where nothing happens until it is back.
        """
        ...

    def cursor(self, name: str, /) -> int:
        """Take up the durable cursor `name`: the offset up to which it has acknowledged; 0 for a new one.

        From then on, and as long as somebody takes it up now and then, it holds up trimming (`Retention`).
        """
        ...

    def ack(self, name: str, offset: int, /) -> None:
        """Move the durable cursor `name` forward to `offset`; it never moves back."""
        ...

    def ack_in(self, cur: Any, name: str, offset: int, /) -> None:
        """The same in the caller's transaction, so that what an event caused and its acknowledgement are one."""
        ...

    def close(self) -> None:
        """Give back connections and threads."""
        ...


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RecordInvalid(f"an event's {name} is text, not {value!r}")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise RecordInvalid(f"an event's {name} is not Unicode text: {error.reason}") from error
    if b"\0" in encoded:
        raise RecordInvalid(f"an event's {name} contains U+0000")
