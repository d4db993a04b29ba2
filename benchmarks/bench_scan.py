"""How fast samples are read out of PostgreSQL: rows/s by 1, 2 and 4 readers, with features and without.

    python -m benchmarks.bench_scan [--rows 600000] [--readers 1 2 4]

An embedded server with fsync, on the same machine; samples of ten to a request, with 26 features of the request and two
of the item; 1 in 100 corrected. Readers are processes. `current`: the same rows through `SampleStore.current`, one
reader. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import polars as pl

from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.samples.columns import REQUEST_SCHEMA, REVISION_SCHEMA
from rtrec_ray.samples.settlement import Settled
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.scan import ALL, ScanAsk, ScanPart, ScanPlan
from rtrec_ray.stores.samples.scan_postgres import PostgresSampleScan
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

START_MS, COMMIT = 1_767_225_600_000, 50_000
FEATURES = json.dumps({f"feature_{n}": 0.1234 * n for n in range(24)} | {"last": [1, 2, 3, 4, 5], "city": "x"})
OWN = '{"item_clicks_10m": 17, "item_type": "product"}'
NARROW = ("item_id", "event_time_ms", "label")


def fill(dsn: PostgresOptions, rows: int) -> None:
    """As the pipeline does: commits of 50,000 samples; the corrections of each after it."""
    ledger = PostgresSampleLedger(partition=0)
    with closing(connect(dsn)) as connection:
        for first in range(0, rows, COMMIT):
            numbers = pl.int_range(first, min(first + COMMIT, rows), eager=True)
            whole = pl.DataFrame({"n": numbers}).with_columns(
                event_day=pl.lit("2026-01-01").str.to_date(),
                request_id=pl.format("r7-{}", numbers // 10),
                item_id=numbers % 10,
                user_id=numbers % 50_000,
                event_time_ms=START_MS + numbers * 2,
                page_id=numbers % 20,
                position=numbers % 10,
                label=(numbers % 9 == 0).cast(pl.Int64),
                labels=pl.lit('{"click": 0}'),
                item_features=pl.lit(OWN),
                features=pl.lit(FEATURES),
                model_version=pl.lit("12"),
                source_offset=numbers,
            )
            samples, asked = _shaped(whole, REVISION_SCHEMA), whole.unique("request_id")
            with transaction(connection) as cursor:
                ledger.write(cursor, Settled(requests=_shaped(asked, REQUEST_SCHEMA), samples=samples))
            late = samples.filter(pl.int_range(pl.len()) % 100 == 1).with_columns(revision=pl.lit(0))
            with transaction(connection) as cursor:
                ledger.correct(cursor, late)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")


def _shaped(rows: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    missing = [pl.lit(None).alias(name) for name in schema if name not in rows.columns]
    return rows.with_columns(missing).select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _read(scan: PostgresSampleScan, plan: ScanPlan, part: ScanPart) -> int:
    return scan.read(plan, part).height


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--readers", type=int, nargs="*", default=[1, 2, 4])
    chosen = parser.parse_args()
    found: dict[str, object] = {"rows": chosen.rows}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        server = PostgresServer(PostgresServerOptions(directory=Path(directory) / "pg"))
        server.start()
        try:
            options = PostgresOptions(dsn=server.dsn())
            migrate(options)
            fill(options, chosen.rows)
            found["current"] = _by_current(options)
            found["scan"] = {readers: _by_scan(options, readers) for readers in chosen.readers}
        finally:
            server.stop()
    print(json.dumps(found))


def _by_current(options: PostgresOptions) -> dict[str, int]:
    store, rates = PostgresSampleStore(options), {}
    for name, columns in (("all", ALL), ("narrow", NARROW)):
        began = time.perf_counter()
        rows = sum(frame.height for frame in store.current(columns=columns))
        rates[name] = round(rows / (time.perf_counter() - began))
    return rates


def _by_scan(options: PostgresOptions, readers: int) -> dict[str, int]:
    scan, rates = PostgresSampleScan(options), {}
    with ProcessPoolExecutor(readers, mp_context=get_context("forkserver")) as pool:
        list(pool.map(abs, range(readers)))  # started before the clock runs
        for name, columns in (("all", ALL), ("narrow", NARROW)):
            ask = ScanAsk(from_ms=START_MS, to_ms=START_MS + 86_400_000, columns=columns)
            began = time.perf_counter()
            with scan.open(ask) as plan:
                rows = sum(pool.map(_read, *zip(*((scan, plan, part) for part in plan.parts), strict=True)))
            rates[name] = round(rows / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    main()
