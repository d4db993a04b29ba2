"""How fast samples are stitched, decoding aside: columns through the stitcher, without a store and into PostgreSQL.

    python benchmarks/bench_stitch_local.py [EVENTS] [--postgres] [--frame 50000]

One process, one partition. Of the events 45 % are impressions, ten a request; one in nine is clicked, after 20 s on
average, one click in fifty after 5 to 30 min; event time passes at 1.8 ms an event, up to 2 s of disorder; the wait is
10 min. Prints one JSON line. With --postgres an embedded server with fsync is started, and each frame is a commit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.events import BEHAVIOR_SCHEMA, INFERENCE_SCHEMA
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.keys import actions_of, impressions_of, keyed, requests_of
from rtrec_ray.samples.settlement import Answers
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.stores.samples.ledger import settle
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

START_MS, SLOTS, MINUTE_MS = 1_767_225_600_000, 10, 60_000
FEATURES = json.dumps({f"f{n}": 0.1234 * n for n in range(20)} | {"recent_items": [1, 2, 3, 4, 5]})


def build(events: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Behaviour and inference log, in order of arrival."""
    rng = np.random.default_rng(7)
    requests, span = round(events * 0.045), events * 9 // 5
    asked = np.sort(rng.integers(0, span, requests))
    shown = np.repeat(asked, SLOTS) + rng.integers(20, 100, requests * SLOTS)
    clicked = rng.permutation(requests * SLOTS)[: round(events * 0.05)]
    slow = rng.random(len(clicked)) < 0.02
    delay = np.where(
        slow, rng.integers(5 * MINUTE_MS, 30 * MINUTE_MS, len(clicked)), rng.exponential(20_000, len(clicked)) + 1
    ).astype(np.int64)
    others = events - len(shown) - len(clicked)
    request = np.concatenate([np.repeat(np.arange(requests), SLOTS), clicked // SLOTS, np.zeros(others, np.int64)])
    item = np.concatenate([np.arange(len(shown)) % SLOTS, clicked % SLOTS, rng.integers(0, SLOTS, others)])
    ts = np.concatenate([shown, shown[clicked] + delay, rng.integers(0, span, others)]) + START_MS
    kinds = ["impression"] * len(shown) + ["click"] * len(clicked) + ["view"] * others
    order = np.argsort(ts + rng.integers(0, 2_000, events), kind="stable")
    behavior = pl.DataFrame({"event_type": kinds, "ts": ts, "user_id": request % 50_000, "item_id": item})
    behavior = behavior.with_columns(
        request_id=pl.format("r7-{}", pl.Series(request)), event_id=pl.format("e{}", pl.int_range(events))
    )
    behavior = behavior[order].with_columns(offset=pl.int_range(events, dtype=pl.Int64))
    missing = [pl.lit(None, dtype).alias(n) for n, dtype in BEHAVIOR_SCHEMA.items() if n not in behavior.columns]
    log = pl.DataFrame({"user_id": np.arange(requests) % 50_000, "ts": asked + START_MS})
    log = log.with_columns(
        request_id=pl.format("r7-{}", pl.Series(np.arange(requests))),
        model_version=pl.lit("v1"),
        features=pl.lit(FEATURES),
        **{name: pl.lit(None, INFERENCE_SCHEMA[name]) for name in ("page_id", "arm", "items", "as_of")},
    )
    return behavior.with_columns(missing), log


def frames(behavior: pl.DataFrame, log: pl.DataFrame, size: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Behaviour in frames, each with the records of its time."""
    at = 0
    for frame in behavior.iter_slices(size):
        to = int(log["ts"].search_sorted(frame["ts"].max(), side="right"))
        yield frame, log[at:to]
        at = to


class Nothing:
    """Forgets what is settled: the stitcher's own speed. A click after the wait is then taken for an early one."""

    def commit(self, stitcher: Stitcher, _: int) -> Counter[str]:
        stitcher.admit()
        stitcher.ask()
        return stitcher.settle(Answers()).counts


class Postgres:
    """A commit a frame."""

    def __init__(self, dsn: str) -> None:
        migrate(PostgresOptions(dsn=dsn))
        self._connection = connect(PostgresOptions(dsn=dsn))
        self._ledger = PostgresSampleLedger(partition=0)

    def commit(self, stitcher: Stitcher, read_to: int) -> Counter[str]:
        with transaction(self._connection) as cursor:
            return settle(self._ledger, cursor, stitcher, read_to=read_to)


def stitch(
    sink: Nothing | Postgres, behavior: pl.DataFrame, log: pl.DataFrame, size: int
) -> tuple[float, Counter[str]]:
    """Seconds and counts of one pass."""
    stitcher, counts = Stitcher(SampleDefinition(wait_ms=10 * MINUTE_MS)), Counter[str]()
    started, mark = time.perf_counter(), 0
    for events, records in frames(behavior, log, size):
        events = events.filter(keyed())
        stitcher.on_impressions(impressions_of(events.filter(pl.col("event_type") == "impression")))
        stitcher.on_actions(actions_of(events))
        stitcher.on_requests(requests_of(records))
        read_to = int(events["offset"].max()) + 1
        stitcher.read_to(read_to)
        mark = max(mark, int(events["ts"].max()) - 5_000)
        stitcher.advance(watermark_ms=mark)
        counts.update(sink.commit(stitcher, read_to))
    stitcher.advance(watermark_ms=mark + 20 * MINUTE_MS)
    counts.update(sink.commit(stitcher, behavior.height))
    return time.perf_counter() - started, counts


def into_postgres(behavior: pl.DataFrame, log: pl.DataFrame, size: int) -> dict[str, object]:
    """The figures of a pass into a server of its own."""
    with tempfile.TemporaryDirectory(prefix="rtrec-bench-") as directory:
        server = PostgresServer(PostgresServerOptions(directory=Path(directory) / "postgres"))
        server.start()
        try:
            server.create_database("bench")
            seconds, counts = stitch(Postgres(server.dsn("bench")), behavior, log, size)
            store, started = PostgresSampleStore(PostgresOptions(dsn=server.dsn("bench"))), time.perf_counter()
            rows = sum(frame.height for frame in store.scan(to_seq=store.high_water()))
            scanned = round(rows / (time.perf_counter() - started))
            stats = store.stats()
        finally:
            server.stop()
    held = {"rows": stats.rows, "positives": stats.positives, "corrections": stats.corrections}
    return {"sink": "postgres", "seconds": seconds, "scanned_rows_per_s": scanned, **held, "counts": counts}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("events", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--frame", type=int, default=50_000)
    options = parser.parse_args()
    behavior, log = build(options.events)
    if options.postgres:
        result = into_postgres(behavior, log, options.frame)
    else:
        seconds, counts = stitch(Nothing(), behavior, log, options.frame)
        result = {"sink": "none", "seconds": seconds, "counts": counts}
    records_per_s = round((options.events + log.height) / float(str(result["seconds"])))
    print(json.dumps({"events": options.events, "frame": options.frame, "records_per_s": records_per_s, **result}))


if __name__ == "__main__":
    main()
