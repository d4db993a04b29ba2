"""The history: every accepted record as Parquet by topic, event date and event hour, each exactly once.

Files are written under final, unique names and become visible by their row in the manifest, which is committed with
the positions they cover. What a crash leaves between the two is a file without a row, which nobody reads.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rtrec_ray.events import SCHEMAS

if TYPE_CHECKING:
    import pyarrow.dataset as ds

HOUR_MS: Final = 3_600_000
BEGINNING_MS: Final = -(1 << 63)  # profiles and items may say since when something holds, so before 1970 too
FOREVER_MS: Final = (1 << 63) - 1

ORIGIN: Final = pl.Schema(
    {
        "partition": pl.Int32,
        "offset": pl.Int64,
        "kafka_ts": pl.Int64,  # when the log took the record, ms of wall time UTC; -1 where unknown
        "raw": pl.Binary,  # the record's bytes as they came, unknown fields included
    }
)

_ARROW: Final[dict[object, pa.DataType]] = {
    pl.Int64(): pa.int64(),
    pl.Int32(): pa.int32(),
    pl.String(): pa.string(),
    pl.Binary(): pa.binary(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFile:
    """One file of the history and what is in it. `path` is below the root; times in ms UTC, sizes in bytes."""

    path: str
    topic: str
    partition: int
    event_date: dt.date
    event_hour: int
    row_count: int
    byte_count: int
    min_offset: int
    max_offset: int
    min_ts_ms: int
    max_ts_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSummary:
    """What the history holds of a topic. Times in ms UTC."""

    topic: str
    files: int
    rows: int
    bytes: int
    min_ts_ms: int
    max_ts_ms: int


class HistoryManifest(Protocol):
    """Which files exist. `cur` is the caller's open transaction. Every method raises StoreUnavailable."""

    def add(self, cur: Any, files: Sequence[HistoryFile], /) -> None:
        """Make the files visible when the caller's transaction commits."""
        ...

    def files(self, topic: str, /, *, from_ms: int = BEGINNING_MS, to_ms: int = FOREVER_MS) -> tuple[HistoryFile, ...]:
        """Visible files that may hold event times of [from_ms, to_ms), by ascending time."""
        ...

    def summary(self) -> tuple[TopicSummary, ...]:
        """What there is, by topic."""
        ...

    def replace(self, old: Sequence[HistoryFile], new: Sequence[HistoryFile], /) -> bool:
        """Let `new` take the place of `old` in one transaction; False, and nothing done, if one of `old` is gone."""
        ...

    def known(self, paths: Sequence[str], /) -> frozenset[str]:
        """Those of `paths` that have a row, replaced or not."""
        ...

    def replaced(self, *, grace_s: float) -> tuple[str, ...]:
        """Paths that were replaced more than `grace_s` seconds ago: no reader is in them any more."""
        ...

    def forget(self, paths: Sequence[str], /) -> None:
        """Drop the rows of replaced files."""
        ...


class HistoryFiles(Protocol):
    """Where the files lie."""

    def write(self, topic: str, frame: pl.DataFrame, /, *, partition: int) -> list[HistoryFile]:
        """Write records of one partition, a file for each event hour in them; durable when it returns."""
        ...

    def open(self, topic: str, files: Sequence[HistoryFile], /) -> ds.Dataset:
        """The files' records as one dataset of `arrow_schema(topic)`."""
        ...

    def frames(
        self, dataset: ds.Dataset, /, *, columns: Sequence[str] | None, batch_rows: int
    ) -> Iterator[pl.DataFrame]:
        """Read an opened dataset in portions, none of them empty. `columns`: None is all."""
        ...

    def paths(self, topic: str, /, *, min_age_s: float = 0.0) -> Iterator[str]:
        """Every file of the topic that lies there for at least `min_age_s` seconds, visible or not."""
        ...

    def remove(self, paths: Sequence[str], /) -> None:
        """Remove files; one that is gone already is no error."""
        ...


class History:
    """The read side: the records of a topic by event time, from the files that the manifest names.

    `portion_rows`: records that `portions` holds at once, about; to work on them takes up to a kilobyte each.
    """

    def __init__(self, files: HistoryFiles, manifest: HistoryManifest, *, portion_rows: int = 500_000) -> None:
        self._files = files
        self._portion_rows = portion_rows
        self._manifest = manifest

    def dataset(self, topic: str, *, from_ms: int = BEGINNING_MS, to_ms: int = FOREVER_MS) -> ds.Dataset:
        """Accepted records of `topic` with event time in [from_ms, to_ms), as a lazy pyarrow dataset.

        Columns: those of the topic, then `partition`, `offset`, `kafka_ts`, `raw`. Raises StoreUnavailable.
        """
        found = self._manifest.files(topic, from_ms=from_ms, to_ms=to_ms)
        ts = pc.field("ts")
        return self._files.open(topic, found).filter((ts >= from_ms) & (ts < to_ms))

    def scan(
        self,
        topic: str,
        *,
        from_ms: int = BEGINNING_MS,
        to_ms: int = FOREVER_MS,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        batch_rows: int = 65_536,
    ) -> Iterator[pl.DataFrame]:
        """The same as frames of at most `batch_rows` rows, in no particular order and in bounded memory; of the records
        that meet `where`. Raises StoreUnavailable, also while it is read.
        """
        dataset = self.dataset(topic, from_ms=from_ms, to_ms=to_ms)
        if where is not None:
            dataset = dataset.filter(where)
        return self._files.frames(dataset, columns=columns, batch_rows=batch_rows)

    def portions(
        self, topic: str, *, from_ms: int, to_ms: int, step_ms: int, columns: Sequence[str]
    ) -> Iterator[tuple[int, int, pl.DataFrame]]:
        """The records of one stretch of time after the other, as (from_ms, to_ms, frame). A stretch is as many whole
        steps as have about `portion_rows` records, but one at least. Raises StoreUnavailable, also while it is read.
        """
        rows_of = rows_by_step(self._manifest.files(topic, from_ms=from_ms, to_ms=to_ms), step_ms=step_ms)
        empty = schema(topic).to_frame().select(columns)
        for start_ms, end_ms in stretches(
            rows_of, from_ms=from_ms, to_ms=to_ms, step_ms=step_ms, rows=self._portion_rows
        ):
            found = self.scan(topic, from_ms=start_ms, to_ms=end_ms, columns=columns)
            yield start_ms, end_ms, pl.concat([empty, *found])

    def files(self, topic: str, *, from_ms: int = BEGINNING_MS, to_ms: int = FOREVER_MS) -> tuple[HistoryFile, ...]:
        """The visible files that may hold event times of [from_ms, to_ms), for parallel readers."""
        return self._manifest.files(topic, from_ms=from_ms, to_ms=to_ms)

    def open(self, topic: str, files: Sequence[HistoryFile]) -> ds.Dataset:
        """Some of `files` as one dataset, not cut by time."""
        return self._files.open(topic, files)

    def frame(
        self, topic: str, files: Sequence[HistoryFile], *, columns: Sequence[str], where: pc.Expression
    ) -> pl.DataFrame:
        """The records in some of `files` that meet `where`, all at once. Raises StoreUnavailable."""
        dataset = self._files.open(topic, files).filter(where)
        empty = schema(topic).to_frame().select(columns)
        return pl.concat([empty, *self._files.frames(dataset, columns=columns, batch_rows=65_536)])

    def summary(self) -> tuple[TopicSummary, ...]:
        """What there is, by topic."""
        return self._manifest.summary()


def rows_by_step(files: Iterable[HistoryFile], *, step_ms: int) -> Mapping[int, float]:
    """Step of time since 1970 → about how many records the files have of it, as if spread evenly over a file's time."""
    rows_of: defaultdict[int, float] = defaultdict(float)
    for file in files:
        steps = range(file.min_ts_ms // step_ms, file.max_ts_ms // step_ms + 1)
        for step in steps:
            rows_of[step] += file.row_count / len(steps)
    return rows_of


def stretches(
    rows_of: Mapping[int, float], *, from_ms: int, to_ms: int, step_ms: int, rows: int
) -> Iterator[tuple[int, int]]:
    """[from_ms, to_ms) cut into stretches of whole steps with at most `rows` records each, or of one step. Both are
    multiples of `step_ms`.

    >>> list(stretches({0: 5, 1: 5, 2: 5, 3: 20}, from_ms=0, to_ms=50, step_ms=10, rows=10))
    [(0, 20), (20, 30), (30, 40), (40, 50)]
    """
    start_ms, held = from_ms, 0.0
    for step_from_ms in range(from_ms, to_ms, step_ms):
        more = rows_of.get(step_from_ms // step_ms, 0)
        if step_from_ms > start_ms and held + more > rows:
            yield start_ms, step_from_ms
            start_ms, held = step_from_ms, 0.0
        held += more
    if start_ms < to_ms:
        yield start_ms, to_ms


def schema(topic: str) -> pl.Schema:
    """Columns of a topic in the history: its own, then where the record came from.

    >>> schema("item").names()
    ['item_id', 'ts', 'item_type', 'category_id', 'title', 'partition', 'offset', 'kafka_ts', 'raw']
    """
    return pl.Schema({**SCHEMAS[topic], **ORIGIN})


def arrow_schema(topic: str) -> pa.Schema:
    """The same as Arrow's schema, which the files carry."""
    return pa.schema([(name, _ARROW[kind]) for name, kind in schema(topic).items()])
