"""Draining a topic of behaviour through the feature stage's own loop: the actors, the lists' process, their cost."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import polars as pl
import ray
from growth import Mark, mark
from stages import database, ends_of, server_cpu, used

from actors.feature import FeatureOperator
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.clock import ManualClock, wall_ms
from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.garbage import collect_rarely
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_consumer
from rtrec_ray.postgres.connection import Cursor, Pool, PostgresOptions, connect
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import Appended, ListRound, ListRows, TaskOutput
from rtrec_ray.stores.progress import Committed, write_committed

W1: Final = ("user_browse_5m", "category_top_items_10m", "top_queries_30m")
STEP_MS: Final = 10_000
TASK: Final = "features"
SWEEP_S: Final = 5.0
TILES_BYTES: Final = """
SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits
WHERE inhparent = 'features.tiles'::regclass"""
ACTIONS: Final = ("view", "click", "favorite", "cart", "consult", "comment")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run. `ends`: partition → offset at which the topic ends. `expire`: drop tiles that no window reaches."""

    definitions: Definitions
    kafka: KafkaOptions
    postgres: PostgresOptions
    ends: Mapping[int, int]
    commit_every_s: float
    expire: bool = False


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
        self._marks: list[Mark] = []
        self._done = threading.Event()

    def marks(self) -> list[Mark]:
        """What it had done after each commit."""
        return self._marks

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
                share._marks.append(mark(sum(each.at for each in operators.values())))
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

    def list_rows(self, *, after: Mapping[int, int] | None, from_ms: int) -> ListRows:
        """All that was sent since the last look."""
        rows: dict[str, list[tuple[str, int, str]]] = {}
        while self.sent:
            for name, new in self.sent.pop().items():
                rows.setdefault(name, []).extend(new)
        return ListRows(offsets={}, rows=rows, whole=after is None)

    def list_rounds(self) -> Mapping[str, int]:
        """Nothing was emitted before."""
        return {}

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
        self.list_rounds = store.list_rounds
        self.drop_expired = store.drop_expired

    def put_lists(self, rounds: Sequence[ListRound]) -> None:
        """Count, then write."""
        for each in rounds:
            self._count(each)
        self.values["lists_written"] += len({(each.view.id, key) for each in rounds for key in each.changes.values})
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
        self.values.update({f"{name} rows": rows, f"{name} total": total, "lists_emitted": changed})


@ray.remote(num_cpus=0, max_concurrency=3)
class Lists:
    """Emits the lists each 10 s of event time, as soon as the slowest partition has come there."""

    def __init__(self, bench: Bench, sink: str) -> None:
        self._bench = bench
        self._inbox = Inbox(bench.definitions) if sink == "none" else None
        self._marks: dict[int, int | None] = {}
        self._ended = threading.Event()
        self._swept: list[Mark] = []

    def marks(self) -> list[Mark]:
        """What it had done after each look for old tiles."""
        return self._swept

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
                self._sweep(pool, store, mark_ms=last_ms)
        assert at_ms is not None
        assert mark_ms is not None
        lists.rebuild_at(range(at_ms + STEP_MS, mark_ms + definitions.longest_window_ms + 3 * STEP_MS, STEP_MS))
        pool.close()
        return {"ended": wall_ms() / 1_000, **used(cpu), "values": dict(counted.values)}

    def _sweep(self, pool: Pool, store: Any, *, mark_ms: int) -> None:
        if self._swept and wall_ms() / 1_000 < self._swept[-1].at_s + SWEEP_S:
            return
        with pool.transaction() as cursor:
            if self._bench.expire:  # the topic is its own history
                at = Committed(watermark_ms=mark_ms)
                for partition in self._bench.ends:
                    write_committed(cursor, task="history", partition=partition, at=at, lag=0, counts={})
            cursor.execute(TILES_BYTES)
            (size,) = cursor.fetchone() or (0,)
        if self._bench.expire:
            store.drop_expired()
        self._swept.append(mark(disk_mb=int(size) / 2**20))

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
    owned = [partitions[index::actors] for index in range(min(actors, len(partitions)))]
    shares = [Share.remote(bench, own, lists if sink == "none" else None) for own in owned]
    emitting = lists.emit.remote()
    cpu_before = server_cpu(server)
    drained = ray.get([share.drain.remote() for share in shares])
    ray.get(lists.end.remote())
    emitted = ray.get(emitting)
    began, ended = min(each["began"] for each in drained), emitted["ended"]
    parts = [*drained, emitted]
    values = emitted["values"]
    growth = ray.get([actor.marks.remote() for actor in [*shares, lists]])
    lists_written, lists_emitted = values.pop("lists_written"), values.pop("lists_emitted")
    for actor in [*shares, lists]:
        ray.kill(actor)
    return {
        "seconds": round(ended - began, 2),
        "cpu_s": round(sum(each["cpu_s"] for each in parts), 1),
        "lists_cpu_s": round(emitted["cpu_s"], 1),
        "postgres_cpu_s": None if cpu_before is None else round((server_cpu(server) or 0.0) - cpu_before, 1),
        "peak_rss_mb": round(sum(each["peak_rss_mb"] for each in parts)),
        "rows_written": sum(each["rows_written"] for each in drained) + (lists_written if sink == "postgres" else 0),
        "lists_emitted": lists_emitted,
        "commits": round(sum(each["parts_written"] for each in drained) / len(partitions)),
        "values": values,
        "growth": growth,
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


def w1() -> Definitions:
    """The views of workload W1, as they are shipped."""
    shipped = load_definitions(Path(__file__).parents[1] / "configs" / "features.yaml")
    return replace(shipped, views=tuple(view for view in shipped.views if view.name in W1))


def topic(bootstrap: str, name: str) -> KafkaOptions:
    """Where the topic is. Raises SystemExit for one that is not of behaviour."""
    if not name.startswith(BEHAVIOR):
        raise SystemExit(f"--topic {name}: it must begin with {BEHAVIOR}")
    return KafkaOptions(bootstrap=bootstrap, suffix=name.removeprefix(BEHAVIOR))


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a topic is drained. `sink`: none or postgres; `dsn`: an empty database, or None for a server of its own."""

    actors: int
    sink: str
    dsn: str | None = None
    commit_every_s: float = 1.0
    expire: bool = False


def drain(definitions: Definitions, kafka: KafkaOptions, way: Way) -> dict[str, Any]:
    """Drain the topic once, on new tables."""
    ends = ends_of(kafka, BEHAVIOR)
    with database(way.dsn) as (postgres, server):
        with closing(Pool(postgres, size=1)) as pool, pool.transaction() as cursor:
            PostgresFeatureStore(definitions, pool=pool).apply(cursor)
        bench = Bench(
            definitions=definitions,
            kafka=kafka,
            postgres=postgres,
            ends=ends,
            commit_every_s=way.commit_every_s,
            expire=way.expire,
        )
        found = run(bench, actors=way.actors, sink=way.sink, server=server)
        if way.sink == "postgres" and not way.expire:
            found["user_values"] = user_values(definitions, postgres)
    events = sum(ends.values())
    head = {"events": events, "actors": way.actors, "sink": way.sink, "partitions": len(ends)}
    return {**head, "events_per_s": round(events / found["seconds"]), **found}
