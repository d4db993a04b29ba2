"""How fast behaviour records become columns, on one core. Prints one JSON line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import polars as pl

from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.base import RecordBatch, record_batch
from rtrec_ray.kafka.codec import decode, encode

ROWS = 100_000
ROUNDS = 7
START_MS = 1_767_225_600_000


def events(*, rows: int) -> pl.DataFrame:
    """A mix as in real traffic: impressions, views, clicks, searches; about 200 bytes a record."""
    random = np.random.default_rng(7)
    kinds = np.array(["impression", "view", "click", "search"])[random.choice(4, rows, p=[0.5, 0.35, 0.05, 0.1])]
    frame = pl.DataFrame(
        {
            "event_id": [f"e7-{number}" for number in range(rows)],
            "event_type": kinds,
            "ts": START_MS + np.arange(rows),
            "user_id": random.integers(0, 50_000, rows),
            "item_id": random.integers(0, 20_000, rows),
            "item_type": np.array(["product", "video"])[random.integers(0, 2, rows)],
            "category_id": random.integers(0, 100, rows),
            "page_id": random.integers(1, 21, rows),
            "request_id": [f"r7-{number // 10}" for number in range(rows)],
            "dwell_ms": random.integers(0, 600_000, rows),
            "query": [f"word{number % 1000}" for number in range(rows)],
        }
    )
    kind = pl.col("event_type")
    return frame.with_columns(
        request_id=pl.when(kind.is_in(["impression", "click"])).then("request_id"),
        dwell_ms=pl.when(kind == "view").then("dwell_ms"),
        query=pl.when(kind == "search").then("query"),
    )


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def rate(batch: RecordBatch) -> int:
    """Records a second through `decode`."""
    return round(len(batch) / best(lambda: decode(batch, latest_ms=lambda wall: wall + 60_000)))


def main() -> None:
    """Measure a clean batch, and one with a bad record in it."""
    frame = events(rows=ROWS)
    values = encode(BEHAVIOR, frame)[1]
    clean = record_batch(BEHAVIOR, 0, values, timestamp_ms=START_MS + ROWS)
    spoilt = record_batch(BEHAVIOR, 0, [*values[:-1], b"{"], timestamp_ms=START_MS + ROWS)
    figures = {
        "records": ROWS,
        "bytes_per_record": round(sum(map(len, values)) / ROWS),
        "decode_per_s": rate(clean),
        "decode_with_one_bad_per_s": rate(spoilt),
        "encode_per_s": round(ROWS / best(lambda: encode(BEHAVIOR, frame))),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
