"""The feature stage when partitions were added: nothing is counted twice or forgotten, though users moved."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest

from actors.feature import FeatureOperator
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import LeaseHeld
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.kafka.base import TopicPartition, record_batch
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.postgres import lease
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.features import live
from rtrec_ray.stores.features.live import move_users, read_unread, unread
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.progress import read_positions, read_stages
from tests.feature_place import pool

__all__ = ["pool"]

pytestmark = pytest.mark.server

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
BASE = 1_767_225_600_000
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
# User → partition, of two and of four. (Of six in place of four, some come from another one that was there before.)
OF_TWO, OF_FOUR = {5: 1, 7: 0, 9: 1}, {5: 0, 7: 2, 9: 3}


@pytest.fixture
def store(pool):
    found = PostgresFeatureStore(DEFINITIONS, pool=pool)
    with pool.transaction() as cursor:
        found.apply(cursor)
    return found


def view(event_id, *, ts=BASE, user=7):
    event = {"event_id": event_id, "event_type": "view", "ts": ts, "user_id": user, "item_id": 1}
    return {**event, "item_type": "product", "dwell_ms": 1}


def click(event_id, ts, *, user=7):
    event = {"event_id": event_id, "event_type": "click", "ts": ts, "user_id": user, "item_id": 10}
    return {**event, "item_type": "ad", "page_id": 3}


def retraction(event_id, of, *, ts=BASE):
    return {**of, "event_id": event_id, "event_type": "retract", "ts": ts, "retracts": of}


def profile(ts, country, *, user=7):
    return {"user_id": user, "ts": ts, "country": country, "gender": "f"}


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
    taken_back = retraction("r1", view("b"))
    commit(pool, store, 0, view("a"), view("b"))
    assert "duplicate" not in +commit(pool, store, 3, view("elsewhere"))
    with pool.transaction() as cursor:
        move_users(cursor, partitions=2, partition_of=lambda user: 0, ends_of=lambda topic, count: {})
        move_users(cursor, partitions=4, partition_of=lambda user: 1, ends_of=lambda topic, count: {0: 0, 1: 0})
    counts = commit(pool, store, 1, view("a"), taken_back, view("c"))
    assert counts["duplicate"] == 1
    assert counts["retracted"] == 1
    key = ViewKey(view="user_browse_5m", key="7")
    assert store.get([key], as_of_ms=None, now_ms=BASE + MINUTE)[key]["view"] == 3  # a, c, elsewhere


class Moving:
    """Tasks of some partitions each, over a log to which partitions were added while it was not read to its end."""

    def __init__(self, dsn, pool, store):
        self.pool, self.store = pool, store
        self.broker = MemoryBroker(partitions=4, now_ms=lambda: BASE + 2 * HOUR)
        self.postgres = PostgresOptions(dsn=dsn)

    def send(self, partition, *records, topic="behavior"):
        for each in records:
            self.broker.append(topic, partition, msgspec.json.encode(each))

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
            clock=ManualClock(now_ms=BASE + 2 * HOUR),
            first=partial(unread, partition_of=OF_FOUR.get),
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
        """Let there be more partitions than before."""

        def ends_of(topic, count):
            return {p: self.broker.end(TopicPartition(topic=topic, partition=p)) for p in range(count)}

        with self.pool.transaction() as cursor:
            move_users(cursor, partitions=before, partition_of=OF_TWO.get, ends_of=ends_of)
            move_users(cursor, partitions=after, partition_of=OF_FOUR.get, ends_of=ends_of)

    def counts(self):
        with self.pool.transaction() as cursor:
            return read_stages(cursor)["features"].counts

    def applied(self, topic="behavior"):
        with self.pool.transaction() as cursor:
            return sum(read_positions(cursor, task="features", topic=topic).values())

    def value(self, view, key, *, now_ms=BASE + MINUTE):
        ask = ViewKey(view=view, key=key)
        return self.store.get([ask], as_of_ms=None, now_ms=now_ms)[ask]

    def seen(self, minute_ms):
        """Partitions of which hashes of this minute are kept."""
        with self.pool.transaction() as cursor:
            cursor.execute("SELECT DISTINCT partition FROM features.seen WHERE minute_ms = %s", (minute_ms,))
            return {partition for (partition,) in cursor.fetchall()}


@pytest.fixture
def moving(dsn, pool, store):
    return Moving(dsn, pool, store)


def test_partitions_that_were_not_read_to_their_ends_are_first_one_after_another_and_count_each_event_once(
    moving, pool, eventually
):
    moving.send(0, view("old"))
    with moving.running(0, 1):
        eventually(lambda: moving.applied() == 1, what="it is applied")
    # The user's next events wait in 0, and what came since then in 1, which was there before too, and in 2.
    moving.send(0, view("a"), view("b"), view("c"))
    moving.send(1, view("a"), retraction("r1", view("b")), view("d"))
    moving.add(before=2, after=4)
    moving.send(2, view("c"), view("d"))
    with moving.running(1, 2, 3) as later:
        eventually(lambda: "partition 0" in later.trouble, what="it waits")
        assert moving.applied() == 1
        with pool.transaction() as cursor:
            assert read_unread(cursor) == {0: 4, 1: 3}
        with moving.running(0):
            eventually(lambda: moving.applied() == 9, what="all is applied")
            moving.send(0, view("d"))
            eventually(lambda: moving.applied() == 10, what="what comes then is applied")
            eventually(lambda: moving.counts().get("in") == 10, what="all is counted")
    assert moving.value("user_browse_5m", "7")["view"] == 4  # old, a, c, d
    assert (moving.counts()["duplicate"], moving.counts()["retracted"]) == (4, 1)


def test_clicks_that_waited_have_the_profiles_of_users_who_moved_and_profiles_that_waited_move_with_them(
    moving, eventually
):
    moving.send(0, profile(BASE - SECOND, "CN"), topic="profile")
    moving.send(0, click("c1", BASE))
    with moving.running(0, 1):
        eventually(lambda: (moving.applied(), moving.applied("profile")) == (1, 1), what="they are applied")
    moving.send(0, click("c2", BASE + SECOND))
    moving.send(0, profile(BASE + 5 * SECOND, "IN"), topic="profile")
    # Nothing else waits in this partition; of one user there are later clicks in one that is read before it.
    moving.send(1, profile(BASE, "IN", user=9), profile(BASE, "US", user=5), topic="profile")
    moving.send(0, click("c7", BASE + 10 * SECOND, user=5))
    moving.add(before=2, after=4)
    moving.send(2, click("c3", BASE + 10 * SECOND))
    moving.send(3, click("c4", BASE + 10 * SECOND, user=9))
    with moving.running(0, 1, 2, 3):
        eventually(lambda: (moving.applied(), moving.applied("profile")) == (5, 4), what="all is applied")
    tops = {country: moving.value("segment_page_top_ads", f"{country}|f|3") for country in ("CN", "IN", "US")}
    clicks = {country: found and found["top"] for country, found in tops.items()}
    assert clicks == {"CN": [[10, 2]], "IN": [[10, 2]], "US": [[10, 1]]}
    with moving.running(0, 1, 2, 3):  # loaded anew
        moving.send(2, click("c5", BASE + 20 * SECOND))
        moving.send(3, click("c6", BASE + 20 * SECOND, user=9))
        eventually(lambda: moving.applied() == 7, what="what comes then is applied")
    assert moving.value("segment_page_top_ads", "IN|f|3")["top"] == [[10, 4]]


def test_what_an_old_partition_has_counted_is_known_to_the_new_ones_until_none_of_them_asks(moving, eventually):
    moving.send(0, view("a"), view("b"))
    with moving.running(0, 1):
        eventually(lambda: moving.applied() == 2, what="they are applied")
    late = BASE + 50 * MINUTE
    moving.send(0, view("far", ts=late))
    moving.add(before=2, after=4)
    moving.send(2, retraction("r1", view("a"), ts=BASE + 11 * MINUTE), view("b"))
    with moving.running(0, 1, 2, 3):
        eventually(lambda: moving.counts().get("in") == 5, what="all is applied")
        assert (moving.counts()["retracted"], moving.counts()["duplicate"]) == (1, 1)
        assert moving.value("user_browse_5m", "7")["view"] == 1
        assert 0 in moving.seen(BASE), "partition 2 asks, though 0 does not"
        for partition in (1, 2, 3):
            moving.send(partition, view(f"far-{partition}", ts=late))
        eventually(lambda: moving.counts().get("in") == 8, what="all have come that far")
        moving.send(0, view("further", ts=late + 2 * MINUTE))
        eventually(lambda: 0 not in moving.seen(BASE), what="nobody asks any more")


def test_users_are_moved_some_at_a_time_in_a_session_that_may_not_stand_still(moving, pool, dsn, monkeypatch):
    rows = [(user, BASE, "CN", 0) for user in OF_FOUR]
    with pool.transaction() as cursor:
        cursor.executemany(
            "INSERT INTO features.profiles (user_id, ts_ms, country, partition) VALUES (%s, %s, %s, %s)", rows
        )
        cursor.execute("INSERT INTO features.unread (partition, next_offset) VALUES (0, 0)")
    monkeypatch.setattr(live, "_USERS_AT_ONCE", 1)

    def slow(user):
        threading.Event().wait(2.0)
        return OF_FOUR[user]

    with closing(connect(PostgresOptions(dsn=dsn), pipeline=True)) as owner, transaction(owner) as cursor:
        assert unread(cursor, partition_of=slow) == {}
    with pool.transaction() as cursor:
        cursor.execute("SELECT user_id, partition FROM features.profiles")
        assert dict(cursor.fetchall()) == OF_FOUR


def test_partitions_are_not_added_under_a_running_stage(moving, pool, dsn):
    moving.add(before=2, after=2)
    with closing(connect(PostgresOptions(dsn=dsn))) as owner:
        held = lease.take(owner, task="features", partition=0, owner="one", ttl_ms=60_000)
        with pytest.raises(LeaseHeld, match=r"there are 4 partitions, and the stage features still runs with 2"):
            moving.add(before=2, after=4)
        lease.release(owner, [held])
    moving.add(before=2, after=4)
