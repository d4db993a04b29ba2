"""Who follows the tiles takes up what commits added, however long he was away and however much that was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing

import pytest

from rtrec_ray.clock import ManualClock
from rtrec_ray.features.definition import Aggregation, Condition, Definitions, FeatureView
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.copy import copied_bytes, copy_bytes
from rtrec_ray.stores.features.followed import Known
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import ListRows
from rtrec_ray.stores.features.tile_log import LOGGED_S
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
        self._offset = 0
        self.store: PostgresFeatureStore = self._place.store(DEFINITIONS)

    def commit(self, *, partition: int = 0, **views: list[tuple[str, int, str]]) -> None:
        self._offset += 1
        found = {f"{name}@1": tiles(*rows) for name, rows in views.items()}
        self._place.append(self.store, partition=partition, next_offset=self._offset, tiles=found)

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
    assert (news(4).height, news(4).whole) == (4, False)
    assert (news(3).height, news(3).whole) == (3, True)


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


def test_bytes_go_in_and_come_out_as_they_are(pool):
    rows = [(1, -(1 << 40), True, bytes(range(256)) * 40), (-2, 5, False, b"")]
    with pool.transaction() as cursor:
        cursor.execute("CREATE TEMP TABLE taken (a int4, b int8, c bool, d bytea) ON COMMIT DROP")
        copy_bytes(cursor, "pg_temp.taken", {"a": "int4", "b": "int8", "c": "bool", "d": "bytea"}, rows)
        cursor.execute("SELECT a, b, c FROM pg_temp.taken ORDER BY b")
        assert cursor.fetchall() == [row[:3] for row in rows]
        assert list(copied_bytes(cursor, "SELECT d FROM pg_temp.taken ORDER BY b", {})) == [row[3] for row in rows]
