"""What late clicks cost among many stored samples.

    python benchmarks/bench_corrections.py [--samples 10000000] [--clicks 1000]

A PostgreSQL of its own, durable, is filled by one statement: ten samples a request, all of them negative, over a day.
Then the sample stage's own operator takes so many clicks on samples drawn at random, half an hour late, in one commit;
that is repeated with other samples. Prints one JSON line: seconds of each commit, and how many rows of which table all
of them touched together, by PostgreSQL's own count.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from statistics import median

import numpy as np
import orjson
from stages import database

from actors.sample import SampleOperator
from rtrec_ray.clock import monotonic_s
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.postgres.connection import Connection, connect, transaction
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.stores.samples.live import enter_definition, enter_partitions
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

DAY_MS = 86_400_000
START_MS = 20_454 * DAY_MS  # 2026-01-01
ITEMS = 10
ROUNDS = 5
LATE_MS = 1_800_000
FILL = (
    "SELECT samples.ensure_days(ARRAY[DATE '2026-01-01'])",
    """INSERT INTO samples.requests (event_day, request_id, user_id, event_time_ms, page_id, model_version, features)
       SELECT DATE '2026-01-01', 'r' || n, n %% 50000, %(start_ms)s + n * %(step_ms)s, n %% 20, '1', '{"city": "Oslo"}'
       FROM generate_series(0, %(requests)s - 1) n""",
    """INSERT INTO samples.revisions (event_day, request_id, item_id, user_id, event_time_ms, page_id, position, label,
                                      labels, commit_seq, source_partition, source_offset)
       SELECT DATE '2026-01-01', 'r' || n, item, n %% 50000, %(start_ms)s + n * %(step_ms)s, n %% 20, item, 0,
              '{"click": 0}', n * 10 + item + 1, 0, n * 10 + item
       FROM generate_series(0, %(requests)s - 1) n, generate_series(0, 9) item""",
    "INSERT INTO meta.counters (name, value) VALUES ('samples', %(requests)s * 10)",
)
TOUCHED = """SELECT regexp_replace(relname, '_[0-9]{8}$', ''), n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables
WHERE schemaname IN ('samples', 'meta')"""


Touched = dict[str, tuple[int, ...]]


def touched(connection: Connection) -> Touched:
    """Table → rows inserted, updated, deleted so far; those of a partitioned table under its name."""
    found: Touched = {}
    connection.autocommit = True  # a session tells what it did when a statement that asked for it is over
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(TOUCHED)
        for name, *counts in cursor.fetchall():
            found[name] = tuple(a + b for a, b in zip(counts, found.get(name, (0, 0, 0)), strict=True))
    connection.autocommit = False
    return found


def clicks(samples: np.ndarray, step_ms: int) -> list[bytes]:
    """A late click on each of these samples, (n,) numbers."""
    return [
        orjson.dumps(
            {
                "event_id": f"c{number}",
                "event_type": "click",
                "ts": START_MS + number // ITEMS * step_ms + LATE_MS,
                "user_id": number // ITEMS % 50_000,
                "request_id": f"r{number // ITEMS}",
                "item_id": number % ITEMS,
            }
        )
        for number in samples.tolist()
    ]


def fill(connection: Connection, *, requests: int, step_ms: int) -> None:
    """Ten samples of each request, and what a stage that wrote them would have left."""
    with transaction(connection) as cursor:
        enter_definition(cursor, SampleDefinition())
        enter_partitions(cursor, 1)
        for statement in FILL:
            cursor.execute(statement, {"start_ms": START_MS, "step_ms": step_ms, "requests": requests})
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    connection.autocommit = False


def correct(connection: Connection, rounds: list[list[bytes]]) -> list[float]:
    """Seconds of each round: a batch of clicks decoded, joined, looked up and committed."""
    ledger = PostgresSampleLedger(partition=0)
    operator = SampleOperator(SampleDefinition(), ledger=ledger, latest_ms=lambda wall: 1 << 62)
    seconds, offset = [], 0
    with transaction(connection) as cursor:
        operator.restore(cursor, committed={BEHAVIOR: 0})
    for values in rounds:
        batch = record_batch(BEHAVIOR, 0, values, first_offset=offset, timestamp_ms=START_MS)
        offset += len(values)
        began_s = monotonic_s()
        operator.apply(batch)
        operator.advance(watermark_ms=START_MS + DAY_MS)
        with transaction(connection) as cursor:
            counts = operator.write(cursor)
        operator.committed()
        seconds.append(round(monotonic_s() - began_s, 3))
        assert counts["corrected"] == len(values), counts
    return seconds


def changes(before: Touched, after: Touched) -> dict[str, dict[str, int]]:
    """Table → rows inserted, updated and deleted meanwhile."""
    apart = {name: np.subtract(now, before[name]).tolist() for name, now in after.items() if now != before[name]}
    return {name: dict(zip(("inserted", "updated", "deleted"), counts, strict=True)) for name, counts in apart.items()}


def main() -> None:
    """Fill, correct, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--clicks", type=int, default=1_000)
    options = parser.parse_args()
    requests = options.samples // ITEMS
    step_ms = (DAY_MS - 1) // requests
    drawn = np.random.default_rng(3).choice(requests * ITEMS, (ROUNDS, options.clicks), replace=False)
    with database(None) as (postgres, _), closing(connect(postgres)) as connection:
        fill(connection, requests=requests, step_ms=step_ms)
        before = touched(connection)
        seconds = correct(connection, [clicks(numbers, step_ms) for numbers in drawn])
        rows = changes(before, touched(connection))
        with transaction(connection) as cursor:
            cursor.execute("SELECT count(*) FROM samples.current WHERE label = 1")
            (positives,) = cursor.fetchone() or (0,)
    head = {"samples": requests * ITEMS, "clicks": options.clicks, "seconds": seconds, "median_s": median(seconds)}
    print(json.dumps({**head, "positives": positives, "rows": rows}))


if __name__ == "__main__":
    main()
