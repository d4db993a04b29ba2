"""How fast events become tiles, on one core, without Kafka and JSON: compute alone, and into an embedded PostgreSQL.

A mix as in workload W1 (45 % impressions, 35 % views, 10 % searches, 5 % clicks, 5 % other actions; 50,000 users,
20,000 items, 100 categories, 1,000 words; 1.8 ms of event time an event, 2 s of disorder), in frames of 50,000 events,
each its own commit. The top lists are not emitted but merged on read. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.events import BEHAVIOR_SCHEMA, PROFILE_SCHEMA
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.seen import Seen
from rtrec_ray.features.stream import FeatureStream
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import TaskOutput

START_MS = 1_767_225_600_000
MS_PER_EVENT = 1.8
FRAME = 50_000
W1 = ("user_browse_5m", "category_top_items_10m", "top_queries_30m")
KINDS = ("impression", "view", "search", "click", "favorite", "cart", "consult", "comment")
SHARES = (0.45, 0.35, 0.10, 0.05, 0.02, 0.0175, 0.005, 0.0075)


def zipf(random: np.random.Generator, values: int, n: int) -> np.ndarray:
    """(n,) ids of 0 … values - 1, the first ones far more often."""
    share = np.cumsum(1.0 / np.arange(1, values + 1))
    return np.searchsorted(share / share[-1], random.random(n)).clip(0, values - 1)


def frames(n: int) -> Iterator[pl.DataFrame]:
    """The events in the order of arrival, BEHAVIOR_SCHEMA."""
    random = np.random.default_rng(7)
    for start in range(0, n, FRAME):
        rows = min(FRAME, n - start)
        kind = random.choice(len(KINDS), rows, p=SHARES)
        item = zipf(random, 20_000, rows)
        ts = START_MS + (np.arange(start, start + rows) * MS_PER_EVENT).astype(np.int64)
        frame = pl.DataFrame(
            {
                "event_id": [f"e7-{number}" for number in range(start, start + rows)],
                "event_type": np.array(KINDS)[kind],
                "ts": ts - random.integers(0, 2_000, rows),
                "user_id": random.integers(0, 50_000, rows),
                "item_id": item,
                "item_type": np.array(["product", "article", "video", "ad"])[item % 4],
                "category_id": item % 100,
                "page_id": random.integers(1, 21, rows),
                "dwell_ms": random.lognormal(9, 1, rows).astype(np.int64),
                "query": np.char.add("word", zipf(random, 1_000, rows).astype(str)),
            }
        )
        yield frame.match_to_schema(BEHAVIOR_SCHEMA, missing_columns="insert")


def run(definitions: Definitions, events: list[pl.DataFrame], store: PostgresFeatureStore | None, pool: Pool | None):
    """Seconds by step, wall and this process's CPU, and the number of tile rows."""
    stream = FeatureStream(definitions, disorder_ms=5_000, seen=Seen(), profiles=PROFILE_SCHEMA.to_frame())
    seconds: Counter[str] = Counter()
    rows, cpu = 0, time.process_time()
    for frame in events:
        times = [time.perf_counter()]
        stream.take(frame)
        times.append(time.perf_counter())
        stream.forget()
        output = TaskOutput(partition=0, watermark_ms=stream.watermark_ms, tiles=stream.tiles(), seen=stream.seen.new())
        times.append(time.perf_counter())
        if store is not None and pool is not None:
            with pool.transaction() as cursor:
                store.append(cursor, output)
        stream.settle()
        times.append(time.perf_counter())
        rows += sum(each.height for each in output.tiles.values())
        seconds.update(dict(zip(("take", "tiles", "write"), np.diff(times).tolist(), strict=True)))
    return dict(seconds), time.process_time() - cpu, rows


def read_times_ms(store: PostgresFeatureStore, *, now_ms: int) -> dict[str, float]:
    """Median ms of a read in process: a user, and the lists merged from tiles."""
    asks = {
        "user": ViewKey(view="user_browse_5m", key="7"),
        "category": ViewKey(view="category_top_items_10m", key="7"),
        "queries": ViewKey(view="top_queries_30m", key="all"),
    }
    return {name: round(_median_ms(store, ask, now_ms=now_ms), 2) for name, ask in asks.items()}


def _median_ms(store: PostgresFeatureStore, ask: ViewKey, *, now_ms: int) -> float:
    times = []
    for _ in range(15):
        start = time.perf_counter()
        store.get([ask], as_of_ms=None, now_ms=now_ms)
        times.append(1_000 * (time.perf_counter() - start))
    return float(np.median(times))


@contextmanager
def postgres() -> Iterator[Pool]:
    """Connections to a new, durable server with the tables."""
    with tempfile.TemporaryDirectory(prefix="rtrec-bench-") as directory:
        server = PostgresServer(PostgresServerOptions(directory=Path(directory) / "pg"))
        server.start()
        options = PostgresOptions(dsn=server.dsn())
        migrate(options)
        pool = Pool(options)
        yield pool
        pool.close()
        server.stop()


def summary(result: tuple[dict[str, float], float, int], *, events: int) -> dict[str, float]:
    """What `run` answered, for the JSON line."""
    seconds, cpu_s, rows = result
    steps = {f"{name}_s": round(each, 2) for name, each in seconds.items()}
    return {"events_per_s": round(events / sum(seconds.values())), "cpu_s": round(cpu_s, 2), "rows": rows, **steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--views", choices=("w1", "all"), default="w1")
    arguments = parser.parse_args()
    definitions = load_definitions(Path(__file__).parents[1] / "configs" / "features.yaml")
    if arguments.views == "w1":
        definitions = replace(definitions, views=tuple(view for view in definitions.views if view.name in W1))
    n, events = arguments.events, list(frames(arguments.events))
    answer: dict[str, object] = {"events": n, "views": arguments.views}
    answer["no_sink"] = summary(run(definitions, events, None, None), events=n)
    with postgres() as pool:
        store = PostgresFeatureStore(definitions, pool=pool)
        with pool.transaction() as cursor:
            store.apply(cursor)
        answer["postgres"] = summary(run(definitions, events, store, pool), events=n)
        now_ms = int(events[-1]["ts"].max())  # type: ignore[arg-type]
        answer["read_ms"] = read_times_ms(store, now_ms=now_ms)
        start = time.perf_counter()
        answer["lists"] = TopLists(store).rebuild(now_ms=now_ms)
        answer["first_lists_s"] = round(time.perf_counter() - start, 2)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
