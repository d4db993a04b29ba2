"""How long after an event is sent its feature can be read, while others come at a rate.

    python benchmarks/bench_freshness.py [--rate 10000] [--seconds 30] [--hot-user 0.3] [--hot-item 0.3] [--by store]

Kafka, PostgreSQL and Ray are of its own, two actors compute all views of `configs/features.yaml`. Ten times a second a
new user views an item: from the call that sends the event until `user_browse_5m` of that user has it, read every 5 ms,
is one measurement. It is read as serving does, from windows in memory that are looked after meanwhile (`rows` of them),
or by round trips (`--by store`). `--hot-user`, `--hot-item`: that share of all other events is of one user, of one
item; then the measurements are of everybody else. `list_age_ms` is how old the top lists were, looked at with each
measurement. Prints one JSON line, ms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
from contextlib import closing, nullcontext
from typing import Any

import msgspec
import numpy as np
from live_stage import Hot, load, running_system
from stages import looked_after

from configs.settings import Pipeline
from rtrec_ray.app.cluster import end_actors, stop_actors
from rtrec_ray.app.pipeline import shares, start_pipeline
from rtrec_ray.app.system import System
from rtrec_ray.clock import monotonic_s, wall_ms
from rtrec_ray.events import BEHAVIOR, BehaviorEvent
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.garbage import collect_rarely
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import FeatureReader

USERS = itertools.count(1_000_000_000, 1_000_000)  # nobody else's
EACH_S = 0.1
LOOK_S = 0.005
SETTLE_S = 10.0
PATIENCE_S = 60.0


LIST_AGE = "SELECT max(extract(epoch FROM clock_timestamp() - rebuilt_at) * 1000)::float FROM features.top_list_rounds"


def latencies_ms(system: System, store: FeatureReader, *, seconds: float) -> tuple[list[float], list[float]]:
    """Of each event sent, ms until it was read (infinite if not within the patience), and ages of the lists."""
    sent: dict[ViewKey, float] = {}
    found: list[float] = []
    ages: list[float] = []
    until_s, next_s, user = monotonic_s() + seconds, monotonic_s(), next(USERS)
    with closing(Pool(system.postgres, size=1)) as pool, closing(connect_producer(system.kafka)) as producer:
        while sent or monotonic_s() < until_s:
            if monotonic_s() > until_s + PATIENCE_S:
                return found + [float("inf")] * len(sent), ages
            if next_s <= monotonic_s() < until_s:
                next_s += EACH_S
                user += 1
                sent[ViewKey(view="user_browse_5m", key=str(user))] = monotonic_s()
                event = BehaviorEvent(
                    event_id=f"probe-{user}", event_type="view", ts=wall_ms(), user_id=user, item_id=1
                )
                producer.send(BEHAVIOR, key=str(user).encode(), value=msgspec.json.encode(event))
                with pool.transaction() as cursor:
                    cursor.execute(LIST_AGE)
                    ages += [age for (age,) in cursor.fetchall() if age is not None]
            values = store.get(list(sent), as_of_ms=None, now_ms=wall_ms()) if sent else {}
            now_s = monotonic_s()
            found += [1_000 * (now_s - sent.pop(ask)) for ask, value in values.items() if value is not None]
            threading.Event().wait(LOOK_S)
    return found, ages


def measure(system: System, *, by: str, seconds: float) -> dict[str, Any]:
    """Figures of the values and of the lists."""
    collect_rarely()  # as a serving replica does
    with closing(Pool(system.postgres)) as pool:
        store, options = PostgresFeatureStore(system.features, pool=pool), system.settings.serving
        near = NearFeatures(store, clock=system.clock, most_rows=options.near_rows)
        looked = looked_after(near, every_s=options.near_refresh_s)
        with looked if by == "memory" else nullcontext(store) as reader:
            latencies_ms(system, reader, seconds=SETTLE_S)
            found, ages = latencies_ms(system, reader, seconds=seconds)
    p50, p99 = np.percentile(found, [50, 99])
    return {
        "events": len(found),
        "p50": round(p50),
        "p99": round(p99),
        "max": round(max(found)),
        "rows": near.rows,
        "list_age_ms": {"p50": round(np.median(ages)), "max": round(max(ages))},
    }


def main() -> None:
    """Start everything, measure, stop everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--hot-user", type=float, default=0.0)
    parser.add_argument("--hot-item", type=float, default=0.0)
    parser.add_argument("--by", choices=("memory", "store"), default="memory")
    arguments = parser.parse_args()
    hot = Hot(user=arguments.hot_user, item=arguments.hot_item)
    with running_system(Pipeline(feature_actors=arguments.actors, sample_actors=0, history_actors=0)) as system:
        actors = start_pipeline(system)
        names = [share.name for share in shares(system)]
        try:
            with load(system, rate=arguments.rate, generator=None, hot=hot):
                answer = measure(system, by=arguments.by, seconds=arguments.seconds)
        finally:
            del actors
            stop_actors(names)
            end_actors(names)
    print(
        json.dumps({"rate": arguments.rate, "by": arguments.by, **answer, "hot": {"user": hot.user, "item": hot.item}})
    )


if __name__ == "__main__":
    main()
