"""The feature stage on a real PostgreSQL: what a crash, a lock and a stopped keeper do."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import polars as pl
import psycopg2
import pytest

import rtrec_ray.stores.features.postgres as postgres_module
from actors.feature import FeatureKeeper, FeatureOperator, KeeperOptions
from actors.task import TaskLoop, TaskOptions
from configs.settings import Settings
from rtrec_ray.app.pipeline import Share, make_work
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import BeyondRetention, ListsOvertaken, StoreUnavailable
from rtrec_ray.events import PROFILE_SCHEMA
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.compute import TILE_SCHEMA
from rtrec_ray.features.definition import NOT_BEGUN_MS
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.profiles import ProfileVersions
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.samples.file import load_definition as load_samples
from rtrec_ray.stores.features.followed import Known
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.live import unread
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import TaskOutput
from rtrec_ray.stores.progress import Committed, write_committed
from serving.stages import read_pipeline
from tests.feature_place import pool

__all__ = ["pool"]

pytestmark = pytest.mark.server

CONFIGS = Path(__file__).parents[2] / "configs"
DEFINITIONS = load_definitions(CONFIGS / "features.yaml")
FIRST_SHARE = Share(stage="features", index=0, of=1, partitions=1)
BASE = 1_767_225_600_000
MINUTE, HOUR = 60_000, 3_600_000
PARTITIONS, EVENTS = 2, 3_000
PROFILED = range(1, 20, 4)  # the users with odd numbers click
KEYS = [
    *(ViewKey(view="user_browse_5m", key=str(user)) for user in range(20)),
    *(ViewKey(view="category_top_items_10m", key=str(category)) for category in range(3)),
    ViewKey(view="top_viewed_30m", key="ad"),
    ViewKey(view="segment_page_top_ads", key="CN|f|1"),
]


@pytest.fixture
def store(pool):
    found = PostgresFeatureStore(DEFINITIONS, pool=pool)
    with pool.transaction() as cursor:
        found.apply(cursor)
        for partition in range(PARTITIONS):
            found.begin(cursor, partition=partition, next_offset=0, complete_from_ms=None)
    return found


@pytest.fixture
def broker():
    """Two partitions of views and clicks on ads, a third of them sent twice, and some users' profiles."""
    found = MemoryBroker(partitions=PARTITIONS, now_ms=lambda: BASE + HOUR)
    producer = found.producer()
    for user in PROFILED:
        profile = {"user_id": user, "ts": BASE, "country": "CN", "gender": "f"}
        producer.send("profile", key=b"%d" % user, value=msgspec.json.encode(profile))
    for number in range(EVENTS):
        event = {
            "event_id": f"e{number}",
            "event_type": ("view", "click")[number % 2],
            "ts": BASE + 1_000 + number * 100,
            "user_id": number % 20,
            "item_id": number % 7,
            "item_type": "ad",
            "category_id": number % 3,
            "page_id": 1,
            "dwell_ms": 3,
        }
        for _ in range(1 + (number % 3 == 0)):
            producer.send("behavior", key=b"%d" % event["user_id"], value=msgspec.json.encode(event))
    return found


@pytest.fixture
def dying():
    """Operators that fail before or after the writing of some commits, which they count together; each commit writes
    two partitions.
    """
    before, after = (1, 6, 15), (4, 9, 11)

    class Dying(FeatureOperator):
        commits = 0

        def write(self, cursor):
            Dying.commits += 1
            if Dying.commits in before:
                raise StoreUnavailable("killed before the write")
            counts = super().write(cursor)
            if Dying.commits in after:
                raise StoreUnavailable("killed after the write, before the commit")
            return counts

    yield Dying
    assert Dying.commits > max(before + after), "each of the failures came"


def run_pipeline(dsn, broker, store, make, eventually):
    options = TaskOptions(
        task="features",
        partitions=tuple(range(PARTITIONS)),
        owner="one",
        commit_every_s=0.01,
        max_poll_records=200,
        backoff=Backoff(first_s=0.1, longest_s=0.1),
    )
    loop = TaskLoop(
        options,
        make_operator=lambda partition: make(
            partition,
            store=store,
            latest_ms=lambda wall: wall,
            watermark=WatermarkOptions(),
        ),
        connect_consumer=broker.consumer,
        connect_store=partial(connect, PostgresOptions(dsn=dsn), application="one", pipeline=True),
        clock=ManualClock(now_ms=BASE + HOUR),
    )
    stop = threading.Event()
    worker = threading.Thread(target=loop.run, args=(stop,))
    worker.start()
    try:
        eventually(lambda: applied(dsn) == len(broker.records("behavior")), what="the log is applied")
    finally:
        stop.set()
        worker.join()


def applied(dsn):
    connection = connect(PostgresOptions(dsn=dsn))
    with transaction(connection) as cursor:
        cursor.execute("SELECT coalesce(sum(next_offset), 0) FROM meta.positions WHERE topic = 'behavior'")
        (total,) = cursor.fetchone()
    connection.close()
    return total


def test_a_run_that_fails_in_its_commits_gives_the_values_and_counts_of_one_that_does_not(
    dsn, broker, store, dying, eventually
):
    run_pipeline(dsn, broker, store, dying, eventually)
    values = store.get(KEYS, as_of_ms=BASE + 5 * MINUTE, now_ms=0)
    of_user = [values[ViewKey(view="user_browse_5m", key=str(user))] for user in range(20)]
    within = [number for number in range(EVENTS) if 1_000 + number * 100 < 5 * MINUTE]
    assert [value["view"] + value["click"] for value in of_user] == [
        sum(number % 20 == user for number in within) for user in range(20)
    ]
    segment = values[ViewKey(view="segment_page_top_ads", key="CN|f|1")]
    assert sum(n for _, n in segment["top"]) == sum(number % 20 in PROFILED for number in within)
    assert sum(n for _, n in values[ViewKey(view="top_viewed_30m", key="ad")]["top"]) == sum(
        number % 2 == 0 for number in within
    )


def kept(pool):
    """View → rows, bytes, counted in the tiles themselves."""
    with pool.transaction() as cursor:
        cursor.execute(
            "SELECT name || '@' || version, count(t.view_id), coalesce(sum(octet_length(key) + octet_length(state)), 0)"
            " FROM features.views LEFT JOIN features.tiles t USING (view_id) WHERE live GROUP BY view_id"
        )
        return {view: (rows, int(size)) for view, rows, size in cursor.fetchall()}


def counted(store):
    return {view: (size.rows, size.bytes) for view, size in store.sizes().items()}


def test_what_a_view_keeps_is_counted_though_commits_fail_hours_expire_and_views_are_dropped(
    dsn, broker, store, dying, pool, eventually
):
    run_pipeline(dsn, broker, store, dying, eventually)
    assert counted(store) == kept(pool)
    assert kept(pool)["user_browse_5m@1"][0] > 0
    assert (
        read_pipeline(pool, now_ms=BASE)
        .text()
        .decode()
        .count(f'rtrec_view_rows{{view="user_browse_5m@1"}} {kept(pool)["user_browse_5m@1"][0]:.1f}')
    )
    with pool.transaction() as cursor:
        far = Committed(next_offset={}, max_ts_ms={}, watermark_ms=BASE + 9 * HOUR)
        for partition in range(PARTITIONS):
            write_committed(cursor, task="history", partition=partition, at=far, lag=0, counts={})
        tiles = {
            "top_queries_30m@1": pl.DataFrame([("all", BASE + 9 * HOUR, '{"q":1}')], schema=TILE_SCHEMA, orient="row")
        }
        store.append(cursor, TaskOutput(partition=0, watermark_ms=BASE + 9 * HOUR, next_offset=EVENTS, tiles=tiles))
    assert store.drop_expired() > 0
    assert counted(store) == kept(pool)
    assert kept(pool)["user_browse_5m@1"] == (0, 0)
    assert counted(store)["top_queries_30m@1"] == (1, len("all") + len('{"q":1}'))
    store.drop_view("top_queries_30m@1")
    assert counted(store) == kept(pool)


class Interrupted:
    """A cursor of whose session something else becomes live after some statements, if it can within half a second."""

    def __init__(self, cursor, *, after, happens):
        self._cursor, self._left = cursor, after
        self.thread = threading.Thread(target=happens)

    def __getattr__(self, name):
        return getattr(self._cursor, name)

    def execute(self, *statement):
        self._cursor.execute(*statement)
        self._left -= 1
        if self._left == 0:
            self.thread.start()
            self.thread.join(0.5)


@pytest.mark.parametrize(
    ("partition", "after"),
    [(0, after) for after in range(1, 3)] + [(PARTITIONS, after) for after in range(1, 7)],
)
def test_a_view_that_becomes_live_while_a_partition_begins_counts_with_a_start_or_not_yet(
    store, pool, partition, after
):
    """Of the partitions one has begun before, and looks whether that is all; the other one has not."""
    newer = PostgresFeatureStore(replace(DEFINITIONS, views=(replace(DEFINITIONS.views[0], version=9),)), pool=pool)

    def apply():
        with pool.transaction() as cursor:
            newer.apply(cursor)

    with pool.transaction() as cursor:
        interrupted = Interrupted(cursor, after=after, happens=apply)
        live = store.begin(interrupted, partition=partition, next_offset=7, complete_from_ms=BASE)
    interrupted.thread.join()
    with pool.transaction() as cursor:
        cursor.execute(
            "SELECT name || '@' || version FROM features.views JOIN features.view_starts USING (view_id)"
            " WHERE partition = %s",
            (partition,),
        )
        begun = {view for (view,) in cursor.fetchall()}
        assert {view.id for view in live.definitions.views} == begun
        known = f"{DEFINITIONS.views[0].name}@9" in begun
        assert known != store.changed(cursor, since=live.change), "what is not known yet is seen by the next commit"


def test_a_view_is_dropped_whatever_its_tiles_are_locked_by(dsn, store, pool):
    frames = {"top_queries_30m@1": pl.DataFrame([("all", BASE, '[1,["a",1]]')], schema=TILE_SCHEMA, orient="row")}
    with pool.transaction() as cursor:
        store.append(cursor, TaskOutput(partition=0, watermark_ms=BASE, tiles=frames))
    busy = connect(PostgresOptions(dsn=dsn))
    with transaction(busy) as cursor:
        cursor.execute("SELECT FROM features.tiles FOR UPDATE")
        cursor.execute("SELECT FROM features.sizes FOR UPDATE")
        assert cursor.rowcount == 1
        store.drop_view("top_queries_30m@1")
        assert "top_queries_30m@1" not in store.sizes()
    busy.close()


def test_a_reader_that_holds_a_lock_delays_the_dropping_of_tiles_but_is_not_waited_for(dsn, store, pool):
    with pool.transaction() as cursor:
        cursor.execute("SELECT features.ensure_tiles(ARRAY[0, 1, 2])")
        cursor.execute("INSERT INTO features.partitions VALUES (0, %s)", (BASE,))
    reader = connect(PostgresOptions(dsn=dsn))
    with transaction(reader) as cursor:
        cursor.execute("SELECT count(*) FROM features.tiles")
        assert store.drop_expired() == 0
    reader.close()
    assert store.drop_expired() == 3


def test_an_hour_that_is_dropped_while_it_is_written_to_ends_the_session_and_not_the_process(pool, store, monkeypatch):
    frames = {"top_queries_30m@1": pl.DataFrame([("all", BASE, '[1,["a",1]]')], schema=TILE_SCHEMA, orient="row")}
    output = TaskOutput(partition=0, watermark_ms=BASE, tiles=frames)

    def drop(*args, **options):
        with pool.transaction() as cursor:
            cursor.execute(f"DROP TABLE features.tiles_{BASE // HOUR}")

    with pool.transaction() as cursor:
        store.append(cursor, output)
    monkeypatch.setattr(postgres_module, "add_sizes", drop)
    with pytest.raises(StoreUnavailable, match="dropped while"), pool.transaction() as cursor:
        store.append(cursor, output)
    monkeypatch.undo()
    with pool.transaction() as cursor:
        assert store.append(cursor, output).rows == 1


def test_a_keeper_that_stands_still_in_a_transaction_stops_no_session_from_beginning(dsn, store, tmp_path):
    system = System(
        settings=Settings(),
        directory=tmp_path,
        addresses=Addresses(postgres=dsn, kafka="127.0.0.1:1"),
        features=DEFINITIONS,
        samples=load_samples(CONFIGS / "samples.yaml"),
    )
    (keeper,) = [work for work in make_work(system, FIRST_SHARE) if isinstance(work, FeatureKeeper)]

    begun = []

    def stands_still(session):
        with closing(keeper._store._pool) as pool, pool.transaction() as cursor:
            cursor.execute("SELECT FROM features.settings FOR UPDATE")
            with transaction(session) as other:
                begun.append(unread(other, partition_of=lambda user: 0))
            cursor.execute("SELECT")

    with closing(connect(PostgresOptions(dsn=dsn))) as session, pytest.raises(StoreUnavailable):
        stands_still(session)
    assert begun == [{}]


def test_only_profiles_that_an_event_may_have_are_loaded(pool, store):
    versions = [(user, BASE + minute * MINUTE, f"{minute}", None, None, None) for user in (1, 2) for minute in range(9)]
    profiles = pl.DataFrame(versions, schema=PROFILE_SCHEMA, orient="row")
    with pool.transaction() as cursor:
        store.append(cursor, TaskOutput(partition=1, watermark_ms=None, profiles=profiles))
        assert store.load(cursor, partition=1).profiles.height == 18
        parts = {"watermark_ms": BASE + HOUR, "seen_from_ms": BASE + 6 * MINUTE}
        store.append(cursor, TaskOutput(partition=1, **parts))
        loaded = store.load(cursor, partition=1).profiles
        assert store.load(cursor, partition=0).profiles.is_empty()
    found = ProfileVersions(profiles, asked_from_ms=BASE + 6 * MINUTE)
    assert loaded.sort("user_id", "ts").equals(found.of(pl.Series([1, 2])).sort("user_id", "ts"))
    assert loaded["country"].to_list() == ["6", "7", "8"] * 2


def test_two_writers_may_need_the_same_new_hour(pool, eventually):
    def make_hours(cursor):
        cursor.execute("SELECT features.ensure_tiles(ARRAY[-1, 5, 6])")

    def waiting(cursor):
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone() == (1,)

    failed = []

    def second():
        try:
            with pool.transaction() as cursor:
                make_hours(cursor)
        except psycopg2.Error as error:
            failed.append(error)

    with pool.transaction() as cursor:
        make_hours(cursor)
        other = threading.Thread(target=second)
        other.start()
        eventually(lambda: waiting(cursor), what="the second one waits for the first")
    other.join(timeout=120)
    assert not failed
    with pool.transaction() as cursor:
        make_hours(cursor)
        cursor.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'features.tiles'::regclass")
        assert cursor.fetchone() == (3,)


def test_the_last_partition_tells_readers_although_others_begin_at_the_same_time(pool, store, eventually):
    for partition in range(PARTITIONS):
        with pool.transaction() as cursor:
            store.append(cursor, TaskOutput(partition=partition, watermark_ms=BASE))
    view = replace(DEFINITIONS.views[0], version=2)
    with pool.transaction() as cursor:
        PostgresFeatureStore(replace(DEFINITIONS, views=(view,)), pool=pool).apply(cursor)
    store.refresh()
    assert store.definitions.complete_from_ms == {view.id: NOT_BEGUN_MS}

    def begin(cursor, partition):
        PostgresFeatureStore(DEFINITIONS, pool=pool).begin(
            cursor, partition=partition, next_offset=1, complete_from_ms=2
        )

    def begin_second():
        with pool.transaction() as cursor:
            begin(cursor, 1)

    def waiting(cursor):
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone() != (0,) or not second.is_alive()

    second = threading.Thread(target=begin_second)
    with pool.transaction() as cursor:
        begin(cursor, 0)
        second.start()
        eventually(lambda: waiting(cursor), what="the second one waits for the first")
    second.join()
    assert store.refresh()
    assert store.definitions.complete_from_ms == {view.id: 2}


def test_lists_of_a_keeper_that_stands_still_are_not_served(pool, store):
    key = ViewKey(view="top_queries_30m", key="all")
    TopLists(store).rebuild(now_ms=BASE)
    with pool.transaction() as cursor:
        cursor.execute(
            "INSERT INTO features.top_lists SELECT view_id, 'all', '{\"top\": [[\"old\", 1]]}' FROM features.views "
            "WHERE name = 'top_queries_30m'"
        )
    assert store.get([key], as_of_ms=None, now_ms=BASE, cached=True) == {key: {"top": [["old", 1]]}}
    with pool.transaction() as cursor:
        cursor.execute("UPDATE features.top_list_rounds SET rebuilt_at = rebuilt_at - interval '2 minutes'")
    assert store.get([key], as_of_ms=None, now_ms=BASE, cached=True) == {key: None}


def test_tiles_and_lists_come_in_one_round_trip(pool, store, monkeypatch):
    asks = [ViewKey(view="user_browse_5m", key="1"), ViewKey(view="top_queries_30m", key="all")]
    TopLists(store).rebuild(now_ms=BASE)
    store.get(asks, as_of_ms=None, now_ms=BASE)  # knows the ids of the views from now on
    statement, sent = pool.statement, []

    class Counting:
        def __init__(self, cursor):
            self._cursor = cursor

        def execute(self, *given):
            assert self._cursor.connection.autocommit
            sent.append(given)
            self._cursor.execute(*given)

        def fetchall(self):
            return self._cursor.fetchall()

    @contextmanager
    def counted():
        with statement() as cursor:
            yield Counting(cursor)

    monkeypatch.setattr(pool, "statement", counted)
    monkeypatch.setattr(pool, "transaction", None)
    store.get(asks, as_of_ms=None, now_ms=BASE, cached=True)
    assert len(sent) == 1


def test_a_look_is_of_one_moment_whatever_is_written_between_its_statements(pool, store, monkeypatch):
    lists, commits, transaction = TopLists(store), [], pool.transaction

    def commit() -> None:
        """One more search of one more user, in the tiles and in the lists."""
        commits.append(None)
        rows = {"user_browse_5m@1": ("1", BASE, "[1]"), "top_queries_30m@1": ("all", BASE, '[1,["q",1]]')}
        frames = {name: pl.DataFrame([row], schema=TILE_SCHEMA, orient="row") for name, row in rows.items()}
        with transaction() as cursor:
            store.append(cursor, TaskOutput(partition=0, watermark_ms=BASE, next_offset=len(commits), tiles=frames))
        lists.rebuild(now_ms=BASE)

    class Interrupted:
        def __init__(self, cursor):
            self._cursor = cursor

        def execute(self, *given):
            self._cursor.execute(*given)
            with monkeypatch.context() as patch:
                patch.setattr(pool, "transaction", transaction)
                commit()

        def __getattr__(self, name):
            return getattr(self._cursor, name)

    @contextmanager
    def interrupted():
        with transaction() as cursor:
            yield Interrupted(cursor)

    store.refresh()
    for _ in range(3):
        commit()
    monkeypatch.setattr(pool, "transaction", interrupted)
    news = store.news(Known(), from_ms=BASE, most_rows=100)
    last, seen = news.rounds["top_queries_30m@1"], news.offsets[0]
    assert last.point.offsets == news.offsets
    assert last.values == {"all": {"top": [["q", seen]]}}
    assert len(news.rows["user_browse_5m@1"]) == seen < len(commits)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ListsOvertaken("by another")])
def test_the_keeper_begins_anew_and_says_why_when_a_round_failed(pool, store, eventually, caplog, error):
    class Away:
        """The store, but every third round fails."""

        def __init__(self):
            self.rounds = []

        definitions = DEFINITIONS

        def refresh(self):
            return False

        def list_rows(self, *, after, from_ms):
            self.rounds.append(after)
            if len(self.rounds) % 3 == 0:
                raise error
            return store.list_rows(after=after, from_ms=from_ms)

        def list_rounds(self):
            return store.list_rounds()

        def put_lists(self, rounds):
            store.put_lists(rounds)

        def drop_expired(self):
            return store.drop_expired()

    with pool.transaction() as cursor:
        store.append(cursor, TaskOutput(partition=0, watermark_ms=BASE, next_offset=5))
    away, stop = Away(), threading.Event()
    keeper = FeatureKeeper(
        away,
        clock=ManualClock(now_ms=BASE),
        options=KeeperOptions(lists_every_s=0.01, expiry_every_s=0.02),
    )
    thread = threading.Thread(target=keeper.run, args=(stop,))
    thread.start()
    eventually(lambda: len(away.rounds) >= 6, what="six rounds")
    stop.set()
    thread.join()
    assert away.rounds[:6] == [None, {0: 5}, {0: 5}] * 2
    assert {record.cause for record in caplog.records if record.msg == "keeper_waits"} == {error.line()}


def test_tiles_are_kept_until_the_history_has_their_events(pool, store):
    frames = {"top_queries_30m@1": pl.DataFrame([("all", BASE, '[1,["a",1]]')], schema=TILE_SCHEMA, orient="row")}
    ask = ViewKey(view="top_queries_30m", key="all")

    def history_comes_to(partition, watermark_ms, next_offset=0):
        with pool.transaction() as cursor:
            at = Committed(watermark_ms=watermark_ms, next_offset={"behavior": next_offset})
            write_committed(cursor, task="history", partition=partition, at=at, lag=0, counts={})

    def nothing_is_gone():
        assert store.drop_expired() == 0
        return store.get([ask], as_of_ms=BASE + MINUTE, now_ms=0) == {ask: {"top": [["a", 2]]}}

    for partition in (0, 1):
        with pool.transaction() as cursor:
            far = {"watermark_ms": BASE + 30 * HOUR, "next_offset": 7}
            store.append(cursor, TaskOutput(partition=partition, **far, tiles=frames))
    assert nothing_is_gone()
    history_comes_to(0, BASE + 30 * HOUR)
    assert nothing_is_gone(), "of the other partition the history has nothing yet"
    history_comes_to(1, BASE, 6)
    assert nothing_is_gone()
    history_comes_to(1, BASE, 7)
    assert store.drop_expired() == 1, "it has all, though it does not know that time went on"
    with pytest.raises(BeyondRetention):
        store.get([ask], as_of_ms=BASE + MINUTE, now_ms=0)
    with pool.transaction() as cursor:
        store.append(cursor, TaskOutput(partition=2, watermark_ms=BASE, next_offset=9, tiles={}))
    assert store.drop_expired() == 0
    with pytest.raises(BeyondRetention):  # what retention has come to stays
        store.get([ask], as_of_ms=BASE + MINUTE, now_ms=0)
