"""Samples stitched anew from the history: into files, or beside the live table.

Import this only when Ray's variables are set (`join_environment`): Ray reads some of them as it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import polars as pl
import pyarrow.compute as pc

from actors.jobs.stitch import MARGIN_MS, StitchOptions, stitch
from rtrec_ray.app.system import System
from rtrec_ray.errors import VerifyImpossible
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.samples.columns import KEY, SAMPLE_SCHEMA, within, without
from rtrec_ray.samples.timeline import Timeline
from rtrec_ray.samples.verify import LIVE_SCHEMA, RECORD_SCHEMA, STITCHED_SCHEMA, Comparison, compare
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import History
from rtrec_ray.stores.samples.export import Export, write_export
from rtrec_ray.stores.samples.live import read_timeline
from rtrec_ray.stores.samples.scan import ScanAsk
from rtrec_ray.stores.samples.scan_postgres import PostgresSampleScan
from rtrec_ray.stores.samples.verify import read_origins, read_standing

Progress = Callable[[int, int], None]

# What only the stream knows of a sample: its numbers, and when it was written.
COLUMNS = tuple(name for name in SAMPLE_SCHEMA if name not in ("commit_seq", "known_at_ms", "revision", "old_label"))


def stitch_into(system: System, out: str, *, from_ms: int, to_ms: int, progress: Progress) -> Export:
    """Write the samples of [from_ms, to_ms) below `out`, a file for each partition and day. Needs a Ray connection.

    Raises ExportRefused, VerifyImpossible, StoreUnavailable.
    """
    frames = stitch(_options(system, from_ms=from_ms, to_ms=to_ms), progress=progress)
    return write_export(enumerate(frames), out, ScanAsk(from_ms=from_ms, to_ms=to_ms, columns=COLUMNS))


def verify_samples(system: System, *, from_ms: int, to_ms: int, progress: Progress) -> Comparison:
    """Compare the live samples of [from_ms, to_ms) with those stitched from the history. Needs a Ray connection.

    Raises VerifyImpossible, StoreUnavailable.
    """
    options = _options(system, from_ms=from_ms, to_ms=to_ms)
    # What a position covers was committed before the table is looked at; the history is read after both.
    standing = read_standing(system.postgres, from_ms=from_ms, to_ms=to_ms, wait_ms=options.timeline.longest_wait_ms)
    live = _live(system, from_ms=from_ms, to_ms=to_ms)
    frames = [frame.select(STITCHED_SCHEMA.names()) for frame in stitch(options, progress=progress)]
    stitched = pl.concat([STITCHED_SCHEMA.to_frame(), *frames])
    extra = without(live, stitched)
    origins = read_origins(system.postgres, extra.select(KEY))
    placed = live.join(origins, on=KEY, how="left", maintain_order="left")
    missed = within(without(stitched, live), standing.misses)
    records = _records(system, missed["request_id"].unique(), from_ms=from_ms, to_ms=to_ms)
    return compare(stitched, placed.select(LIVE_SCHEMA.names()), replace(standing, records=records))


def _records(system: System, request_ids: pl.Series, *, from_ms: int, to_ms: int) -> pl.DataFrame:
    """Where the history has the inference records of these requests: (n, RECORD_SCHEMA)."""
    if request_ids.is_empty():
        return RECORD_SCHEMA.to_frame()
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=system.history_uri))
    span = {"from_ms": from_ms - MARGIN_MS, "to_ms": to_ms + MARGIN_MS}
    wanted = pc.field("request_id").isin(request_ids.to_list())
    names = ["request_id", "partition", "offset"]
    with closing(PostgresHistoryManifest(system.postgres)) as manifest:
        found = list(History(files, manifest).scan(INFERENCE, **span, columns=names, where=wanted))
    columns = [pl.col(name).cast(RECORD_SCHEMA[own]).alias(own) for name, own in zip(names, RECORD_SCHEMA, strict=True)]
    rows = [frame.select(columns) for frame in found]
    return pl.concat([RECORD_SCHEMA.to_frame(), *rows])


def _options(system: System, *, from_ms: int, to_ms: int) -> StitchOptions:
    with closing(PostgresHistoryManifest(system.postgres)) as manifest:
        files = manifest.files(BEHAVIOR)
    if not files:
        raise VerifyImpossible("the history has no events yet", mend="send events, or `rtrec replay` a log")
    return StitchOptions(
        postgres=system.postgres,
        history_uri=system.history_uri,
        timeline=_timeline(system),
        partitions=1 + max(file.partition for file in files),
        from_ms=from_ms,
        to_ms=to_ms,
    )


def _timeline(system: System) -> Timeline:
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        return read_timeline(cursor) or Timeline.of(system.samples)


def _live(system: System, *, from_ms: int, to_ms: int) -> pl.DataFrame:
    columns = tuple(name for name in LIVE_SCHEMA if name in SAMPLE_SCHEMA)
    scan, ask = PostgresSampleScan(system.postgres), ScanAsk(from_ms=from_ms, to_ms=to_ms, columns=columns)
    with scan.open(ask) as plan:
        return pl.concat([SAMPLE_SCHEMA.to_frame().select(columns), *(scan.read(plan, part) for part in plan.parts)])
