"""Who follows the tiles takes up what commits added, however long he was away and however much that was."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

import actors.feature as feature_module
import rtrec_ray.stores.features.near as near_module
from actors.feature import FeatureKeeper, KeeperOptions
from rtrec_ray.clock import ManualClock
from rtrec_ray.features.definition import Aggregation, Condition, Definitions, FeatureView
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.copy import copied_bytes, copy_bytes
from rtrec_ray.stores.features import tile_log
from rtrec_ray.stores.features.followed import LOGGED_S, Known
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import ListRows, Live, TaskOutput
from tests.feature_place import BASE, HOUR, MINUTE, SECOND, Place, tiles

pytestmark = pytest.mark.server

COUNT = Aggregation(name="clicks", kind="count")
TOP = Aggregation(name="top", kind="top_k", field="item_id", limit=2)


def view(name: str, aggregation: Aggregation, *, cached: bool = False) -> FeatureView:
    return FeatureView(
        name=name,
        version=1,
        keys=(("user_id",),),
        window_ms=MINUTE,
        source=(Condition(field="user_id"),),
        aggregations=(aggregation,),
        cached=cached,
    )


VIEWS = (view("user", COUNT), view("other", COUNT), view("listed", TOP, cached=True))
DEFINITIONS = Definitions(tile_ms=10 * SECOND, horizon_ms=20 * MINUTE, retention_ms=HOUR, views=VIEWS)
KEYS = [ViewKey(view=each.name, key=str(key)) for each in VIEWS for key in range(4)]


class Written:
    """A store that commits fill, and how long ago they say they were."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._place = Place(pool)
        self.offset = 0
        self.store: PostgresFeatureStore = self._place.store(DEFINITIONS)

    def commit(self, *, partition: int = 0, **views: list[tuple[str, int, str]]) -> None:
        self.offset += 1
        found = {f"{name}@1": tiles(*rows) for name, rows in views.items()}
        self._place.append(self.store, partition=partition, next_offset=self.offset, tiles=found)

    def pass_time(self, seconds: int) -> None:
        with self._pool.transaction() as cursor:
            cursor.execute("UPDATE features.tile_log SET logged_at = logged_at - %s * interval '1 s'", [seconds])

    def logged(self) -> list[int]:
        with self._pool.transaction() as cursor:
            cursor.execute("SELECT next_offset FROM features.tile_log ORDER BY next_offset")
            return [offset for (offset,) in cursor.fetchall()]

    def listed(self, after: dict[int, int] | None) -> ListRows:
        return self.store.list_rows(after=after, from_ms=BASE)


@pytest.fixture
def pool(dsn: str) -> Iterator[Pool]:
    with closing(Pool(PostgresOptions(dsn=dsn), size=2)) as found:
        yield found


@pytest.fixture
def written(pool: Pool) -> Written:
    return Written(pool)


def some_of(rows: ListRows) -> dict[str, list]:
    return {view_id: sorted(found) for view_id, found in rows.rows.items() if found}


def test_what_came_behind_an_offset_is_answered_from_the_log_alone(written, pool):
    written.commit(listed=[("1", BASE, "[1,[7,1]]")], user=[("1", BASE, "[1,1]")])
    written.commit(listed=[("2", BASE - SECOND, "[1,[8,1]]"), ("3", BASE, "[1,[9,1]]")], partition=1)
    with pool.transaction() as cursor:
        cursor.execute("DELETE FROM features.tiles")
    read = written.listed({0: 1})
    assert some_of(read) == {"listed@1": [("3", BASE, "[1,[9,1]]")]}, "of partition 0 nothing, of times before none"
    assert (read.offsets, read.whole) == ({0: 1, 1: 2}, False)


def test_the_log_keeps_some_seconds_and_says_from_where_it_has_all(written):
    for _ in range(3):
        written.commit(user=[("1", BASE, "[1,1]")], listed=[("1", BASE, "[1,[7,1]]")])
    written.pass_time(LOGGED_S + 1)
    written.commit(user=[("1", BASE, "[1,1]")])
    assert written.logged() == [4]
    assert not written.listed({0: 3}).whole
    assert written.listed({0: 2}).whole
    assert written.listed({0: 2}).rows == {"listed@1": [("1", BASE, "[1,[7,1]]")] * 3}


def test_a_partition_forgets_what_is_its_own_and_no_other_does(written):
    written.commit(user=[("1", BASE, "[1,1]")], partition=0)
    written.commit(user=[("1", BASE, "[1,1]")], partition=1)
    written.pass_time(LOGGED_S + 1)
    written.commit(partition=1)
    assert written.logged() == [1]
    assert not written.listed({0: 0, 1: 2}).whole
    assert written.listed({0: 0, 1: 1}).whole
    assert written.listed({0: 0}).whole, "a partition that is not known has been logged from its beginning"


def test_more_than_there_is_room_for_is_not_taken_out_of_the_log(written):
    def news(most_rows: int):
        return written.store.news(Known(offsets={0: 1}), from_ms=BASE, most_rows=most_rows)

    written.commit(user=[("1", BASE, "[1,1]")])
    for key in ("2", "3"):
        written.commit(user=[(key, BASE, "[1,1]")], other=[(key, BASE, "[1,1]")])
    assert (news(4).height, news(4).lost) == (4, False)
    assert (news(3).height, news(3).lost) == (0, True)


@pytest.mark.parametrize("seed", range(4))
def test_followers_that_were_away_come_to_what_the_store_says(written, seed):
    rng, clock = random.Random(seed), ManualClock(now_ms=BASE)
    reader = written.store
    near, lists = NearFeatures(reader, clock=clock, most_rows=1_000, longest_s=600.0), TopLists(reader)
    for _ in range(50):
        now_ms = clock.now_ms()
        for _ in range(rng.randint(0, 3)):
            start = (now_ms - rng.choice([0, 5, 30]) * SECOND) // 10_000 * 10_000
            key, n = str(rng.randint(0, 3)), rng.choice([1, 2, -1])
            rows = [(key, start, f"[{n},{n}]")]
            listed = [(key, start, f"[{n},[{rng.randint(1, 4)},{n}]]")]
            written.commit(partition=rng.randint(0, 2), user=rows, other=rows, listed=listed)
        written.pass_time(rng.choice([0, 0, LOGGED_S // 2, LOGGED_S + 1]))
        clock.advance(rng.choice([0, 3, 10]) * SECOND)
        if rng.random() < 0.3:
            lists.rebuild(now_ms=clock.now_ms())
            near.refresh()
            found = near.read(KEYS, now_ms=clock.now_ms(), cached=False).values
            assert found == reader.read(KEYS, now_ms=clock.now_ms(), cached=False).values
            kept = near.read(KEYS, now_ms=clock.now_ms(), cached=True).values
            assert kept == found, "the lists are what the tiles say"


def test_a_commit_that_is_too_long_or_of_somebody_who_logs_nothing_is_a_gap(written, pool, monkeypatch):
    def news(after: int):
        found = written.store.news(Known(offsets={0: after}), from_ms=BASE, most_rows=100)
        return found.offsets[0], found.lost, found.height

    one = [("1", BASE, "[1,1]")]
    written.commit(user=one)
    monkeypatch.setattr(tile_log, "_MOST_BYTES", 10)
    written.commit(user=one)
    monkeypatch.undo()
    assert news(1) == (2, True, 0)
    assert news(2) == (2, False, 0)
    written.commit(user=one)
    assert [news(1), news(2)] == [(3, True, 0), (3, False, 1)]
    with pool.transaction() as cursor:  # as a version without the log does
        cursor.execute("UPDATE features.partitions SET next_offset = 4")
    assert news(3) == (4, True, 0)
    written.offset = 4
    written.commit(user=one)
    assert [news(3), news(4)] == [(5, True, 0), (5, False, 1)]
    assert written.logged() == [5], "nobody asks for what was logged before a gap"


def test_a_look_by_other_views_than_are_live_tells_to_begin_anew(written, pool):
    written.commit(user=[("1", BASE, "[1,1]")])
    assert not written.store.news(Known(), from_ms=BASE, most_rows=100).lost
    other = PostgresFeatureStore(replace(DEFINITIONS, views=(replace(VIEWS[0], version=2),)), pool=pool)
    with pool.transaction() as cursor:
        other.apply(cursor)
    assert written.store.news(Known(), from_ms=BASE, most_rows=100).lost
    written.store.refresh()
    assert not written.store.news(Known(), from_ms=BASE, most_rows=100).lost


class Owners:
    """Two partitions in one or two actors, each of which learns of other views when it commits."""

    def __init__(self, pool: Pool, each: FeatureView, *, actors: int) -> None:
        self._pool = pool
        self._stores = [of_one(pool, each) for _ in range(actors)]
        with pool.transaction() as cursor:
            self._stores[0].apply(cursor)
            self._lives = [self._begin(cursor, partition, 0, None) for partition in (0, 1)]

    def commit(self, partition: int, next_offset: int, state: str) -> None:
        live = self._lives[partition]
        parts = {"partition": partition, "watermark_ms": BASE, "next_offset": next_offset, "numbers": live.numbers}
        output = TaskOutput(tiles={"user@1": tiles(("1", BASE, state))}, **parts)
        with self._pool.transaction() as cursor:
            if self._store(partition).append(cursor, output).change != live.change:
                self._lives[partition] = self._begin(cursor, partition, next_offset, BASE)

    def _store(self, partition: int) -> PostgresFeatureStore:
        return self._stores[partition % len(self._stores)]

    def _begin(self, cursor, partition: int, next_offset: int, complete_from_ms: int | None) -> Live:
        at = {"next_offset": next_offset, "complete_from_ms": complete_from_ms}
        return self._store(partition).begin(cursor, partition=partition, **at)


def of_one(pool: Pool, each: FeatureView) -> PostgresFeatureStore:
    return PostgresFeatureStore(replace(DEFINITIONS, views=(each,)), pool=pool)


@pytest.mark.parametrize("actors", [1, 2])
def test_a_view_that_is_dropped_and_applied_again_has_nothing_of_before(pool, actors):
    def read() -> list:
        near.refresh()
        return [each.read(KEYS[1:2], now_ms=BASE, cached=False).values[KEYS[1]] for each in (near, reader)]

    owners, reader = Owners(pool, view("user", COUNT), actors=actors), of_one(pool, view("user", COUNT))
    near = NearFeatures(reader, clock=ManualClock(now_ms=BASE), most_rows=100, longest_s=600.0)
    for partition in (0, 1):
        owners.commit(partition, 10, "[1,1]")
    assert read() == [{"clicks": 2}] * 2
    reader.drop_view("user@1")
    with pool.transaction() as cursor:
        of_one(pool, view("user", COUNT)).apply(cursor)
    for partition in (0, 1):
        owners.commit(partition, 20, "[1,1]")  # computed by what was live before
        assert read() == [None, None]
    owners.commit(1, 30, "[1,1]")
    assert read() == [{"clicks": 1}] * 2


def test_who_follows_pauses_for_less_long_than_is_logged(written, monkeypatch, eventually):
    class Slow:
        def __init__(self) -> None:
            self.looks = 0

        def __getattr__(self, name: str):
            self.looks += name in ("news", "list_rows")
            return getattr(written.store, name)

    monkeypatch.setattr(near_module, "_BUSY", 1e-9)
    monkeypatch.setattr(near_module, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(feature_module, "LONGEST_PAUSE_S", 0.05)
    clock, stop = ManualClock(now_ms=BASE), threading.Event()
    near, store = NearFeatures(Slow(), clock=clock, most_rows=10), Slow()
    keeper = FeatureKeeper(store, clock=clock, options=KeeperOptions(lists_every_s=0.01, busy_share=1e-9))
    threads = [
        threading.Thread(target=near.run, args=(stop,), kwargs={"every_s": 0.01}),
        threading.Thread(target=keeper.run, args=(stop,)),
    ]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: near._store.looks > 3 and store.looks > 3, what="both look again and again")
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_bytes_go_in_and_come_out_as_they_are(pool):
    rows = [(1, -(1 << 40), True, bytes(range(256)) * 40), (-2, 5, False, b"")]
    with pool.transaction() as cursor:
        cursor.execute("CREATE TEMP TABLE taken (a int4, b int8, c bool, d bytea) ON COMMIT DROP")
        copy_bytes(cursor, "pg_temp.taken", {"a": "int4", "b": "int8", "c": "bool", "d": "bytea"}, rows)
        cursor.execute("SELECT a, b, c FROM pg_temp.taken ORDER BY b")
        assert cursor.fetchall() == [row[:3] for row in rows]
        assert list(copied_bytes(cursor, "SELECT d FROM pg_temp.taken ORDER BY b", {})) == [row[3] for row in rows]
