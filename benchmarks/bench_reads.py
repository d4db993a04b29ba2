"""How long a read of feature values takes, beside Feast's online store on the same PostgreSQL in the same minute.

    make bench, or .venv-bench/bin/python benchmarks/bench_reads.py

A durable embedded PostgreSQL is filled as the feature stage fills it: 11 minutes of the mix of
`bench_features_local.py` (555 events/s, 10,000 users, 100 categories), all views of `configs/features.yaml`, a commit
each second of event time, so that a user's 5 minutes are some nine rows of tiles; tables of two older hours are there
as well. The values of 2,000 of the users and of all categories as of the end are then written to Feast with
`write_to_online_store`, field by field: 8 integers, a text and a list for a user (`user_browse_5m`), two lists of 50
for a category (`category_top_items_10m`). Both sides must answer the same values before anything is timed.

Each read asks for other keys, drawn at random:

    1, 10, 100 users        merged from tiles
    1 user + 10 categories  as serving reads: the user from tiles, the lists as they are rebuilt each second
    1, 10, 100 categories   such lists; one that did not change since its last reading is not decoded again
    ..., all changed        each list has changed since its last reading, or look

Ours is `get` of `NearFeatures`, as a serving replica has it: from memory, as of a look each 0.05 s, by a
thread of this process. And of `PostgresFeatureStore` through its pool, which a replica falls back on. Both
answer dicts, with values as of now. Feast's is one `get_online_features(...).to_dict()` for the same keys, with values
as of when they were written: it slides no windows. All run in this process, each on a connection that stays open, ten
reads in turn; who begins changes each round.

`SELECT 1` is timed beside them: no round trip can be faster. Half of it and more is the waking of the other core, which
comes and goes with what else runs; `taskset -c 1` before the command puts reader and server on one core and leaves that
out.
Prints one JSON line, and a table to stderr.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from bench_features_local import FRAME, MS_PER_EVENT, frames
from psycopg2.extensions import parse_dsn
from stages import looked_after

from rtrec_ray.clock import ManualClock
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.events import PROFILE_SCHEMA
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import CATEGORY_TOP_ITEMS_10M, USER_BROWSE_5M, ViewKey
from rtrec_ray.features.merge import Value
from rtrec_ray.features.seen import Seen
from rtrec_ray.features.stream import FeatureStream
from rtrec_ray.garbage import collect_rarely
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import HOUR_MS, FeatureReader, TaskOutput
from serving.options import ServingOptions

if TYPE_CHECKING:
    from feast_reads import FeastReads

MINUTES: Final = 11
USERS: Final = 10_000
USERS_READ: Final = 2_000
CATEGORIES: Final = 100
COMMIT: Final = round(1_000 / MS_PER_EVENT)  # events of a second
OLDER_HOURS: Final = (2, 1)
BLOCK: Final = 10  # reads of one side before the other's turn

Get = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How many keys a read asks for. `changed`: the lists are others than when they were last read."""

    users: int = 0
    categories: int = 0
    changed: bool = False

    @property
    def name(self) -> str:
        """In words."""
        parts = ((self.users, "user", "users"), (self.categories, "category", "categories"))
        words = " + ".join(f"{n} {one if n == 1 else many}" for n, one, many in parts if n)
        return f"{words}, all changed" if self.changed else words


WORKLOADS: Final = (
    Workload(users=1),
    Workload(users=10),
    Workload(users=100),
    Workload(users=1, categories=10),
    Workload(users=1, categories=10, changed=True),
    Workload(categories=1),
    Workload(categories=10),
    Workload(categories=100),
    Workload(categories=100, changed=True),
)
# The same value in another text.
CHANGE: Final = (
    "UPDATE features.top_lists SET round = round + 1, "
    "value = CASE value WHEN rtrim(value) THEN value || ' ' ELSE rtrim(value) END"
)
CHANGED: Final = "UPDATE features.top_list_rounds r SET round = (SELECT max(round) FROM features.top_lists)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Both stores, filled. `users`: those of whom Feast has values."""

    near: NearFeatures
    store: PostgresFeatureStore
    pool: Pool
    feast: FeastReads
    users: Sequence[int]
    now_ms: int

    def reads(self, workload: Workload, random: np.random.Generator) -> tuple[Get, ...]:
        """The same read from memory, by our store and by Feast, of keys drawn anew."""
        users = random.choice(self.users, workload.users, replace=False).tolist()
        categories = random.choice(CATEGORIES, workload.categories, replace=False).tolist()
        asks, request = keys(users, categories), self.feast.request(users, categories)
        return (
            lambda: self.near.get(asks, as_of_ms=None, now_ms=self.now_ms, cached=True),
            lambda: self.store.get(asks, as_of_ms=None, now_ms=self.now_ms, cached=True),
            lambda: self.feast.get(request),
        )

    def change(self) -> None:
        """Let every list be another text, and look."""
        with self.pool.statement() as cursor:
            cursor.execute(CHANGE)
            cursor.execute(CHANGED)
        self.near.refresh()

    def select_1(self) -> None:
        """The shortest round trip there is."""
        with self.pool.statement() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()


def keys(users: Iterable[int], categories: Iterable[int]) -> list[ViewKey]:
    """What our side is asked."""
    of_users = [ViewKey(view=USER_BROWSE_5M, key=str(user)) for user in users]
    return of_users + [ViewKey(view=CATEGORY_TOP_ITEMS_10M, key=str(category)) for category in categories]


def commits() -> Iterator[pl.DataFrame]:
    """The events of a partition, a commit each; the first ones are hours older, so that their tiles exist too."""
    older = list(OLDER_HOURS)
    for frame in frames(round(MINUTES * 60_000 / MS_PER_EVENT)):
        folded = frame.with_columns(pl.col("user_id") % USERS)
        for start in range(0, min(frame.height, FRAME), COMMIT):
            hours = older.pop(0) if older else 0
            yield folded.slice(start, COMMIT).with_columns(pl.col("ts") - hours * HOUR_MS)


def fill(store: PostgresFeatureStore, definitions: Definitions, pool: Pool) -> int:
    """Write the tiles as the feature stage does; answers the time of the last event, ms."""
    stream = FeatureStream(definitions, disorder_ms=5_000, seen=Seen(), profiles=PROFILE_SCHEMA.to_frame())
    with pool.transaction() as cursor:
        store.apply(cursor)
    next_offset, now_ms = 0, 0
    for events in commits():
        stream.take(events)
        stream.forget()
        next_offset, now_ms = next_offset + events.height, max(now_ms, int(events["ts"].to_numpy().max()))
        output = TaskOutput(
            partition=0,
            watermark_ms=stream.watermark_ms,
            next_offset=next_offset,
            tiles=stream.tiles(),
            seen=stream.seen.new(),
        )
        with pool.transaction() as cursor:
            store.append(cursor, output)
        stream.settle()
    return now_ms


def settle(pool: Pool) -> None:
    """Do at once what autovacuum does in time; it leaves the partitioned table itself out."""
    with pool.statement() as cursor:
        cursor.execute(
            "SELECT format('VACUUM ANALYZE %s', relid::regclass) FROM pg_stat_user_tables "
            "JOIN pg_class ON oid = relid WHERE relkind = 'r'"
        )
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)
        cursor.execute("CHECKPOINT")


def values(store: FeatureReader, asks: Sequence[ViewKey], *, now_ms: int) -> dict[int, Value]:
    """Our values by the key as a number, without the keys that have none."""
    found = store.get(asks, as_of_ms=None, now_ms=now_ms, cached=True)
    return {int(ask.key): value for ask, value in found.items() if value is not None}


def filled(near: NearFeatures, ours: PostgresFeatureStore, pool: Pool, feast: FeastReads, *, now_ms: int) -> Sides:
    """Write our values to Feast and see that both answer them."""
    drawn = np.random.default_rng(5).choice(USERS, USERS_READ, replace=False).tolist()
    users = values(ours, keys(drawn, ()), now_ms=now_ms)
    categories = values(ours, keys((), range(CATEGORIES)), now_ms=now_ms)
    near.refresh()
    if near.age_s() is None or values(near, keys(drawn, ()), now_ms=now_ms) != users:
        raise SystemExit("memory has other values than the store: comparing times would mean nothing")
    feast.put(users, categories)
    if not feast.has(users, categories):
        raise SystemExit("Feast answers other values: comparing times would mean nothing")
    return Sides(near=near, store=ours, pool=pool, feast=feast, users=list(users), now_ms=now_ms)


def timed_ms(get: Get, *, before: Get | None = None) -> float:
    """How long it takes, without what is to be done before."""
    if before is not None:
        before()
    start = time.perf_counter()
    get()
    return 1_000 * (time.perf_counter() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long reads took, ms: from memory, by our store, by Feast; and the shortest round trip."""

    reads: dict[Workload, tuple[list[float], ...]]
    select_1: list[float]


def measure(sides: Sides, rebuild: Get, *, rounds: int) -> Times:
    """Time reads. The first round warms up and is left out."""
    random = np.random.default_rng(11)
    times = Times(reads={workload: ([], [], []) for workload in WORKLOADS}, select_1=[])
    for number in range(rounds + 1):
        rebuild()  # or a reader would find the lists too old
        for workload in WORKLOADS:
            reads = [sides.reads(workload, random) for _ in range(BLOCK)]
            for side in (0, 1, 2) if number % 2 else (2, 1, 0):
                change = sides.change if workload.changed and side < 2 else None
                block = [timed_ms(read[side], before=change) for read in reads]
                times.reads[workload][side].extend(block if number else [])
        times.select_1.extend([timed_ms(sides.select_1) for _ in range(BLOCK)] if number else [])
    return times


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, ms."""
    return {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 99)}


def figures(workload: Workload, times: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of one workload, for the JSON line."""
    near, store, feast = (percentiles(each) for each in times)
    return {
        "keys": workload.users + workload.categories,
        "read": workload.name,
        "near_ms": near,
        "store_ms": store,
        "feast_ms": feast,
        "near_times_faster_p50": round(feast["p50"] / near["p50"], 1),
        "store_times_faster_p50": round(feast["p50"] / store["p50"], 1),
    }


def table(answer: dict[str, Any]) -> str:
    """For people."""
    sides = ("near", "store", "feast")
    lines = [f"{'':36}" + "".join(f"{side + ' p50':>12}{'p99':>8}" for side in sides) + f"{'times faster':>20}"]
    for row in answer["reads"]:
        times = "".join(f"{row[f'{side}_ms']['p50']:12.3f}{row[f'{side}_ms']['p99']:8.2f}" for side in sides)
        lines.append(f"{row['read']:36}{times}{row['near_times_faster_p50']:12.1f}{row['store_times_faster_p50']:8.1f}")
    shortest = answer["select_1_ms"]
    lines.append(f"{'SELECT 1':36}{shortest['p50']:12.3f}{shortest['p99']:8.2f}")
    return "\n".join(lines)


def tile_rows(pool: Pool, *, now_ms: int) -> float:
    """Rows of tiles that a user's read adds up, on average."""
    with pool.statement() as cursor:
        cursor.execute(
            "SELECT count(*)::float / count(DISTINCT key) FROM features.tiles JOIN features.views USING (view_id) "
            "WHERE name = %s AND tile_start_ms > %s",
            (USER_BROWSE_5M, now_ms - 300_000),
        )
        (rows,) = cursor.fetchone() or (0.0,)
    return round(float(rows), 1)


@contextmanager
def postgres(directory: Path) -> Iterator[PostgresServer]:
    """A new, durable server with the tables."""
    server = PostgresServer(PostgresServerOptions(directory=directory / "pg"))
    server.start()
    try:
        migrate(PostgresOptions(dsn=server.dsn()))
        yield server
    finally:
        server.stop()


def address(server: PostgresServer) -> dict[str, str | int]:
    """Where the server is, in Feast's words."""
    parts = parse_dsn(server.dsn())
    password = server.passfile.read_text().strip().rsplit(":", 1)[1]
    names = {"host": parts["host"], "database": parts["dbname"], "user": parts["user"], "password": password}
    return {**names, "port": server.port}


def run(server: PostgresServer, directory: Path, *, rounds: int) -> dict[str, Any]:
    """Fill both sides and time them."""
    # Feast is only where the extra `bench` is installed; --help works everywhere.
    from feast_reads import FEAST_VERSION, FeastReads

    definitions = load_definitions(Path(__file__).parents[1] / "configs" / "features.yaml")
    with closing(Pool(PostgresOptions(dsn=server.dsn()))) as pool:
        store = PostgresFeatureStore(definitions, pool=pool)
        now_ms = fill(store, definitions, pool)
        options = ServingOptions()
        near = NearFeatures(store, clock=ManualClock(now_ms=now_ms), most_rows=options.near_rows)
        with closing(FeastReads(directory, address=address(server))) as feast:
            sides = filled(near, store, pool, feast, now_ms=now_ms)
            settle(pool)
            gc.collect()
            collect_rarely()  # as a serving replica does, for all sides
            with looked_after(near, every_s=options.near_refresh_s):
                # Anew each time, as `change` writes rounds by hand, which a keeper takes for those of another.
                times = measure(sides, lambda: TopLists(store).rebuild(now_ms=now_ms), rounds=rounds)
        reads = [figures(workload, each) for workload, each in times.reads.items()]
        shortest = percentiles(times.select_1)
        rows = tile_rows(pool, now_ms=now_ms)
        answer = {"feast": FEAST_VERSION, "tile_rows_a_user": rows, "near_rows": near.rows, "select_1_ms": shortest}
        return {**answer, "reads": reads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help=f"each {BLOCK} reads a side (default: 60)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rtrec-bench-") as temporary, postgres(Path(temporary)) as server:
        answer = run(server, Path(temporary), rounds=arguments.rounds)
    print(table(answer), file=sys.stderr)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
