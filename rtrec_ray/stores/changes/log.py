"""The ledger as a stream: every revision once, in commit order, from where a consumer's checkpoint stands.

A checkpoint is a `LogPlace`. Its `commit_seq` says exactly which revisions it holds, because numbers appear in commit
order: the row of the counter is locked until a commit is done, so the write-ahead log has the commits in the order of
their numbers. Its `lsn` says from where in the write-ahead log all others can be had. So a transaction that comes again
is known by its numbers, and a scan by number closes any gap that a lost slot leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import polars as pl

from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.samples.place import LogPlace, lsn_text
from rtrec_ray.stores.samples.store import MemorySampleStore

__all__ = ["ChangeLog", "Changes", "LogHealth", "LogPlace", "MemoryChangeLog", "MemorySlots", "lsn_text"]

Followed = Literal["stream", "scan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Revisions that follow one another, (n, columns asked for), n ≥ 1, by commit_seq; `place`: after the last."""

    rows: pl.DataFrame
    place: LogPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHealth:
    """How a log is followed. `fallbacks`: times that the slot was lost since this consumer began, and scans closed the
    gap; `reason`: of the last one, or why there is no stream.
    """

    followed_by: Followed = "scan"
    fallbacks: int = 0
    reason: str = ""


class ChangeLog(Protocol):
    """One consumer, known by a durable name; the newest that uses a name ends the one before.

    Methods raise StoreUnavailable; the same call may then be made again. Nothing is delivered twice by it.
    """

    def begin(self, place: LogPlace) -> None:
        """Deliver what comes after `place` from now on, also when that is further back."""
        ...

    def poll(self, *, max_rows: int, timeout_s: float) -> Changes | None:
        """The next revisions: whole transactions, unless one alone has more than `max_rows`; None when none came.

        No more is read ahead than `max_rows` and the transaction that passes it. Raises ChangeRefused too.
        """
        ...

    @property
    def place(self) -> LogPlace:
        """After all that was delivered; its lsn goes on while nothing comes."""
        ...

    def acknowledge(self, place: LogPlace) -> None:
        """A checkpoint with `place` is durable: the server may forget what lies before. It never moves back."""
        ...

    @property
    def health(self) -> LogHealth:
        """How it goes."""
        ...

    def close(self) -> None:
        """Give back connections; the server keeps what was not acknowledged."""
        ...

    def remove(self) -> None:
        """Give up the durable name, so that the server keeps nothing for it."""
        ...


class MemorySlots:
    """The server's side in memory: name → acknowledged LSN. `forbidden`: why nobody may have one."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}
        self.lost: set[str] = set()
        self.forbidden = ""


class MemoryChangeLog:
    """The twin over a ledger in memory, whose write-ahead log is the ledger: the LSN after n revisions is n."""

    def __init__(
        self, store: MemorySampleStore, slots: MemorySlots, *, name: str, columns: Sequence[str] | None = None
    ) -> None:
        self._store, self._slots, self._name = store, slots, name
        self._columns = list(columns or SAMPLE_SCHEMA.names())
        self._open = False
        self.place = LogPlace()
        self.health = LogHealth()

    def begin(self, place: LogPlace) -> None:
        """See ChangeLog."""
        self.place, self._open = place, False

    def poll(self, *, max_rows: int, timeout_s: float) -> Changes | None:
        """See ChangeLog."""
        if not self._open or self._name in self._slots.lost:
            self._connect()
        end = self._store.high_water()
        seq = self.place.commit_seq
        upto = min(seq + max_rows, end)
        lsn = None if self.health.followed_by == "scan" else upto
        self.place = LogPlace(commit_seq=upto, lsn=lsn)
        frames = list(self._store.scan(from_seq_exclusive=seq, to_seq=upto, columns=self._columns))
        return Changes(rows=pl.concat(frames), place=self.place) if frames else None

    def acknowledge(self, place: LogPlace) -> None:
        """See ChangeLog."""
        known = self._slots.acknowledged.get(self._name)
        if known is not None and place.lsn is not None:
            self._slots.acknowledged[self._name] = max(known, place.lsn)

    def close(self) -> None:
        """See ChangeLog."""
        self._open = False

    def remove(self) -> None:
        """See ChangeLog."""
        self.close()
        self._slots.acknowledged.pop(self._name, None)
        self._slots.lost.discard(self._name)

    def _connect(self) -> None:
        if self._slots.forbidden:
            self.health = LogHealth(fallbacks=self.health.fallbacks, reason=self._slots.forbidden)
            return
        gone = self._name in self._slots.lost
        missing = gone or self._name not in self._slots.acknowledged
        fell = missing and self.place.lsn is not None
        if missing:
            self._slots.lost.discard(self._name)
            self._slots.acknowledged[self._name] = self._store.high_water()
        reason = ("slot lost" if gone else "slot gone") if fell else self.health.reason
        self.health = LogHealth(followed_by="stream", fallbacks=self.health.fallbacks + fell, reason=reason)
        self._open = True
