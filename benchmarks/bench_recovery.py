"""How soon features are fresh again after an actor of theirs is killed with SIGKILL, while events keep coming.

    python benchmarks/bench_recovery.py [--rate 20000] [--kills 3] [--no-steady] [--generator FILE]

Kafka, PostgreSQL and Ray are of its own. As in steady state the tables know which events of the horizon (40 min) came
at that rate, a row a commit, for the next owner to load: `load_s` is how long that takes one actor that has nothing
else to do. With `--no-steady` there are none to begin with. The age of the output is how long ago the log's ends were
where the committed positions of the killed actor's partitions are now. Of each kill, in seconds: `fresh`, until events
written after it are in the tables, in every partition; `caught_up`, until the age is what it was before (at least 1 s).
FILE is another program that writes events: `FILE N --rate R --bootstrap HOST:PORT --suffix S --start-ms T --keep`.
Prints one JSON line; the goal is to be fresh within 10 s.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from live_stage import load, running_system
from ray.exceptions import GetTimeoutError, RayError

from configs.settings import Pipeline
from rtrec_ray.app.cluster import end_actors, stop_actors
from rtrec_ray.app.pipeline import Share, shares, start_pipeline
from rtrec_ray.app.system import System
from rtrec_ray.clock import monotonic_s
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.seen import MINUTE_MS, Seen
from rtrec_ray.kafka.base import Consumer, TopicPartition
from rtrec_ray.kafka.connect import connect_consumer
from rtrec_ray.postgres.connection import Connection, Pool, connect, transaction
from rtrec_ray.stores.features.postgres import PostgresFeatureStore

GOAL_S = 10.0
PATIENCE_S = 120.0
POSITIONS = "SELECT partition, next_offset FROM meta.positions WHERE task = 'features' AND topic = 'behavior'"
COPY_SEEN = "COPY features.seen (partition, minute_ms, hashes) FROM STDIN"


@dataclass(kw_only=True)
class Watch:
    """Looks at the log's ends and the committed positions of some partitions."""

    consumer: Consumer
    connection: Connection
    partitions: tuple[int, ...]
    ends: list[tuple[float, dict[int, int]]] = field(default_factory=list)

    def age_s(self) -> float:
        """How long ago the log ended where the positions are now; endless before that was ever seen."""
        parts = [TopicPartition(topic=BEHAVIOR, partition=partition) for partition in self.partitions]
        now_s = monotonic_s()
        self.ends.append((now_s, {place.partition: end for place, end in self.consumer.end_offsets(parts).items()}))
        with transaction(self.connection) as cursor:
            cursor.execute(POSITIONS)
            done = dict(cursor.fetchall())
        begun = [(at_s, ends) for at_s, ends in self.ends if all(ends.values())]  # else nothing was written yet
        reached = [at_s for at_s, ends in begun if all(done.get(p, 0) >= end for p, end in ends.items())]
        return now_s - reached[-1] if reached else float("inf")

    def ages_s(self, seconds: float) -> list[float]:
        """The ages over so many seconds."""
        until_s, ages = monotonic_s() + seconds, []
        while monotonic_s() < until_s:
            ages.append(self.age_s())
            threading.Event().wait(0.05)
        return ages

    def until(self, age_s: float, *, since_s: float) -> float:
        """Seconds from `since_s` until the output has what was written after it, and is no older than `age_s`."""
        while monotonic_s() - since_s < PATIENCE_S:
            age = self.age_s()
            if age <= age_s and monotonic_s() - age >= since_s:
                return monotonic_s() - since_s
            threading.Event().wait(0.05)
        raise TimeoutError(f"not within {PATIENCE_S:g} s")


def pid_of(actor: Any) -> int:
    """The process of an actor, as soon as it answers."""
    while True:
        try:
            return int(ray.get(actor.health.remote(), timeout=PATIENCE_S).pid)
        except (RayError, GetTimeoutError):
            threading.Event().wait(0.1)


def measure(system: System, share: Share, actor: Any) -> dict[str, float]:
    """Kill the share's actor once its output is fresh; answers seconds."""
    with closing(connect_consumer(system.kafka)) as consumer, closing(connect(system.postgres)) as connection:
        watch = Watch(consumer=consumer, connection=connection, partitions=share.owned)
        watch.until(2.0, since_s=monotonic_s())
        usual_s = float(np.median(watch.ages_s(5.0)))
        (begun_s, first), (ended_s, last) = watch.ends[0], watch.ends[-1]
        written = sum(last.values()) - sum(first.values())
        victim, killed_s = pid_of(actor), monotonic_s()
        os.kill(victim, signal.SIGKILL)
        fresh_s = watch.until(float("inf"), since_s=killed_s)
        caught_up_s = watch.until(max(1.0, usual_s), since_s=killed_s)
    return {
        "events_per_s": round(written / (ended_s - begun_s)),  # in the partitions of the victim
        "age_before_s": round(usual_s, 2),
        "fresh_s": round(fresh_s, 2),
        "caught_up_s": round(caught_up_s, 2),
    }


def fill_seen(system: System, *, rate: int) -> None:
    """What the events of the horizon left, had they come at that rate until now."""
    random, now_ms = np.random.default_rng(7), system.clock.now_ms() // MINUTE_MS * MINUTE_MS
    commits = round(MINUTE_MS / 1_000 / system.settings.pipeline.feature_commit_s)
    shape = (commits, rate * MINUTE_MS // 1_000 // system.partitions // commits)
    with closing(connect(system.postgres)) as connection:
        for minute_ms in range(now_ms - system.features.horizon_ms, now_ms + 1, MINUTE_MS):
            rows = io.StringIO()
            for partition in range(system.partitions):
                hashes = random.integers(0, 2**63, shape, dtype=np.uint64) << np.uint64(1)
                rows.writelines(f"{partition}\t{minute_ms}\t\\\\x{row.tobytes().hex()}\n" for row in hashes)
            rows.seek(0)
            with transaction(connection) as cursor:
                cursor.copy_expert(COPY_SEEN, rows)
        with transaction(connection) as cursor:
            cursor.execute("ANALYZE features.seen")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CHECKPOINT")  # of long ago in steady state


def load_seen_s(system: System, share: Share) -> float:
    """How long it takes to load which events came, of the partitions of a share."""
    begun_s = monotonic_s()
    with closing(Pool(system.postgres, size=1)) as pool:
        store = PostgresFeatureStore(system.features, pool=pool)
        for partition in share.owned:
            with pool.transaction() as cursor:
                Seen().load(store.load(cursor, partition=partition).seen)
    return monotonic_s() - begun_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--steady", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--generator", type=Path)
    arguments = parser.parse_args()
    with running_system(Pipeline(feature_actors=arguments.actors, sample_actors=0, history_actors=0)) as system:
        if arguments.steady:
            fill_seen(system, rate=arguments.rate)
        load_s = round(load_seen_s(system, shares(system)[0]), 2)
        actors = dict(zip(shares(system), start_pipeline(system), strict=True))
        names = [share.name for share in actors]
        try:
            with load(system, rate=arguments.rate, generator=arguments.generator):
                victims = [list(actors.items())[number % len(actors)] for number in range(arguments.kills)]
                kills = [measure(system, share, actor) for share, actor in victims]
        finally:
            stop_actors(names)
            end_actors(names)
    worst = max(kill["fresh_s"] for kill in kills)
    answer = {"rate": arguments.rate, "steady": arguments.steady, "load_s": load_s, "kills": kills}
    print(json.dumps({**answer, "worst_fresh_s": worst, "met": worst <= GOAL_S}))


if __name__ == "__main__":
    main()
