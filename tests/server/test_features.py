"""The feature stage on a real PostgreSQL: what a crash, a lock and a stopped keeper do."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import polars as pl
import psycopg2
import pytest

from actors.feature import FeatureKeeper, FeatureOperator, KeeperOptions
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import BeyondRetention, ListsOvertaken, StoreUnavailable
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.compute import TILE_SCHEMA
from rtrec_ray.features.definition import NOT_BEGUN_MS
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.kafka.base import TopicPartition, record_batch
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.postgres.connection import Pool, PostgresOptions, connect, transaction
from rtrec_ray.stores.features.followed import Known
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.live import move_users, read_unread, unread
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import TaskOutput
from rtrec_ray.stores.progress import Committed, read_stages, write_committed
from serving.stages import read_pipeline

pytestmark = pytest.mark.server

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
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
def pool(dsn):
    found = Pool(PostgresOptions(dsn=dsn), size=3)
    yield found
    found.close()


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


class Dying(FeatureOperator):
    """Fails before or after the writing of some commits; each commit writes two partitions."""

    commits = 0
    before = (1, 6, 15)
    after = (4, 9, 11)

    def write(self, cursor):
        Dying.commits += 1
        if Dying.commits in self.before:
            raise StoreUnavailable("killed before the write")
        counts = super().write(cursor)
        if Dying.commits in self.after:
            raise StoreUnavailable("killed after the write, before the commit")
        return counts


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
    dsn, broker, store, eventually
):
    run_pipeline(dsn, broker, store, Dying, eventually)
    values = store.get(KEYS, as_of_ms=BASE + 5 * MINUTE, now_ms=0)
    assert Dying.commits > max(Dying.before)
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
    dsn, broker, store, pool, eventually
):
    run_pipeline(dsn, broker, store, Dying, eventually)
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


def view(event_id):
    event = {"event_id": event_id, "event_type": "view", "ts": BASE, "user_id": 7, "item_id": 1, "item_type": "product"}
    return {**event, "dwell_ms": 1}


def commit(pool, store, partition, *events):
    """A task of the partition begins, takes the events and commits; answers what it counted."""
    operator = FeatureOperator(partition, store=store, latest_ms=lambda wall: wall, watermark=WatermarkOptions())
    values = [msgspec.json.encode(event) for event in events]
    with pool.transaction() as cursor:
        operator.restore(cursor, committed={})
        counts = operator.apply(record_batch("behavior", partition, values, first_offset=0, timestamp_ms=BASE)).counts
        operator.write(cursor)
    return counts


def test_an_event_and_its_retraction_are_known_in_the_partition_to_which_its_user_moved(store, pool):
    taken_back = {**view("r1"), "event_type": "retract", "retracts": view("b")}
    commit(pool, store, 0, view("a"), view("b"))
    assert "duplicate" not in +commit(pool, store, 3, view("elsewhere"))
    with pool.transaction() as cursor:
        move_users(cursor, partitions=PARTITIONS, partition_of=lambda user: 0, ends_of=lambda count: {})
        move_users(cursor, partitions=4, partition_of=lambda user: 1, ends_of=lambda count: {0: 0, 1: 0})
    counts = commit(pool, store, 1, view("a"), taken_back, view("c"))
    assert counts["duplicate"] == 1
    assert counts["retracted"] == 1
    key = ViewKey(view="user_browse_5m", key="7")
    assert store.get([key], as_of_ms=None, now_ms=BASE + MINUTE)[key]["view"] == 3  # a, c, elsewhere


class Moving:
    """Tasks of some partitions each, over a log to which partitions were added while it was not read to its end."""

    def __init__(self, dsn, pool, store):
        self.pool, self.store = pool, store
        self.broker = MemoryBroker(partitions=4, now_ms=lambda: BASE + HOUR)
        self.postgres = PostgresOptions(dsn=dsn)

    def send(self, partition, *events):
        for each in events:
            self.broker.append("behavior", partition, msgspec.json.encode(each))

    @contextmanager
    def running(self, *partitions):
        owner = f"of-{partitions[0]}"
        loop = TaskLoop(
            TaskOptions(task="features", partitions=partitions, owner=owner, commit_every_s=0.01, look_every_s=0.02),
            make_operator=partial(
                FeatureOperator, store=self.store, latest_ms=lambda wall: wall, watermark=WatermarkOptions()
            ),
            connect_consumer=self.broker.consumer,
            connect_store=partial(connect, self.postgres, application=owner, pipeline=True),
            clock=ManualClock(now_ms=BASE + HOUR),
            first=unread,
        )
        stop = threading.Event()
        worker = threading.Thread(target=loop.run, args=(stop,))
        worker.start()
        try:
            yield loop
        finally:
            stop.set()
            worker.join()

    def add(self, *, before, after):
        def ends_of(count):
            return {p: self.broker.end(TopicPartition(topic="behavior", partition=p)) for p in range(count)}

        with self.pool.transaction() as cursor:
            move_users(cursor, partitions=before, partition_of=lambda user: 0, ends_of=ends_of)
            move_users(cursor, partitions=after, partition_of=lambda user: 1, ends_of=ends_of)

    def counts(self):
        with self.pool.transaction() as cursor:
            return read_stages(cursor)["features"].counts


def test_partitions_that_were_not_read_to_their_ends_are_first_one_after_another_and_count_each_event_once(
    dsn, pool, store, eventually
):
    moving = Moving(dsn, pool, store)
    moving.send(0, view("old"))
    with moving.running(0, 1):
        eventually(lambda: applied(dsn) == 1, what="it is applied")
    # The user's next events wait in 0, and what came since then in 1, which was there before too, and in 2.
    taken_back = {**view("r1"), "event_type": "retract", "retracts": view("b")}
    moving.send(0, view("a"), view("b"), view("c"))
    moving.send(1, view("a"), taken_back, view("d"))
    moving.add(before=2, after=4)
    moving.send(2, view("c"), view("d"))
    with moving.running(1, 2, 3) as later:
        eventually(lambda: "partition 0" in later.trouble, what="it waits")
        assert applied(dsn) == 1
        with pool.transaction() as cursor:
            assert read_unread(cursor) == {0: 4, 1: 3}
        with moving.running(0):
            eventually(lambda: applied(dsn) == 9, what="all is applied")
            moving.send(0, view("d"))
            eventually(lambda: applied(dsn) == 10, what="what comes then is applied")
            eventually(lambda: moving.counts().get("in") == 10, what="all is counted")
    key = ViewKey(view="user_browse_5m", key="7")
    assert store.get([key], as_of_ms=None, now_ms=BASE + MINUTE)[key]["view"] == 4  # old, a, c, d
    assert (moving.counts()["duplicate"], moving.counts()["retracted"]) == (4, 1)
