"""How fast the sample stage drains its topics: workload W2 from Kafka to samples, through the stage's own loop.

    python benchmarks/bench_samples.py --bootstrap HOST:PORT --topic behavior --inference-topic inference-log \
        --actors 2 --sink postgres --expect truth.json

The topics were filled by the load generator: 45 % impressions, ten a request, 5 % clicks, one click in fifty 5 to 30
min after its impression; the wait is 10 min. `--sink none`: what the actors stitch is dropped, late clicks
with it; positions are committed all the same. `--sink postgres`: each second requests, samples and actions are
written, late clicks corrected, to `--dsn` or to a durable server of its own.

Time runs from the first record taken to the commit of the last negative: starting actors is left out. Prints one JSON
line: `cpu_s` and `peak_rss_mb` are those of the actors together. `--expect FILE` compares rows and positives with the
generator's `--truth` and fails when they differ: with a store every click counts, without one those within the wait.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import polars as pl
import ray
from growth import Mark, grown, mark, plot
from stages import database, ends_of, server_cpu, used

from actors.sample import SampleOperator
from actors.stage import collect_rarely
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.app.pipeline import SAMPLES_AHEAD_MS
from rtrec_ray.clock import ManualClock, wall_ms
from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_consumer
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.settlement import Answers, Existing, Place, Questions, Settled
from rtrec_ray.samples.timeline import Timeline
from rtrec_ray.stores.samples.live import enter_definition, enter_partitions
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

TASK: Final = "samples"
WAIT_MS: Final = 600_000
PANELS: Final = (
    ("cpu_us", "CPU time per record in the actors, µs", "blue"),
    ("rss_mb", "their memory, MB", "green"),
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run. `ends`: topic → partition → offset at which it ends. `open_rows`: as TaskOptions.max_open_rows."""

    definition: SampleDefinition
    sink: str
    kafka: KafkaOptions
    postgres: PostgresOptions
    ends: Mapping[str, Mapping[int, int]]
    commit_every_s: float
    poll: int
    profile: str | None
    open_rows: int = 4_000_000


class Dropped(PostgresSampleLedger):
    """A ledger that keeps nothing."""

    def timeline(self, cursor: Cursor) -> Timeline | None:
        return None

    def answer(self, cursor: Cursor, questions: Questions) -> Answers:
        return Answers()

    def write(self, cursor: Cursor, settled: Settled) -> Existing:
        return Existing()

    def correct(self, cursor: Cursor, corrections: pl.DataFrame) -> None:
        pass

    def remember(self, cursor: Cursor, place: Place, *, read_to: int) -> None:
        pass

    def complete(self, cursor: Cursor, *, first_ms: int | None, complete_ms: int | None) -> list[int]:
        return []


@ray.remote(num_cpus=0)
class Share:
    """One actor: the stage's loop over some partitions, until all that came has its outcome."""

    def __init__(self, bench: Bench, partitions: Sequence[int]) -> None:
        self._bench = bench
        self._partitions = tuple(partitions)
        self._counts: Counter[str] = Counter()
        self._marks: list[Mark] = []
        self._done = threading.Event()

    def marks(self) -> list[Mark]:
        """What it had done after each commit."""
        return self._marks

    def drain(self) -> dict[str, float]:
        """Work to the end; when it began and ended (s of the machine), and what it did."""
        bench, share = self._bench, self
        operators: dict[int, Any] = {}
        events = PostgresNotificationStore(bench.postgres)

        class Counting(SampleOperator):
            began_s = float("inf")
            through = False

            def __init__(self, partition: int) -> None:
                make = Dropped if bench.sink == "none" else PostgresSampleLedger
                ledger = make(partition=partition)
                super().__init__(bench.definition, ledger=ledger, latest_ms=lambda wall: 1 << 62, send=events.send_in)
                self.ends = {topic: ends[partition] for topic, ends in bench.ends.items()}
                self.at = dict.fromkeys(self.ends, 0)
                self.newest_ms = 0

            def apply(self, batch):
                Counting.began_s = min(Counting.began_s, wall_ms() / 1_000)
                outcome = super().apply(batch)
                self.at[batch.topic] = batch.next_offset
                self.newest_ms = max(self.newest_ms, outcome.max_ts_ms or 0)
                return outcome

            def advance(self, *, watermark_ms):
                self.last = all(self.at[topic] >= end for topic, end in self.ends.items())
                # Nothing more comes: the last impressions do not wait for an hour that never ends.
                return super().advance(watermark_ms=self.newest_ms + WAIT_MS + 1 if self.last else watermark_ms)

            def write(self, cursor):
                counts = super().write(cursor)
                share._counts.update({**counts, "parts_written": 1})
                self.writing_last = getattr(self, "last", False)
                return counts

            def committed(self):
                super().committed()
                share._marks.append(mark(sum(sum(each.at.values()) for each in operators.values())))
                self.through = self.writing_last
                if all(each.through for each in operators.values()):
                    share._done.set()

        loop = TaskLoop(
            TaskOptions(
                task=TASK,
                partitions=self._partitions,
                owner=f"bench-{os.getpid()}",
                commit_every_s=bench.commit_every_s,
                max_poll_records=bench.poll,
                max_open_rows=bench.open_rows,
                max_ahead_ms=SAMPLES_AHEAD_MS,
                watermark=WatermarkOptions(),
            ),
            make_operator=lambda partition: operators.setdefault(partition, Counting(partition)),
            connect_consumer=partial(connect_consumer, bench.kafka),
            connect_store=partial(connect, bench.postgres, application="bench", pipeline=True),
            clock=ManualClock(now_ms=0),
        )
        collect_rarely()
        cpu = time.process_time()
        if bench.profile is None:
            loop.run(self._done)
        else:
            profiler = cProfile.Profile()
            profiler.runcall(loop.run, self._done)
            profiler.dump_stats(f"{bench.profile}.{os.getpid()}")
        ended = wall_ms() / 1_000
        events.close()
        return {"began": Counting.began_s, "ended": ended, **used(cpu), **self._counts}


def run(bench: Bench, *, actors: int, server: PostgresServer | None) -> dict[str, Any]:
    """Drain the topics once."""
    partitions = sorted(bench.ends[BEHAVIOR])
    shares = [Share.remote(bench, partitions[index::actors]) for index in range(actors)]
    cpu_before = server_cpu(server)
    drained = ray.get([share.drain.remote() for share in shares])
    growth = ray.get([share.marks.remote() for share in shares])
    for share in shares:
        ray.kill(share)
    counts = sum((Counter({k: int(v) for k, v in each.items()}) for each in drained), Counter())
    seconds = max(each["ended"] for each in drained) - min(each["began"] for each in drained)
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(sum(each["cpu_s"] for each in drained), 1),
        "postgres_cpu_s": None if cpu_before is None else round((server_cpu(server) or 0.0) - cpu_before, 1),
        "peak_rss_mb": round(sum(each["peak_rss_mb"] for each in drained)),
        "rows_written": counts["out"] if bench.sink == "postgres" else 0,
        "commits": round(counts["parts_written"] / len(partitions)),
        "samples": counts["sampled"],
        "positives": counts["positive"],
        "corrected": counts["corrected"],
        "misses": counts["missed"] - counts["completed"],
        "duplicates": counts["duplicate"],
        "growth": grown(growth),
    }


def differences(found: Mapping[str, Any], truth: Mapping[str, Any]) -> list[str]:
    """What differs from the generator's own sums."""
    clicks = truth["clicks"] if found["sink"] == "postgres" else truth["w2"]["positive"]
    expected = {"samples": truth["w2"]["rows"], "positives": clicks, "misses": 0}
    return [f"{name}: {found[name]}, not {n}" for name, n in expected.items() if found[name] != n]


def _once(bench: Bench, *, actors: int, dsn: str | None) -> dict[str, Any]:
    with database(dsn) as (postgres, server):
        with closing(connect(postgres)) as connection, connection, connection.cursor() as cursor:
            enter_definition(cursor, bench.definition)
            enter_partitions(cursor, len(bench.ends[BEHAVIOR]))
        found = run(
            Bench(**{**{name: getattr(bench, name) for name in bench.__dataclass_fields__}, "postgres": postgres}),
            actors=actors,
            server=server,
        )
        if bench.sink == "postgres":
            stats = PostgresSampleStore(postgres).stats()
            found |= {"samples": stats.rows, "positives": stats.positives, "corrected": stats.corrections}
    events = sum(sum(ends.values()) for ends in bench.ends.values())
    head = {"events": events, "actors": actors, "sink": bench.sink}
    return {**head, "events_per_s": round(events / found["seconds"]), **found}


def main() -> int:
    """Run as often as asked, each time on new tables."""
    options = _arguments()
    suffix = options.topic.removeprefix(BEHAVIOR)
    if not options.topic.startswith(BEHAVIOR) or options.inference_topic not in (None, INFERENCE + suffix):
        raise SystemExit(f"the topics must be named {BEHAVIOR}X and {INFERENCE}X")
    kafka = KafkaOptions(bootstrap=options.bootstrap, suffix=suffix)
    whole = {topic: ends_of(kafka, topic) for topic in (BEHAVIOR, INFERENCE)}
    ends = {topic: {part: int(end * options.share) for part, end in each.items()} for topic, each in whole.items()}
    truth = json.loads(options.expect.read_text()) if options.expect else None
    wrong: list[str] = []
    environment = {"env_vars": {"POLARS_MAX_THREADS": "1"}}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=options.debug,
        logging_level="ERROR",
        runtime_env=environment,
    )
    for actors, sink in product(options.actors * options.runs, options.sink):
        # Without a store a click after the wait finds nothing to correct: it is not to count while its batch waits.
        horizon = {} if sink == "postgres" else {"horizon_ms": WAIT_MS + 1}
        bench = Bench(
            definition=SampleDefinition(wait_ms=WAIT_MS, **horizon),
            sink=sink,
            kafka=kafka,
            postgres=PostgresOptions(dsn=""),
            ends=ends,
            commit_every_s=options.commit_every_s,
            poll=options.poll,
            profile=options.profile,
        )
        found = _once(bench, actors=actors, dsn=options.dsn)
        growth = found.pop("growth")
        print(json.dumps(found | ({"growth": growth} if options.plot else {})), flush=True)
        if options.plot:
            plot(options.plot, growth, PANELS)
        wrong += differences(found, truth) if truth else []
    ray.shutdown()
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:29092")
    parser.add_argument("--topic", default=BEHAVIOR)
    parser.add_argument("--inference-topic", help="by default the one that goes with --topic")
    parser.add_argument("--actors", type=int, nargs="+", default=[2])
    parser.add_argument("--sink", nargs="+", choices=("none", "postgres"), default=["postgres"])
    parser.add_argument("--dsn", help="an empty database; by default a durable server is started for each run")
    parser.add_argument("--commit-every-s", type=float, default=1.0)
    parser.add_argument("--poll", type=int, default=20_000)
    parser.add_argument("--profile", help="write what cProfile says of each actor to PROFILE.PID")
    parser.add_argument("--share", type=float, default=1.0, help="how much of each partition, from its beginning")
    parser.add_argument("--plot", type=Path, help="draw CPU time per record and memory as the (last) run went on")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--expect", type=Path, help="what the generator's --truth printed")
    parser.add_argument("--debug", action="store_true", help="show what the actors print")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
