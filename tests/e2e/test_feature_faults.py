"""The feature stage under faults and load: its tables come to be those of a run that nothing disturbed.

The undisturbed run reads the same log, in one go, into a database of its own. Partitions are never idle here: only then
does the clock have a say in what is late.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import ray
from ray.exceptions import GetTimeoutError, RayError

from configs.settings import ClockSettings, Pipeline, Servers, Settings
from configs.settings import KafkaServer as KafkaSettings
from rtrec_ray.app.cluster import end_actors, stop_actors
from rtrec_ray.app.pipeline import FEATURES, Share, shares, start_pipeline
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.embedded.kafka import KafkaServer
from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.events import BEHAVIOR, BEHAVIOR_SCHEMA, ITEM, PROFILE, PROFILE_SCHEMA, RETRACT
from rtrec_ray.features.compute import compute
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.profiles import attribute
from rtrec_ray.kafka.base import EARLIEST
from rtrec_ray.kafka.connect import connect_consumer
from rtrec_ray.kafka.partitioner import partition_of
from rtrec_ray.postgres.connection import Pool, connect
from rtrec_ray.samples.file import load_definition
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from tests.conftest import Eventually
from tests.e2e.crew import LEASE_MS, Crew, Watch, Worker, add_partitions, run_alone, send_all
from tests.e2e.feature_content import Tiles, added_up, content, query, tiles
from tests.e2e.feature_load import CLOCK_MS, START_MS, STEP_MS, Load, profiles, records

pytestmark = [pytest.mark.server, pytest.mark.slow]

CONFIGS = Path(__file__).parents[2] / "configs"
WATCH = Watch(stage=FEATURES, topics=(BEHAVIOR, PROFILE, ITEM))
places, ends, applied, events_applied = WATCH.places, WATCH.ends, WATCH.applied, WATCH.events_applied
epochs, owners, until_more = WATCH.epochs, WATCH.owners, WATCH.until_more


@pytest.fixture
def system(dsn: str, kafka_bootstrap: str, tmp_path: Path) -> System:
    """Tables, topics, profiles; nothing runs yet."""
    made = prepare(
        System(
            settings=Settings(
                servers=Servers(kafka=KafkaSettings(suffix=f"-faults-{uuid.uuid4().hex[:8]}")),
                clock=ClockSettings(origin_event_ms=CLOCK_MS),
                pipeline=Pipeline(
                    feature_actors=2,
                    sample_actors=0,
                    history_actors=0,
                    feature_commit_s=0.05,
                    idle_after_ms=600_000,
                    lease_ttl_ms=LEASE_MS,
                ),
            ),
            directory=tmp_path,
            addresses=Addresses(kafka=kafka_bootstrap, postgres=dsn, ray="local"),
            features=load_definitions(CONFIGS / "features.yaml"),
            samples=load_definition(CONFIGS / "samples.yaml"),
        )
    )
    send_all(made, profiles())
    return made


@pytest.fixture
def undisturbed(
    system: System, postgres_server: PostgresServer, template_database: str, eventually: Eventually
) -> Iterator[Callable[[], dict[str, object]]]:
    """What one owner of all partitions makes of the log as it is now."""
    with run_alone(WATCH, postgres_server, template_database, eventually) as run:
        yield lambda: content(run(system))


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path, stage=FEATURES)
    yield crew
    crew.end()


@contextmanager
def load(system: System, *, seed: int) -> Iterator[Load]:
    """Records come for as long as the block lasts, and were coming all the time."""
    running = Load(system.kafka, records(seed), rate=300)
    try:
        yield running
        assert running.running(), "the stream was long enough"
    finally:
        running.finish()


def assert_undisturbed(system: System, eventually: Eventually, undisturbed: Callable[[], dict[str, object]]) -> None:
    eventually(lambda: applied(system) == ends(system), what="the whole log is applied")
    expected, found = undisturbed(), content(system)
    outcomes: set[str] = set().union(*(counts for _, _, counts in expected["progress"]))  # type: ignore[attr-defined]
    assert outcomes >= {"in", "dead", "late", "corrected", "beyond_horizon", "duplicate", "retract", "retracted"}
    for name, value in expected.items():
        assert found[name] == value, name


# --- actors that are killed ----------------------------------------------------------------------------------------


@pytest.fixture
def actors(system: System, ray_local: None) -> Iterator[dict[str, Any]]:
    started = dict(zip([share.name for share in shares(system)], start_pipeline(system), strict=True))
    yield started
    stop_actors(started)
    end_actors(started)


def living(actor: Any) -> int:
    """The process of an actor that answers, 0 while there is none."""
    try:
        return int(ray.get(actor.health.remote(), timeout=1.0).pid)
    except (RayError, GetTimeoutError):
        return 0


def seen_at(system: System, pool: Pool, user: int, ts: int) -> bool:
    """Whether a read finds what the user did at `ts`."""
    key, tile = ViewKey(view="user_browse_5m", key=str(user)), system.features.tile_ms
    store = PostgresFeatureStore(system.features, pool=pool)
    return store.get([key], as_of_ms=(ts // tile + 1) * tile, now_ms=0)[key] is not None


def mark(system: System, share: Share, *, ts: int) -> list[int]:
    """Send an event of a new user to each partition of the share; answers these users."""
    keys = range(1_000_000, 2_000_000)
    users = [
        next(key for key in keys if partition_of(b"%d" % key, partitions=system.partitions) == partition)
        for partition in share.owned
    ]
    views = [{"event_id": f"m{ts}-{user}", "event_type": "view", "ts": ts, "user_id": user} for user in users]
    send_all(system, [(BEHAVIOR, view["user_id"], orjson.dumps(view)) for view in views])
    return users


@pytest.mark.ray
def test_actors_killed_at_any_moment_come_back_and_change_nothing(
    system: System,
    actors: dict[str, Any],
    eventually: Eventually,
    undisturbed: Callable[[], dict[str, object]],
) -> None:
    rng, pause = random.Random(1), threading.Event()
    by_name = {share.name: share for share in shares(system)}
    assert list(by_name) == list(actors) == ["features-0", "features-1"]
    with closing(Pool(system.postgres, size=1)) as pool, load(system, seed=1) as running:
        for name in ("features-0", "features-1", "features-1", "features-0"):
            victim = eventually(lambda name=name: living(actors[name]), what=f"{name} answers")
            pause.wait(rng.uniform(0, 0.7))  # somewhere between its start and a few commits later
            os.kill(victim, signal.SIGKILL)
        # Its sessions' ends free the leases at once, so that what is waited for is the start of a process; the lease's
        # time is added, because a machine that dies closes no sessions.
        ts = START_MS + running.sent * STEP_MS
        users = mark(system, by_name[name], ts=ts)
        for user in users:
            eventually(
                lambda user=user: seen_at(system, pool, user, ts),
                what="an event sent after the kill is readable",
            )
        until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    assert_lists_follow(system, eventually)


def assert_lists_follow(system: System, eventually: Eventually) -> None:
    """The lists kept for serving come to what the tiles say."""
    cached = [view.name for view in system.features.views if view.cached]
    asks = [ViewKey(view=place[0], key=place[3]) for place in tiles(system) if place[0] in cached]
    with closing(Pool(system.postgres, size=1)) as pool:
        store = PostgresFeatureStore(system.features, pool=pool)

        def alike() -> bool:
            now_ms = system.clock.now_ms()
            listed = store.get(asks, as_of_ms=None, now_ms=now_ms, cached=True)
            return any(listed.values()) and listed == store.get(asks, as_of_ms=None, now_ms=now_ms)

        eventually(alike, what="lists as the tiles")


# --- commits that are cut off --------------------------------------------------------------------------------------

WAITING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ '^features-' AND wait_event_type || wait_event ~ %s
"""


@contextmanager
def held_at(system: System, eventually: Eventually, table: str) -> Iterator[int]:
    """A commit stands in front of its write to the table during the block; gives the backend."""
    with closing(connect(system.postgres)) as blocker, blocker.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")
        ((pid, *_), *_) = eventually(lambda: query(system, WAITING, "^Lock"), what=f"a commit waits for {table}")
        yield pid


@contextmanager
def held_after(system: System, eventually: Eventually) -> Iterator[int]:
    """A commit is durable during the block, and its owner is not told."""
    with closing(connect(system.postgres)) as admin:
        admin.autocommit = True
        with admin.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            cursor.execute("SELECT pg_reload_conf()")
            try:
                ((pid, *_), *_) = eventually(
                    lambda: query(system, WAITING, "SyncRep$"), what="a commit is not answered"
                )
                yield pid
            finally:
                cursor.execute("ALTER SYSTEM RESET synchronous_standby_names")
                cursor.execute("SELECT pg_reload_conf()")


def end_session(system: System, crew: Crew, worker: Worker, backend: int) -> Worker:
    assert query(system, "SELECT pg_terminate_backend(%s, 5000)", backend) == [(True,)]
    return worker


def kill_process(system: System, crew: Crew, worker: Worker, backend: int) -> Worker:
    worker.kill()
    return crew.start(system)


BEFORE_TILES, BEFORE_HASHES, BEFORE_POSITIONS = (
    partial(held_at, table=table) for table in ("features.tiles", "features.seen", "meta.positions")
)
STRIKES: list[tuple[Callable[..., Any], Callable[..., Worker]]] = [
    (BEFORE_TILES, end_session),
    (BEFORE_HASHES, kill_process),
    (BEFORE_POSITIONS, end_session),
    (BEFORE_POSITIONS, kill_process),
    (held_after, end_session),
    (held_after, kill_process),
]


def test_a_commit_cut_off_at_any_step_counts_once_whoever_dies(
    system: System, crew: Crew, eventually: Eventually, undisturbed: Callable[[], dict[str, object]]
) -> None:
    with load(system, seed=2):
        worker = crew.start(system)
        for held, strike in STRIKES:
            until_more(system, eventually)  # the first commit of a session is an empty one
            before = epochs(system)[0]
            with held(system, eventually) as backend:
                worker = strike(system, crew, worker, backend)
            eventually(lambda before=before: epochs(system)[0] > before, what="a new session")
        until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    worker.stop()


# --- an owner that stands still ------------------------------------------------------------------------------------

# Every commit writes this row; in one partition they are serial, so the numbers are in the order of commits.
AUDIT = """
CREATE TABLE public.commits (number bigserial, partition int, owner text);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.commits (partition, owner) VALUES (NEW.partition, current_setting('application_name'));
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON meta.progress FOR EACH ROW EXECUTE FUNCTION public.note();
"""
COMMITS = "SELECT partition, owner FROM public.commits ORDER BY partition, number"
IDLE = "SELECT bool_and(state = 'idle') FROM pg_stat_activity WHERE application_name = %s"


def stop_in_a_commit(system: System, worker: Worker, eventually: Eventually) -> None:
    """It holds the lock of its lease's row; whoever takes over has to end its session."""
    with held_at(system, eventually, "features.seen"):
        worker.signal(signal.SIGSTOP)


def stop_unreachable(system: System, worker: Worker, eventually: Eventually) -> None:
    """Between two commits, and nobody knows its session: nothing but the fence is in its way."""
    owner = owners(system)[0]

    def stopped_between_commits() -> bool:
        worker.signal(signal.SIGSTOP)
        ((between,),) = query(system, IDLE, owner)
        if not between:
            worker.signal(signal.SIGCONT)
        return bool(between)

    eventually(stopped_between_commits, what="stopped between two commits")
    query(system, "UPDATE meta.leases SET pid = NULL, backend_start = NULL")


@pytest.mark.parametrize(
    ("stand_still", "cause"),
    [(stop_in_a_commit, "PostgreSQL does not answer"), (stop_unreachable, "was taken over")],
)
def test_an_owner_that_stood_still_while_it_was_replaced_writes_nothing(
    system: System,
    crew: Crew,
    eventually: Eventually,
    undisturbed: Callable[[], dict[str, object]],
    stand_still: Callable[[System, Worker, Eventually], None],
    cause: str,
) -> None:
    query(system, AUDIT)
    with load(system, seed=3):
        first = crew.start(system)
        until_more(system, eventually)
        (one,) = set(owners(system).values())
        stand_still(system, first, eventually)
        second = crew.start(system)
        eventually(lambda: one not in owners(system).values(), what="another has all partitions")
        until_more(system, eventually)
        (two,) = set(owners(system).values())

        first.signal(signal.SIGCONT)
        eventually(lambda: len(first.facts("session_ended")) > 1, what="its session ends, and the next has to wait")
        ended, waits = (fact["cause"] for fact in first.facts("session_ended")[:2])
        assert cause in ended
        assert f"belongs to {two}" in waits
        second.stop()
        until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    first.stop()
    in_turn = [place for place, _ in groupby(query(system, COMMITS))]
    assert in_turn == [(partition, owner) for partition in range(system.partitions) for owner in (one, two, one)]


# --- servers that go away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["postgres", "kafka"])
def test_a_server_that_went_away_under_load_is_gone_on_with(
    system: System,
    crew: Crew,
    eventually: Eventually,
    undisturbed: Callable[[], dict[str, object]],
    postgres_server: PostgresServer,
    kafka_server: KafkaServer,
    which: str,
) -> None:
    server = {"postgres": postgres_server, "kafka": kafka_server}[which]
    with load(system, seed=4):
        workers = [crew.start(system, index=index, of=2) for index in range(2)]
        until_more(system, eventually)
        server.kill()
        try:
            for worker in workers:
                eventually(lambda worker=worker: worker.facts("session_ended"), what="it is noticed")
        finally:
            server.start()
        until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    for worker in workers:
        worker.stop()


# --- other numbers of actors and partitions ------------------------------------------------------------------------


def read_log(system: System) -> list[dict[str, Any]]:
    """All readable records of behaviour, those of a partition in their order."""
    parts = [place for place in places(system) if place.topic == BEHAVIOR]
    values: list[Any] = []
    with closing(connect_consumer(system.kafka)) as consumer:
        consumer.assign(dict.fromkeys(parts, EARLIEST))
        total = sum(consumer.end_offsets(parts).values())
        while len(values) < total:
            for batch in consumer.poll(max_records=10_000, timeout_s=5.0):
                values += batch.values
    return [orjson.loads(value) for value in values if value.endswith(b"}")]


def recomputed(system: System) -> Tiles:
    """The tiles as they must be: of each event once, unless it was too late or is taken back; partitions added up."""
    log = [event for event in read_log(system) if event["ts"] >= START_MS]
    gone = {event["retracts"]["event_id"] for event in log if event["event_type"] == RETRACT}
    once = {event["event_id"]: event for event in log if event["event_type"] != RETRACT}
    kept = [event for name, event in once.items() if name not in gone]
    versions = pl.DataFrame([orjson.loads(value) for _, _, value in profiles()], schema=PROFILE_SCHEMA)
    events = attribute(pl.DataFrame(kept, schema=BEHAVIOR_SCHEMA), versions)
    rows: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for view in system.features.views:
        for key, start, state in compute(view, events, tile_ms=system.features.tile_ms).iter_rows():
            rows[view.name, view.version, key, start] = [(start, state)]
    return added_up(system.features, rows)


def over_partitions(system: System) -> Tiles:
    rows: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    statement = (
        "SELECT name, version, key, tile_start_ms, state FROM features.tiles JOIN features.views USING (view_id)"
    )
    for *place, start, state in query(system, statement):
        rows.setdefault((*place, start), []).append((start, state))
    return added_up(system.features, rows)


def run_with(system: System, crew: Crew, eventually: Eventually, *, of: int, events: tuple[int, int]) -> None:
    """A run of that many actors, from its start to its end in order, while these events come."""
    running = Load(system.kafka, records(5, *events))
    workers = [crew.start(system, index=index, of=of) for index in range(of)]
    try:
        eventually(lambda: events_applied(system) > 0 and not running.running(), what="all is sent")
    finally:
        running.finish()
    eventually(lambda: applied(system) == ends(system), what="the whole log is applied")
    for worker in workers:
        worker.stop()


def test_other_numbers_of_actors_and_partitions_lose_and_double_nothing(
    system: System, crew: Crew, eventually: Eventually
) -> None:
    run_with(system, crew, eventually, of=1, events=(0, 1_500))
    run_with(system, crew, eventually, of=2, events=(1_500, 3_000))
    assert over_partitions(system) == recomputed(system)
    system = add_partitions(system, 6)
    run_with(system, crew, eventually, of=3, events=(3_000, 4_500))
    assert set(owners(system)) == set(range(6))
    assert over_partitions(system) == recomputed(system)
