"""The sample store as readers see it: a ledger of revisions in commit order, and the table that it amounts to.

A revision is never changed, and all numbers up to `high_water` are readable for good once it has said so. So a range of
`commit_seq` gives the same rows whenever and however often it is read, by one reader or by several: a training run
names its samples by two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import polars as pl

from rtrec_ray.samples.columns import KEY, LEDGER_SCHEMA, SAMPLE_SCHEMA
from rtrec_ray.stores.samples.place import LogPlace

BATCH_ROWS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStats:
    """What the store holds. `positive_rate`: of the current rows, None without rows; `misses`: reason → impressions
    that found no record of the inference log; `corrections`: revisions after the first; `held`: actions that wait for
    their impression; `sampled_out`: impressions without a click that were not drawn.
    """

    rows: int = 0
    positives: int = 0
    positive_rate: float | None = None
    requests: int = 0
    high_water: int = 0
    corrections: int = 0
    held: int = 0
    sampled_out: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        return asdict(self)


class SampleStore(Protocol):
    """What training, diagnostics and the command line read. Raises StoreUnavailable."""

    def high_water(self) -> int:
        """The last number of the ledger: every revision numbered up to it is readable. 0 when it is empty."""
        ...

    def end(self) -> LogPlace:
        """The same number with its place in the write-ahead log; waits for the commit that is under way."""
        ...

    def scan(
        self,
        *,
        from_seq_exclusive: int = 0,
        to_seq: int,
        columns: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pl.DataFrame]:
        """The revisions numbered (from_seq_exclusive, to_seq], in that order, in frames of at most `batch_rows` rows.

        Every revision comes, first ones and corrections alike. `columns`: of `LEDGER_SCHEMA`, by default those of
        `SAMPLE_SCHEMA`; only
        these are read. Frames are never empty. No transaction is held between two frames.
        """
        ...

    def current(
        self,
        *,
        to_seq: int | None = None,
        span: tuple[int, int] | None = None,
        columns: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pl.DataFrame]:
        """The newest revision of every sample as of `to_seq` (now by default), in the order of `commit_seq`.

        `span`: only those numbered (span[0], span[1]], so that several readers can share the work.
        """
        ...

    def stats(self) -> SampleStats:
        """Rows, positives, outcomes, misses by reason, corrections."""
        ...


class MemorySampleStore:
    """The ledger in memory: the twin that tests read from."""

    def __init__(self) -> None:
        self._ledger = pl.DataFrame(schema=LEDGER_SCHEMA)
        self.misses: dict[str, int] = {}
        self.held = 0
        self.sampled_out = 0

    def append(self, rows: pl.DataFrame) -> None:
        """Append revisions: (n, any of `LEDGER_SCHEMA`); missing columns are null, `commit_seq` is given out here.

        >>> store = MemorySampleStore()
        >>> store.append(pl.DataFrame({"request_id": ["r"], "item_id": [1], "revision": [0], "label": [1]}))
        >>> store.high_water(), [frame["label"].to_list() for frame in store.scan(to_seq=9)]
        (1, [[1]])
        """
        known = [pl.col(name).cast(dtype) for name, dtype in LEDGER_SCHEMA.items() if name in rows.columns]
        full = pl.concat([self._ledger.clear(), rows.select(known)], how="diagonal")
        first = self.high_water() + 1
        numbers = pl.int_range(first, first + full.height, eager=True).alias("commit_seq")
        self._ledger = pl.concat([self._ledger, full.with_columns(numbers)])

    def high_water(self) -> int:
        """See SampleStore."""
        return self._ledger.height

    def end(self) -> LogPlace:
        """See SampleStore. The write-ahead log is the ledger itself."""
        return LogPlace(commit_seq=self.high_water(), lsn=self.high_water())

    def scan(
        self,
        *,
        from_seq_exclusive: int = 0,
        to_seq: int,
        columns: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pl.DataFrame]:
        """See SampleStore."""
        wanted = self._ledger.filter(pl.col("commit_seq").is_between(from_seq_exclusive, to_seq, closed="right"))
        yield from wanted.select(columns or SAMPLE_SCHEMA.names()).iter_slices(batch_rows)

    def current(
        self,
        *,
        to_seq: int | None = None,
        span: tuple[int, int] | None = None,
        columns: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pl.DataFrame]:
        """See SampleStore."""
        newest = self._as_of(self.high_water() if to_seq is None else to_seq)
        if span is not None:
            newest = newest.filter(pl.col("commit_seq").is_between(*span, closed="right"))
        yield from newest.select(columns or SAMPLE_SCHEMA.names()).iter_slices(batch_rows)

    def stats(self) -> SampleStats:
        """See SampleStore."""
        newest = self._as_of(self.high_water())
        positives = int(newest["label"].sum())
        return SampleStats(
            rows=newest.height,
            positives=positives,
            positive_rate=positives / newest.height if newest.height else None,
            requests=newest["request_id"].n_unique(),
            high_water=self.high_water(),
            corrections=self._ledger.height - newest.height,
            held=self.held,
            sampled_out=self.sampled_out,
            misses=self.misses,
        )

    def _as_of(self, seq: int) -> pl.DataFrame:
        known = self._ledger.filter(pl.col("commit_seq") <= seq)
        return known.unique(KEY, keep="last", maintain_order=True).sort("commit_seq")
