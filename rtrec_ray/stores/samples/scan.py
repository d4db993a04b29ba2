"""Samples of a stretch of time, read by several readers at once out of one moment of the table.

A coordinator opens a scan and keeps it open until the last part is read; readers, in whatever process, read the parts.
All of them see the table as it was when the scan was opened (or as of an earlier number or time), although commits go
on; a part that is read again gives the same rows in the same order.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import polars as pl

from rtrec_ray.errors import AsOfUnknown, SnapshotEnded
from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.samples.store import MemorySampleStore

ALL: Final = tuple(SAMPLE_SCHEMA.names())


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanAsk:
    """The newest revision of every sample with event time in [from_ms, to_ms), ms UTC; only `columns` are read.

    `as_of_seq`: as the table was when the ledger had come to that number; `as_of_ms`: as it was known then, wall time
    (no revision written later, and none numbered after such a one; a time to come is now); neither: as it is when the
    scan is opened.
    """

    from_ms: int
    to_ms: int
    columns: tuple[str, ...] = ALL
    as_of_seq: int | None = None
    as_of_ms: int | None = None

    @property
    def days(self) -> tuple[dt.date, dt.date]:
        """The first and the last UTC day of the range."""
        return day_of(self.from_ms), day_of(max(self.from_ms, self.to_ms - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPart:
    """Blocks [first_block, end_block) of the table of the requests of one UTC day.

    Without blocks: that day's requests' samples that were shown on other days.
    """

    day: dt.date
    first_block: int = 0
    end_block: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPlan:
    """What a reader needs beside its part: the snapshot's name, and what was asked for, as of `to_seq`. It pickles."""

    snapshot: str
    to_seq: int
    ask: ScanAsk
    parts: tuple[ScanPart, ...]


class SampleScan(Protocol):
    """Where a time range of samples is read from."""

    def open(self, ask: ScanAsk, /) -> AbstractContextManager[ScanPlan]:
        """Fix the moment and cut the range into parts; the plan can be read until the block ends.

        Raises AsOfUnknown, StoreUnavailable.
        """
        ...

    def read(self, plan: ScanPlan, part: ScanPart, /) -> pl.DataFrame:
        """The rows of a part in the order of `commit_seq`: columns of `ask.columns` as in `SAMPLE_SCHEMA`; may be none.

        Raises SnapshotEnded when the scan is no longer open, StoreUnavailable.
        """
        ...


class MemorySampleScan:
    """The twin that reads from a ledger in memory, in parts of `part_rows` rows.

    `kept_from_ms`: as if retention had removed what is older; None: nothing yet.
    """

    def __init__(self, store: MemorySampleStore, *, part_rows: int = 1_000) -> None:
        self._store = store
        self._part_rows = part_rows
        self.kept_from_ms: int | None = None
        self._open: dict[str, pl.DataFrame] = {}

    @contextmanager
    def open(self, ask: ScanAsk, /) -> Iterator[ScanPlan]:
        """See SampleScan."""
        to_seq = self._to_seq(ask)
        rows = pl.concat([SAMPLE_SCHEMA.to_frame(), *self._store.current(to_seq=to_seq)])
        rows = rows.filter(pl.col("event_time_ms").is_between(ask.from_ms, ask.to_ms, closed="left"))
        snapshot = uuid.uuid4().hex
        self._open[snapshot] = rows
        starts = range(0, rows.height, self._part_rows)
        parts = tuple(
            ScanPart(day=day_of(ask.from_ms), first_block=start, end_block=start + self._part_rows) for start in starts
        )
        try:
            yield ScanPlan(snapshot=snapshot, to_seq=to_seq, ask=ask, parts=parts)
        finally:
            del self._open[snapshot]

    def read(self, plan: ScanPlan, part: ScanPart, /) -> pl.DataFrame:
        """See SampleScan."""
        if plan.snapshot not in self._open:
            raise ended(plan)
        return self._open[plan.snapshot][part.first_block : part.end_block].select(plan.ask.columns)

    def _to_seq(self, ask: ScanAsk) -> int:
        high = self._store.high_water()
        refuse_unknown(ask, high=high, kept_from_ms=self.kept_from_ms)
        if ask.as_of_ms is not None:
            frames = [*self._store.scan(to_seq=high, columns=["commit_seq", "known_at_ms"])]
            later = [frame.filter(pl.col("known_at_ms") > ask.as_of_ms)["commit_seq"].min() for frame in frames]
            return min([high, *(int(seq) - 1 for seq in later if seq is not None)])  # type: ignore[arg-type]
        return high if ask.as_of_seq is None else ask.as_of_seq


def refuse_unknown(ask: ScanAsk, *, high: int, kept_from_ms: int | None) -> None:
    """Raise AsOfUnknown if the table as of a moment cannot be told; `high`: the ledger's last number, `kept_from_ms`:
    event time (ms UTC) before which retention has removed samples.

    >>> refuse_unknown(ScanAsk(from_ms=5, to_ms=9, as_of_seq=7), high=7, kept_from_ms=5)
    """
    if ask.as_of_seq is not None and ask.as_of_seq > high:
        raise AsOfUnknown(
            f"the ledger of samples has not come to commit_seq {ask.as_of_seq:,} yet, its last is {high:,}",
            mend=f"give a number from 0 to {high}, or none for the table of now",
        )
    then = ask.as_of_seq is not None or ask.as_of_ms is not None
    if then and kept_from_ms is not None and ask.from_ms < kept_from_ms:
        raise AsOfUnknown(
            f"samples from before {kept_from_ms} were dropped by retention, so what was known of them cannot be told",
            mend=f"begin the range at {kept_from_ms} or later; samples.retention_days says how long they are kept",
        )


def blocks_of(day: dt.date, blocks: int, *, part_blocks: int) -> list[ScanPart]:
    """A day's table cut into parts.

    >>> [(part.first_block, part.end_block) for part in blocks_of(dt.date(2026, 1, 1), 5, part_blocks=2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    return [
        ScanPart(day=day, first_block=start, end_block=min(start + part_blocks, blocks))
        for start in range(0, blocks, part_blocks)
    ]


def select_schema(columns: Sequence[str]) -> pl.Schema:
    """The types of some columns of a sample, in that order."""
    return pl.Schema([(name, SAMPLE_SCHEMA[name]) for name in columns])


def day_of(ms: int) -> dt.date:
    """The UTC day of a time; times that no date can name are the first and the last.

    >>> day_of(86_399_999), day_of(-(1 << 62)), day_of(1 << 62)
    (datetime.date(1970, 1, 1), datetime.date(1, 1, 1), datetime.date(9999, 12, 31))
    """
    first, last = dt.date.min.toordinal(), dt.date.max.toordinal()
    ordinal = ms // 86_400_000 + dt.date(1970, 1, 1).toordinal()
    return dt.date.fromordinal(min(max(ordinal, first), last))


def ended(plan: ScanPlan) -> SnapshotEnded:
    """The error of a part that is read after its scan."""
    return SnapshotEnded(
        f"the scan {plan.snapshot} is no longer open, so its moment of the table cannot be read any more",
        mend="keep the scan open until its last part is read; read the range anew to go on",
    )
