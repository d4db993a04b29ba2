"""How fast the feature stage drains a topic: workload W1 from Kafka to values, through the stage's own loop and actors.

    python benchmarks/bench_features.py --bootstrap HOST:PORT --topic behavior --actors 2 --sink postgres

The topic was filled by the load generator (45 % impressions, 35 % views, 10 % searches, 5 % clicks, 5 % others). Three
views: `user_browse_5m` (a row a user and 10 s; merged on read, so nothing is emitted), `category_top_items_10m` and
`top_queries_30m` (lists that changed, every 10 s of event time, as soon as all partitions have come that far, by a
process of their own). `--sink none`: what the actors compute is dropped, but for the lists' tiles, which go to the
process that makes the lists; positions are committed all the same, each second. `--sink postgres`: tiles and lists are
written, to `--dsn` or to a durable server of its own.

Time runs from the first record taken to the last list: starting actors is left out. Prints one JSON line: `cpu_s` and
`peak_rss_mb` are those of the actors and the lists' process together; `values` are the rows and sums over all windows,
to be compared with the generator's `--truth` (`--expect FILE` does, and fails when they differ).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import polars as pl
import ray

from actors.feature import FeatureOperator
from actors.stage import collect_rarely
from actors.task import TaskLoop, TaskOptions
from benchmarks.stages import database, ends_of, server_cpu, used
from rtrec_ray.clock import ManualClock, wall_ms
from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_consumer
from rtrec_ray.postgres.connection import Cursor, Pool, PostgresOptions, connect
from rtrec_ray.stores.features import Appended, ListRound, ListRows, TaskOutput, TopLists
from rtrec_ray.stores.features_postgres import PostgresFeatureStore

W1: Final = ("user_browse_5m", "category_top_items_10m", "top_queries_30m")
STEP_MS: Final = 10_000
TASK: Final = "features"
ACTIONS: Final = ("view", "click", "favorite", "cart", "consult", "comment")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run. `ends`: partition → offset at which the topic ends."""

    definitions: Definitions
    kafka: KafkaOptions
    postgres: PostgresOptions
    ends: Mapping[int, int]
    commit_every_s: float


class Operator(FeatureOperator):
    """The stage's operator without profiles and catalogue, which W1 does not use."""

    topics = (BEHAVIOR,)
    preload = ()


class ListsOnly(PostgresFeatureStore):
    """Writes no tiles; those of lists go to the process that makes them. What was seen is not kept either."""

    def __init__(self, definitions: Definitions, *, pool: Pool, lists: Any) -> None:
        super().__init__(definitions, pool=pool)
        self._lists = lists
        self._listed = {view.id for view in definitions.views if view.cached}

    def append(self, cursor: Cursor, output: TaskOutput) -> Appended:
        rows = {name: list(frame.iter_rows()) for name, frame in output.tiles.items() if name in self._listed}
        self._lists.send.remote(output.partition, output.watermark_ms, rows)
        cursor.execute("SELECT change FROM features.settings")
        (change,) = cursor.fetchone() or (0,)
        return Appended(rows=sum(frame.height for frame in output.tiles.values()), change=change)


@ray.remote(num_cpus=0)
class Share:
    """One actor: the stage's loop over some partitions, until their ends are committed."""

    def __init__(self, bench: Bench, partitions: Sequence[int], lists: Any) -> None:
        self._bench = bench
        self._partitions = tuple(partitions)
        pool = Pool(bench.postgres, size=1)
        listed = None if lists is None else ListsOnly(bench.definitions, pool=pool, lists=lists)
        self._store = listed or PostgresFeatureStore(bench.definitions, pool=pool)
        self._counts: Counter[str] = Counter()
        self._done = threading.Event()

    def drain(self) -> dict[str, float]:
        """Work to the end; when it began and ended (s of the machine), and what it did."""
        bench, operators = self._bench, {}
        watermark, share = WatermarkOptions(), self

        class Counting(Operator):
            began_s = float("inf")
            at = 0

            def apply(self, batch):
                Counting.began_s = min(Counting.began_s, wall_ms() / 1_000)
                self.at = batch.next_offset
                return super().apply(batch)

            def write(self, cursor):
                counts = super().write(cursor)
                share._counts.update(rows_written=counts["rows_written"], parts_written=1)
                return counts

            def committed(self):
                super().committed()
                if all(operators[p].at >= bench.ends[p] for p in operators):
                    share._done.set()

        def make(partition: int) -> Operator:
            operators[partition] = Counting(
                partition,
                store=self._store,
                latest_ms=lambda wall: 1 << 62,
                watermark=watermark,
            )
            return operators[partition]

        loop = TaskLoop(
            TaskOptions(
                task=TASK,
                partitions=self._partitions,
                owner=f"bench-{os.getpid()}",
                commit_every_s=bench.commit_every_s,
                watermark=watermark,
            ),
            make_operator=make,
            connect_consumer=partial(connect_consumer, bench.kafka),
            connect_store=partial(connect, bench.postgres, application="bench", pipeline=True),
            clock=ManualClock(now_ms=0),
        )
        collect_rarely()
        cpu = time.process_time()
        loop.run(self._done)
        return {"began": Counting.began_s, "ended": wall_ms() / 1_000, **used(cpu), **self._counts}


class Inbox:
    """FeatureKeeping over what the actors sent, and the sums of what was emitted."""

    def __init__(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self.sent: list[dict[str, list[tuple[str, int, str]]]] = []

    def list_rows(self, *, after: Mapping[int, int], from_ms: int) -> ListRows:
        """All that was sent since the last look."""
        rows: dict[str, list[tuple[str, int, str]]] = {}
        while self.sent:
            for name, new in self.sent.pop().items():
                rows.setdefault(name, []).extend(new)
        return ListRows(offsets={}, rows=rows)

    def put_lists(self, rounds: Sequence[ListRound]) -> None:
        """Nobody reads them."""

    def drop_expired(self) -> int:
        """Nothing is kept."""
        return 0


class Counted:
    """FeatureKeeping that adds up what is emitted: of each view the rows and counts of all lists in each round."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.definitions = store.definitions
        self._known: dict[str, dict[str, tuple[int, int]]] = {}
        self._sums: dict[str, tuple[int, int]] = {}
        self.values: Counter[str] = Counter()
        self.list_rows = store.list_rows
        self.drop_expired = store.drop_expired

    def put_lists(self, rounds: Sequence[ListRound]) -> None:
        """Count, then write."""
        for each in rounds:
            self._count(each)
        self._store.put_lists(rounds)

    def _count(self, each: ListRound) -> None:
        name = each.view.name
        known = self._known.setdefault(name, {})
        rows, total = self._sums.get(name, (0, 0))
        for key, value in each.changes.values.items():
            top = [] if value is None else value["top"]
            old, new = known.get(key, (0, 0)), (len(top), sum(n for _, n in top))
            rows, total = rows + new[0] - old[0], total + new[1] - old[1]
            known[key] = new
        self._sums[name] = (rows, total)
        changed = len(each.changes.values)
        self.values.update({f"{name} rows": rows, f"{name} total": total, "lists_written": changed})


@ray.remote(num_cpus=0, max_concurrency=3)
class Lists:
    """Emits the lists each 10 s of event time, as soon as the slowest partition has come there."""

    def __init__(self, bench: Bench, sink: str) -> None:
        self._bench = bench
        self._inbox = Inbox(bench.definitions) if sink == "none" else None
        self._marks: dict[int, int | None] = {}
        self._ended = threading.Event()

    def ready(self) -> bool:
        """Whether it was made."""
        return True

    def send(self, partition: int, watermark_ms: int | None, rows: dict[str, list[tuple[str, int, str]]]) -> None:
        """What one commit of an actor adds."""
        assert self._inbox is not None
        self._inbox.sent.append(rows)
        self._marks[partition] = watermark_ms

    def end(self) -> None:
        """No more rows will come: emit what is left."""
        self._ended.set()

    def emit(self) -> dict[str, Any]:
        """Work to the end; the sums of what was emitted."""
        pool, definitions = Pool(self._bench.postgres, size=2), self._bench.definitions
        store = self._inbox or PostgresFeatureStore(definitions, pool=pool)
        counted = Counted(store)
        collect_rarely()
        lists, at_ms, cpu = TopLists(counted), None, time.process_time()
        while True:
            ended = self._ended.wait(0.05)
            mark_ms = self._mark_ms(pool)
            if ended:
                break
            if mark_ms is None:
                continue
            last_ms = mark_ms // STEP_MS * STEP_MS
            if at_ms is None:
                at_ms = last_ms - definitions.longest_window_ms
            moments = list(range(at_ms + STEP_MS, last_ms + 1, STEP_MS))
            if moments:
                lists.rebuild_at(moments)
                at_ms = last_ms
        assert at_ms is not None
        assert mark_ms is not None
        lists.rebuild_at(range(at_ms + STEP_MS, mark_ms + definitions.longest_window_ms + 3 * STEP_MS, STEP_MS))
        pool.close()
        return {"ended": wall_ms() / 1_000, **used(cpu), "values": dict(counted.values)}

    def _mark_ms(self, pool: Pool) -> int | None:
        if self._inbox is None:
            with pool.statement() as cursor:
                cursor.execute("SELECT watermark_ms FROM features.partitions")
                marks = [mark for (mark,) in cursor.fetchall()]
        else:
            marks = list(self._marks.values())
        known = [mark for mark in marks if mark is not None]
        return min(known) if len(known) == len(self._bench.ends) else None


def run(bench: Bench, *, actors: int, sink: str, server: PostgresServer | None) -> dict[str, Any]:
    """Drain the topic once."""
    lists = Lists.remote(bench, sink)
    ray.get(lists.ready.remote())
    partitions = sorted(bench.ends)
    owned = [partitions[index::actors] for index in range(actors)]
    shares = [Share.remote(bench, own, lists if sink == "none" else None) for own in owned]
    emitting = lists.emit.remote()
    cpu_before = server_cpu(server)
    drained = ray.get([share.drain.remote() for share in shares])
    ray.get(lists.end.remote())
    emitted = ray.get(emitting)
    began, ended = min(each["began"] for each in drained), emitted["ended"]
    parts = [*drained, emitted]
    values = emitted["values"]
    lists_written = values.pop("lists_written")
    for actor in [*shares, lists]:
        ray.kill(actor)
    return {
        "seconds": round(ended - began, 2),
        "cpu_s": round(sum(each["cpu_s"] for each in parts), 1),
        "lists_cpu_s": round(emitted["cpu_s"], 1),
        "postgres_cpu_s": None if cpu_before is None else round((server_cpu(server) or 0.0) - cpu_before, 1),
        "peak_rss_mb": round(sum(each["peak_rss_mb"] for each in parts)),
        "rows_written": sum(each["rows_written"] for each in drained) + (lists_written if sink == "postgres" else 0),
        "lists_emitted": lists_written,
        "commits": round(sum(each["parts_written"] for each in drained) / len(partitions)),
        "values": values,
    }


def user_values(definitions: Definitions, options: PostgresOptions) -> dict[str, int]:
    """Rows and actions of `user_browse_5m` over all windows that end at a multiple of 10 s, out of the tiles."""
    view = definitions.view(W1[0])
    with closing(connect(options)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT key, tile_start_ms, state FROM features.tiles JOIN features.views USING (view_id) WHERE name = %s",
            (view.name,),
        )
        tiles = pl.DataFrame(cursor.fetchall(), schema=["key", "start", "state"], orient="row")
    names = [each.name for each in view.aggregations if each.kind == "count"]
    counts = tiles["state"].str.strip_chars("[]").str.split(",").list.head(1 + len(names))
    wanted = [1 + names.index(name) for name in ACTIONS]
    acts = sum((counts.list.get(index).cast(pl.Int64) for index in wanted), pl.zeros(len(counts), eager=True))
    by_tile = tiles.with_columns(n=acts).group_by("key", "start").agg(pl.col("n").sum()).filter(pl.col("n") > 0)
    windows = view.window_ms // STEP_MS
    gap = (pl.col("start").shift(-1).over("key", order_by="start") - pl.col("start")) // STEP_MS
    rows = by_tile.select(pl.min_horizontal(gap.fill_null(windows), pl.lit(windows)).sum()).item()
    return {f"{view.name} rows": int(rows), f"{view.name} total": int(by_tile["n"].sum()) * windows}


def differences(values: Mapping[str, int], truth: Mapping[str, Any]) -> list[str]:
    """What differs from the generator's own sums."""
    expected = {
        f"{W1[1]} rows": truth["w1a"]["rows"],
        f"{W1[1]} total": truth["w1a"]["clicks"],
        f"{W1[2]} rows": truth["w1c"]["rows"],
        f"{W1[2]} total": truth["w1c"]["searches"],
        f"{W1[0]} rows": truth["w1b_10s"]["rows"],
        f"{W1[0]} total": truth["w1b_10s"]["events"],
    }
    return [f"{name}: {n}, not {expected[name]}" for name, n in values.items() if n != expected[name]]


def main() -> int:
    """Run as often as asked, each time on new tables."""
    options = _arguments()
    shipped = load_definitions(Path(__file__).parents[1] / "configs" / "features.yaml")
    definitions = replace(shipped, views=tuple(view for view in shipped.views if view.name in W1))
    if not options.topic.startswith(BEHAVIOR):
        raise SystemExit(f"--topic {options.topic}: it must begin with {BEHAVIOR}")
    kafka = KafkaOptions(bootstrap=options.bootstrap, suffix=options.topic.removeprefix(BEHAVIOR))
    ends = ends_of(kafka, BEHAVIOR)
    truth = json.loads(options.expect.read_text()) if options.expect else None
    wrong: list[str] = []
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=options.debug, logging_level="ERROR")
    for actors, sink in product(options.actors * options.runs, options.sink):
        found = _once(definitions, kafka, ends, actors=actors, sink=sink, options=options)
        print(json.dumps(found), flush=True)
        wrong += differences(found["values"], truth) if truth else []
    ray.shutdown()
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _once(
    definitions: Definitions,
    kafka: KafkaOptions,
    ends: Mapping[int, int],
    *,
    actors: int,
    sink: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    with database(options.dsn) as (postgres, server):
        with closing(Pool(postgres, size=1)) as pool, pool.transaction() as cursor:
            PostgresFeatureStore(definitions, pool=pool).apply(cursor)
        bench = Bench(
            definitions=definitions, kafka=kafka, postgres=postgres, ends=ends, commit_every_s=options.commit_every_s
        )
        found = run(bench, actors=actors, sink=sink, server=server)
        if sink == "postgres":
            found["values"] |= user_values(definitions, postgres)
    events = sum(ends.values())
    head = {"events": events, "actors": actors, "sink": sink, "partitions": len(ends)}
    return {**head, "events_per_s": round(events / found["seconds"]), **found}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:29092")
    parser.add_argument("--topic", default=BEHAVIOR)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sink", nargs="+", choices=("none", "postgres"), default=["none", "postgres"])
    parser.add_argument("--dsn", help="an empty database; by default a durable server is started for each run")
    parser.add_argument("--commit-every-s", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--expect", type=Path, help="what the generator's --truth printed")
    parser.add_argument("--debug", action="store_true", help="show what the actors print")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
