"""The history task: every record of every topic to Parquet once, and a dead letter for each that cannot be used."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from actors.operator import BatchOutcome
from rtrec_ray.clock import wall_ms
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE
from rtrec_ray.kafka.base import Producer, RecordBatch
from rtrec_ray.kafka.codec import LatestMs, decode
from rtrec_ray.kafka.deadletter import DeadLetter, send_dead
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.stores.history.store import HistoryFile, HistoryFiles, HistoryManifest, schema
from rtrec_ray.stores.history.tidy import TidyOptions, tidy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryOptions:
    """When records become files before a commit does it. `max_bytes`: raw bytes kept in memory per partition."""

    max_bytes: int = 16 << 20


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """Since the last commit: records not yet in files, files not yet in the manifest, letters not yet sent."""

    frames: defaultdict[str, list[pl.DataFrame]] = field(default_factory=lambda: defaultdict(list))
    files: list[HistoryFile] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0


class HistoryOperator:
    """One partition of the history. Its commit makes files visible that are already durable.

    Files are written outside the transaction: when `max_bytes` wait, and before a commit.
    """

    topics: tuple[str, ...] = (BEHAVIOR, INFERENCE, PROFILE, ITEM)
    timed: tuple[str, ...] = (BEHAVIOR, INFERENCE)
    preload: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        files: HistoryFiles,
        manifest: HistoryManifest,
        producer: Producer,
        latest_ms: LatestMs,
        options: HistoryOptions,
    ) -> None:
        self._files = files
        self._manifest = manifest
        self._producer = producer
        self._latest_ms = latest_ms
        self._options = options
        self._partition: int = -1
        self._waiting = _Waiting()

    def restore(self, cursor: Cursor, *, committed: Mapping[str, int]) -> Mapping[str, int]:
        """Nothing is kept between commits: go on where the last one ended."""
        self._waiting = _Waiting()
        return committed

    def apply(self, batch: RecordBatch) -> BatchOutcome:
        """Take records of one topic: good ones wait for their file, bad ones for their letter."""
        decoded = decode(batch, latest_ms=self._latest_ms)
        self._partition = batch.partition
        waiting = self._waiting
        waiting.letters += decoded.dead
        waiting.rows += len(batch)
        waiting.bytes += sum(len(value) for value in batch.values if value is not None)
        if not decoded.frame.is_empty():
            waiting.frames[batch.topic].append(_with_origin(decoded.frame, batch))
        if waiting.bytes >= self._options.max_bytes:
            self.flush()
        latest = None if decoded.frame.is_empty() else int(decoded.frame["ts"].to_numpy().max())
        return BatchOutcome(max_ts_ms=latest, counts={"in": len(batch), "dead": len(decoded.dead)})

    def advance(self, *, watermark_ms: int) -> Mapping[str, int]:
        """Event time does not matter here."""
        return {}

    def rest(self) -> bool:
        """See Operator: nobody asks."""
        return False

    def pending_rows(self) -> int:
        """Records since the last commit, whether in a file or not."""
        return self._waiting.rows

    def open_rows(self) -> int:
        """Nothing waits for event time."""
        return 0

    @staticmethod
    def prepare(operators: Sequence[HistoryOperator]) -> None:
        """Write the files of what waits, and the dead letters."""
        for each in operators:
            each.flush()

    def write(self, cursor: Cursor) -> Mapping[str, int]:
        """Make the files visible in the open transaction; every dead letter is acknowledged."""
        files = self._waiting.files
        if files:
            self._manifest.add(cursor, files)
        return {"out": sum(file.row_count for file in files), "files": len(files)}

    def look(self, cursor: Cursor) -> bool:
        """Nothing but records makes a commit."""
        return False

    def committed(self) -> None:
        """The files are in the manifest and the letters acknowledged."""
        self._waiting = _Waiting()

    def flush(self) -> None:
        """Write what waits, and return when it is durable."""
        waiting = self._waiting
        if waiting.letters:
            send_dead(self._producer, waiting.letters, at_ms=wall_ms())
            self._producer.flush()
            waiting.letters = []
        for topic, frames in waiting.frames.items():
            waiting.files += self._files.write(topic, pl.concat(frames), partition=self._partition)
        waiting.frames.clear()
        waiting.bytes = 0


class HistoryTidier:
    """Puts small files together and removes what nobody reads, on a timer. One process does it for all partitions."""

    def __init__(self, files: HistoryFiles, manifest: HistoryManifest, *, every_s: float) -> None:
        self._files = files
        self._manifest = manifest
        self._every_s = every_s

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; while a store is away, try again at the next round."""
        while not stop.wait(self._every_s):
            try:
                tidy(self._files, self._manifest, TidyOptions())
            except StoreUnavailable as error:
                log.warning("tidier_waits", extra={"cause": error.line()})


def _with_origin(frame: pl.DataFrame, batch: RecordBatch) -> pl.DataFrame:
    """Add the columns of stores.history.ORIGIN: where the record came from, and its bytes."""
    place = np.searchsorted(batch.offsets, frame["offset"].to_numpy())
    raw = pa.array(batch.values, type=pa.large_binary()).take(pa.array(place))
    added = frame.with_columns(
        partition=pl.lit(batch.partition, dtype=pl.Int32),
        kafka_ts=pl.Series(batch.stamps_ms[place], dtype=pl.Int64),
        raw=pl.Series(pl.from_arrow(raw)),
    )
    return added.select(schema(batch.topic).names())
