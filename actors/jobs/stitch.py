"""Samples stitched anew from the history, as a Ray Data job: a task for each partition of Kafka, by the operator of the
stream.

A partition's records of the range lie in its task's memory. The wait plays no part: all that is known by now is known
to each sample, so its labels are those that the live table comes to in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from polars import CompatLevel

from actors.jobs.quiet import keep_quiet
from actors.jobs.translated import translated
from actors.sample import SampleOperator
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.kafka.base import RecordBatch
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.samples.columns import KEY, SAMPLE_SCHEMA
from rtrec_ray.samples.timeline import Timeline
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import FOREVER_MS, History
from rtrec_ray.stores.samples.ledger import MemorySampleLedger, MemorySamples

MARGIN_MS: Final = 3_600_000
"""An item is shown within that after its request was answered, or its record of the inference log is not found."""

_BATCH_ROWS: Final = 100_000
_RAW: Final = ["offset", "kafka_ts", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchOptions:
    """Impressions of [from_ms, to_ms), ms UTC, of `partitions` of Kafka, each by the definition that held for it."""

    postgres: PostgresOptions
    history_uri: str
    timeline: Timeline
    partitions: int
    from_ms: int
    to_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchTask:
    """A Ray Data task: the number of a partition in, its samples out."""

    options: StitchOptions

    def __call__(self, numbers: Mapping[str, Any]) -> Iterator[pa.Table]:
        """(n, SAMPLE_SCHEMA + source_partition, source_offset) of each partition."""
        files = ArrowHistoryFiles(HistoryFilesOptions(uri=self.options.history_uri))
        with closing(PostgresHistoryManifest(self.options.postgres)) as manifest:
            for number in numbers["number"].tolist():
                found = stitch_partition(History(files, manifest), self.options, partition=number)
                yield found.to_arrow(compat_level=CompatLevel.oldest())


def stitch(options: StitchOptions, *, progress: Callable[[int, int], None]) -> Iterator[pl.DataFrame]:
    """Samples of one partition after another; `progress` gets (done, total). Needs a Ray connection.

    Raises StoreUnavailable, RayUnavailable.
    """
    keep_quiet()
    total = options.partitions
    numbers = ray.data.from_items([{"number": number} for number in range(total)], override_num_blocks=total)
    tasks = numbers.map_batches(StitchTask(options=options), batch_size=1, batch_format="numpy", num_cpus=1)
    progress(0, total)
    with translated("stitches a partition"):
        for done, block in enumerate(tasks.iter_batches(batch_size=None, batch_format="pyarrow"), start=1):
            yield pl.DataFrame(pl.from_arrow(block))
            progress(min(done, total), total)


def stitch_partition(history: History, options: StitchOptions, *, partition: int) -> pl.DataFrame:
    """The samples of one partition: (n, SAMPLE_SCHEMA + source_partition, source_offset). Raises StoreUnavailable."""
    kept = MemorySamples()
    kept.timeline = options.timeline
    ledger = MemorySampleLedger(kept, partition=partition)
    operator = SampleOperator(options.timeline.newest, ledger=ledger, latest_ms=_believe)
    operator.restore(None, committed={})  # type: ignore[arg-type]  # the ledger in memory has no cursor
    taken = [operator.apply(batch).max_ts_ms for batch in _batches(history, options, partition=partition)]
    newest_ms = max((ms for ms in taken if ms is not None), default=options.to_ms)
    operator.advance(watermark_ms=newest_ms + options.timeline.longest_horizon_ms + MARGIN_MS)  # every wait is over
    operator.write(None)  # type: ignore[arg-type]
    within = pl.col("event_time_ms").is_between(options.from_ms, options.to_ms, closed="left")
    rows = pl.concat([SAMPLE_SCHEMA.to_frame(), *kept.store.current()]).filter(within)
    origin = kept.rows.select(*KEY, "source_offset")
    return rows.join(origin, on=KEY, how="left", maintain_order="left").with_columns(
        source_partition=pl.lit(partition, dtype=pl.Int64)
    )


def _batches(history: History, options: StitchOptions, *, partition: int) -> Iterator[RecordBatch]:
    own = pc.field("partition") == partition
    kind, ts = pc.field("event_type"), pc.field("ts")
    wanted = (kind != "search") & ((kind != "impression") | (ts < options.to_ms))
    # Items differ in how late they are acted on by page: the longest that any rule allows.
    spans = {
        INFERENCE: (own, options.to_ms + MARGIN_MS),
        BEHAVIOR: (own & wanted, min(options.to_ms + options.timeline.longest_horizon_ms, FOREVER_MS)),
    }
    for topic, (where, to_ms) in spans.items():
        frames = history.scan(topic, from_ms=options.from_ms - MARGIN_MS, to_ms=to_ms, columns=_RAW, where=where)
        rows = list(frames)
        if rows:
            for chunk in pl.concat(rows).sort("offset").iter_slices(_BATCH_ROWS):
                yield _batch(topic, partition, chunk)


def _batch(topic: str, partition: int, rows: pl.DataFrame) -> RecordBatch:
    offsets = rows["offset"].to_numpy()
    return RecordBatch(
        topic=topic,
        partition=partition,
        offsets=offsets,
        values=rows["raw"].to_list(),
        stamps_ms=rows["kafka_ts"].to_numpy(),
        next_offset=int(offsets[-1]) + 1,
    )


def _believe(written_ms: int) -> int:
    """Who wrote the history has judged the records."""
    return FOREVER_MS
