"""Changes of model versions and the book that keeps them: first intended, then made in MLflow, then told.

MLflow takes no part in our transactions. So a change is a row first, making it in MLflow may be repeated without harm,
and its events are sent by the transaction that marks the row done: a crash at any point ends in exactly one change and
one telling of it. (The outbox of "Transactional outbox", Richardson, Microservices Patterns, 2018, chapter 3.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from rtrec_ray.clock import REAL, Clock
from rtrec_ray.metadata.base import MetadataStore, ModelLineage
from rtrec_ray.notification.base import (
    MODEL,
    MODEL_DEPLOYED,
    MODEL_DEPRECATED,
    MODEL_GENERATED,
    MODEL_REJECTED,
    MODEL_VALIDATED,
    NewEvent,
    NotificationStore,
)

ChangeKind = Literal["generated", "champion", "rejected", "deployed", "withdrawn"]

_TELLS: Final[dict[ChangeKind, str]] = {
    "generated": MODEL_GENERATED,
    "champion": MODEL_VALIDATED,
    "rejected": MODEL_REJECTED,
    "deployed": MODEL_DEPLOYED,
    "withdrawn": MODEL_DEPRECATED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChange:
    """A change that somebody wants. `once_key`: two of the same key are one; None: it may come again.

    champion: validated, and chosen to serve. deployed: a replica serves it. withdrawn: champion no more, nor is any.
    """

    change: ChangeKind
    version: str
    reason: str = ""
    sender: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    once_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change in the book. `made_ms`: when it was wanted, by the system's clock, ms UTC. `done`: made, and told.

    `previous`: of champion, deployed and withdrawn, what was it before.
    """

    change_id: int
    change: ChangeKind
    version: str
    reason: str
    sender: str
    context: Mapping[str, Any]
    made_ms: int
    previous: str | None = None
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A version served in [from_ms, to_ms), ms UTC by the system's clock; None: it still does."""

    version: str
    from_ms: int
    to_ms: int | None = None


class ChangeBook(Protocol):
    """Every method raises StoreUnavailable while the store is away."""

    def intend(self, *wanted: NewChange) -> None:
        """Write down changes to be made in this order: all or none. One whose key is there already is left out."""
        ...

    def generated(self, made: NewChange, lineage: ModelLineage, /) -> bool:
        """A version was made: tell it and write down its lineage, once; whether this was the first time."""
        ...

    def deployed(self, made: NewChange, /) -> bool:
        """A replica serves a version: tell it and go on with the history of service.

        Does nothing, and answers False, when it serves already, or when the replica is late: what serves was chosen
        after it.
        """
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Only one in all processes is within this at a time; whoever dies in it lets the next one in."""
        ...

    def next(self) -> Change | None:
        """The first change that is not done."""
        ...

    def finish(self, change: Change, /) -> None:
        """It was made: mark it done and tell it, in one transaction; does nothing to one that is done."""
        ...

    def champion(self) -> str | None:
        """The champion by the changes done so far."""
        ...

    def changes(self, *, version: str | None = None, limit: int = 100) -> tuple[Change, ...]:
        """The newest changes, oldest first; of one version or all."""
        ...

    def served(self, *, limit: int = 100) -> tuple[Served, ...]:
        """What served when: the newest, oldest first."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


def events_of(change: Change, *, replaced: str | None) -> list[NewEvent]:
    """What a change tells. `replaced`: the version that is champion no more by it and was not rejected.

    >>> made = Change(change_id=1, change="champion", version="7", reason="", sender="gate", context={}, made_ms=0)
    >>> [(event.type, event.value) for event in events_of(made, replaced="6")]
    [('MODEL_VALIDATED', '7'), ('MODEL_DEPRECATED', '6')]
    """
    kind = _TELLS[change.change]
    context = {**change.context, "reason": change.reason} if change.reason else change.context
    told = [NewEvent(key=MODEL, value=change.version, type=kind, sender=change.sender, context=context)]
    if change.change == "champion" and replaced not in (None, change.version):
        after = {"champion": change.version}
        told.append(
            NewEvent(key=MODEL, value=str(replaced), type=MODEL_DEPRECATED, sender=change.sender, context=after)
        )
    return told


class MemoryChangeBook:
    """The book in memory: the twin for tests."""

    def __init__(self, events: NotificationStore, metadata: MetadataStore, *, clock: Clock = REAL) -> None:
        self._events = events
        self._metadata = metadata
        self._clock = clock
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        self._changes: list[Change] = []
        self._order: list[int] = []  # ids in the order in which they were done
        self._keys: set[str] = set()
        self._served: list[Served] = []

    def intend(self, *wanted: NewChange) -> None:
        """See ChangeBook."""
        with self._lock:
            for each in wanted:
                self._write(each)

    def generated(self, made: NewChange, lineage: ModelLineage, /) -> bool:
        """See ChangeBook."""
        with self._lock:
            change = self._write(made)
            if change is None:
                return False
            self._metadata.put_lineage(lineage)
            self.finish(change)
        return True

    def deployed(self, made: NewChange, /) -> bool:
        """See ChangeBook."""
        with self._lock:
            now = self._served[-1].version if self._served else None
            if now == made.version or (now is not None and self._chosen(made.version) < self._chosen(now)):
                return False
            change = self._write(made)
            assert change is not None
            if self._served:
                self._served[-1] = replace(self._served[-1], to_ms=change.made_ms)
            self._served.append(Served(version=made.version, from_ms=change.made_ms))
            self.finish(change)
        return True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See ChangeBook."""
        with self._turn:
            yield

    def next(self) -> Change | None:
        """See ChangeBook."""
        return next((change for change in self._changes if not change.done), None)

    def finish(self, change: Change, /) -> None:
        """See ChangeBook."""
        with self._lock:
            if self._changes[change.change_id - 1].done:
                return
            before = self.champion()
            rejected = {each.version for each in self._changes if each.done and each.change == "rejected"}
            self._events.send_many(events_of(change, replaced=None if before in rejected else before))
            self._changes[change.change_id - 1] = replace(change, previous=self._previous(change), done=True)
            self._order.append(change.change_id)

    def champion(self) -> str | None:
        """See ChangeBook."""
        for number in reversed(self._order):
            change = self._changes[number - 1]
            if change.change in ("champion", "withdrawn"):
                return change.version if change.change == "champion" else None
        return None

    def changes(self, *, version: str | None = None, limit: int = 100) -> tuple[Change, ...]:
        """See ChangeBook."""
        done = [self._changes[number - 1] for number in self._order]
        found = [*done, *(change for change in self._changes if not change.done)]
        return tuple(change for change in found if version in (None, change.version))[-limit:]

    def served(self, *, limit: int = 100) -> tuple[Served, ...]:
        """See ChangeBook."""
        return tuple(self._served[-limit:])

    def close(self) -> None:
        """See ChangeBook."""

    def _write(self, wanted: NewChange) -> Change | None:
        if wanted.once_key is not None and wanted.once_key in self._keys:
            return None
        if wanted.once_key is not None:
            self._keys.add(wanted.once_key)
        change = Change(
            change_id=len(self._changes) + 1,
            change=wanted.change,
            version=wanted.version,
            reason=wanted.reason,
            sender=wanted.sender,
            context=wanted.context,
            made_ms=self._clock.now_ms(),
        )
        self._changes.append(change)
        return change

    def _previous(self, change: Change) -> str | None:
        if change.change in ("champion", "withdrawn"):
            return self.champion()
        served = [each.version for each in self._served]
        return served[-2] if change.change == "deployed" and len(served) > 1 else None

    def _chosen(self, version: str) -> int:
        """Place of the change that chose it last; endless for one that was chosen by nobody we know."""
        places = [
            place
            for place, number in enumerate(self._order)
            if (change := self._changes[number - 1]).change == "champion" and change.version == version
        ]
        return places[-1] if places else 1 << 62
