"""What is read from memory is what the store says, as of the last look, whatever the store is."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import StoreUnavailable, UnknownView
from rtrec_ray.features.definition import Aggregation, Condition, Definitions, FeatureView
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Once
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.stores.features import near
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import Reading, ReadPoint
from tests.feature_place import BASE, HOUR, MINUTE, SECOND, Place, place, tiles

__all__ = ["place"]

CLICKS = Aggregation(name="clicks", kind="count")
LAST = Aggregation(name="last", kind="last_n", field="item_id", limit=3)
TOP = Aggregation(name="top", kind="top_k", field="item_id", limit=2)


def view(name: str, *aggregations: Aggregation, version: int = 1, window_ms: int = MINUTE, **more) -> FeatureView:
    return FeatureView(
        name=name,
        version=version,
        keys=(("user_id",),),
        window_ms=window_ms,
        source=(Condition(field="user_id"),),
        aggregations=aggregations,
        **more,
    )


USER = view("user", CLICKS, LAST)
SHORT = view("short", CLICKS, window_ms=20 * SECOND)
LISTED = view("listed", TOP, cached=True)


def defined(*views: FeatureView) -> Definitions:
    return Definitions(tile_ms=10 * SECOND, horizon_ms=20 * MINUTE, retention_ms=HOUR, views=views)


SEVEN, EIGHT = '[1,1,[5,"e",7]]', '[1,1,[6,"e",8]]'  # of the view "user": one event, of this item
ALL = defined(USER, SHORT, LISTED)
KEYS = [ViewKey(view=name, key=key) for name in ("user", "short", "listed") for key in ("1", "2", "3", "nobody")]


class Passing:
    """The store, and how often reads were passed on to it."""

    def __init__(self, store) -> None:
        self._store = store
        self.reads = 0

    def read(self, *asks, **how) -> Reading:
        self.reads += 1
        return self._store.read(*asks, **how)

    def __getattr__(self, name):
        return getattr(self._store, name)


class Follower:
    """A store that was filled somewhere else, and what follows it."""

    def __init__(self, place: Place, definitions: Definitions = ALL, **options) -> None:
        self.place, self.writer = place, place.store(definitions)
        self.reader = place.store(definitions)
        self.passing, self.clock = Passing(self.reader), ManualClock(now_ms=BASE)
        self.near = NearFeatures(self.passing, clock=self.clock, **{"most_rows": 1_000, "longest_s": 60.0, **options})
        self.lists = TopLists(self.writer)
        self.offset = 0

    def commit(self, *, partition: int = 0, **views: list[tuple[str, int, str]]) -> None:
        self.offset += 1
        found = {f"{name}@1": tiles(*rows) for name, rows in views.items()}
        self.place.append(self.writer, partition=partition, next_offset=self.offset, tiles=found)

    def both(self, keys=KEYS, *, cached: bool = True) -> tuple[Reading, Reading]:
        now_ms = self.clock.now_ms()
        return self.near.read(keys, now_ms=now_ms, cached=cached), self.reader.read(keys, now_ms=now_ms, cached=cached)

    def value(self, name: str = "user", key: str = "1") -> dict | None:
        ask = ViewKey(view=name, key=key)
        return self.near.get([ask], as_of_ms=None, now_ms=self.clock.now_ms(), cached=True)[ask]


def rows_of(rng: random.Random, now_ms: int) -> dict[str, list[tuple[str, int, str]]]:
    """What a commit may bring: new tiles, late ones, corrections of either sign, for the three views."""
    found = {"user": [], "short": [], "listed": []}
    for _ in range(rng.randint(0, 6)):
        key, item, n = str(rng.randint(1, 3)), rng.randint(1, 4), rng.choice([1, 1, 2, -1])
        start = (now_ms - rng.choice([0, 0, 5, 15, 40, 90]) * SECOND) // 10_000 * 10_000
        # Few times and names, so that some take back what came.
        entry = f'{rng.randint(0, 2)},"e{abs(n)}",{item if n > 0 else "null"}'
        found["user"].append((key, start, f"[{n},{n},[{entry}]]"))
        found["short"].append((key, start, f"[{n},{n}]"))
        found["listed"].append((key, start, f"[{n},[{item},{n}]]"))
    return {name: rows for name, rows in found.items() if rows}


@pytest.mark.parametrize(
    ("piece", "dropped"), [(1 << 12, 1_000), (30, 1_000), (30, 1)], ids=["", "busy keys", "slow to drop"]
)
@pytest.mark.parametrize("seed", range(5))
def test_as_of_a_look_everything_is_as_in_the_store(place, seed, piece, dropped, monkeypatch):
    monkeypatch.setattr(near, "_PIECE", piece)  # of 30 characters most keys have several
    monkeypatch.setattr(near, "_LEAST_DROPPED", dropped)
    rng, followed = random.Random(seed), Follower(place)
    for _ in range(60):
        step = rng.choice(["commit", "commit", "time", "lists", "look"])
        now_ms = followed.clock.now_ms()
        if step == "commit":
            followed.commit(partition=rng.randint(0, 2), **rows_of(rng, now_ms))
        elif step == "time":
            followed.clock.advance(rng.choice([1, 3, 10, 25]) * SECOND)
        elif step == "lists":
            followed.lists.rebuild(now_ms=now_ms)
        else:
            followed.lists.rebuild(now_ms=now_ms)
            followed.near.refresh()
            passed = followed.passing.reads
            found, expected = followed.both()
            assert found == expected
            assert followed.passing.reads == passed, "it was read from memory"
    followed.clock.advance(2 * HOUR)
    held = followed.near.rows + 1
    while followed.near.rows < held:
        held = followed.near.rows
        followed.near.refresh()
    assert held == 0


def test_between_looks_time_moves_on_and_nothing_else(place):
    followed = Follower(place)
    followed.commit(short=[("1", BASE, "[1,1]")])
    followed.near.refresh()
    followed.commit(short=[("1", BASE, "[2,2]"), ("2", BASE, "[2,2]")], user=[("1", BASE, SEVEN)])
    keys = [ViewKey(view="short", key=key) for key in ("1", "2")]
    near, store = followed.both(keys)
    assert list(near.values.values()) == [{"clicks": 1}, None]
    assert list(store.values.values()) == [{"clicks": 3}, {"clicks": 2}]
    assert near.points == {"short": ReadPoint(as_of_ms=BASE, offsets={0: 1}, version=1)}
    followed.near.refresh()
    followed.clock.advance(30 * SECOND)
    assert (followed.value("short"), followed.value("user")) == (None, {"clicks": 1, "last": [7]})


def test_rows_that_left_the_windows_are_dropped(place):
    followed = Follower(place)
    for step in range(100):
        followed.commit(user=[(str(step % 7), BASE + 10_000 * step, SEVEN)])
        followed.clock.advance(10 * SECOND)
        followed.near.refresh()
        assert followed.near.rows <= 7
    assert followed.both()[0] == followed.both()[1]


def test_nobody_waits_for_the_values_of_a_busy_key(place):
    followed = Follower(place)
    followed.commit(user=[("1", BASE, SEVEN), ("2", BASE, EIGHT)])
    followed.near.refresh()
    others = []

    def during(frame, event, _) -> None:
        if event == "call" and frame.f_code is Once.value.__code__ and not others:
            others.append(threading.Thread(target=lambda: (followed.value(key="2"), followed.near.refresh())))
            others[0].start()
            others[0].join(timeout=10)
            assert not others[0].is_alive(), "another read and a look"

    sys.setprofile(during)
    try:
        assert followed.value(key="1") == {"clicks": 1, "last": [7]}
    finally:
        sys.setprofile(None)
    assert others


def test_a_list_that_is_gone_is_gone(place):
    followed = Follower(place)
    followed.commit(listed=[("1", BASE, "[1,[7,1]]"), ("2", BASE + 50 * SECOND, "[1,[8,1]]")])
    for now_ms, left in ((BASE + 50 * SECOND, ["1", "2"]), (BASE + 90 * SECOND, ["2"]), (BASE + HOUR, [])):
        followed.clock.advance(now_ms - followed.clock.now_ms())
        followed.lists.rebuild(now_ms=now_ms)
        followed.near.refresh()
        assert [key for key in ("1", "2") if followed.value("listed", key) is not None] == left


def test_what_memory_has_not_is_read_from_the_store(place):
    followed = Follower(place)
    followed.commit(user=[("1", BASE, SEVEN)], listed=[("1", BASE, "[1,[7,1]]")])
    assert followed.value() == {"clicks": 1, "last": [7]}, "before the first look"
    assert followed.near.age_s() is None
    followed.near.refresh()
    assert followed.value("listed") == {"top": [[7, 1]]}, "before there is a list"
    near, store = followed.both(cached=False)
    assert near == store
    user = ViewKey(view="user", key="1")
    assert followed.near.get([user], as_of_ms=BASE + 10_000, now_ms=BASE) == {user: {"clicks": 1, "last": [7]}}
    followed.clock.advance(10 * MINUTE)
    followed.near.refresh()
    assert followed.near.get([user], as_of_ms=None, now_ms=BASE) == {user: {"clicks": 1, "last": [7]}}, "another now"
    with pytest.raises(UnknownView, match="nothing"):
        followed.near.read([ViewKey(view="nothing", key="1")], now_ms=BASE, cached=True)


def test_a_look_long_ago_is_not_relied_on(place):
    followed = Follower(place, longest_s=0.0)
    followed.commit(user=[("1", BASE, SEVEN)])
    followed.near.refresh()
    followed.commit(user=[("1", BASE, EIGHT)])
    assert (followed.near.age_s(), followed.value()) == (None, {"clicks": 2, "last": [8, 7]})


def test_windows_that_are_too_large_for_memory_are_read_from_the_store_until_they_are_not(place):
    followed = Follower(place, most_rows=10)
    for user in range(10):
        followed.commit(user=[(str(user), BASE, SEVEN)])
    followed.near.refresh()
    assert (followed.near.rows, followed.near.trouble) == (10, "")
    followed.commit(user=[("1", BASE, EIGHT)])
    for _ in range(3):
        followed.near.refresh()
        assert (followed.near.rows, followed.near.age_s()) == (0, None)
        assert "more than 10 rows" in followed.near.trouble
        assert followed.value() == {"clicks": 2, "last": [8, 7]}
    followed.clock.advance(5 * MINUTE)
    followed.near.refresh()
    assert (followed.near.trouble, followed.value()) == ("", None)


def test_more_rows_than_fit_are_never_taken_for_all(place):
    followed = Follower(place, most_rows=10)
    for user in range(8):
        followed.commit(partition=user % 4, short=[(str(user), BASE - 40 * SECOND, "[1,1]")])
        followed.commit(partition=user % 4, short=[(str(user), BASE, "[1,1]")])
    user = [("1", BASE - 50 * SECOND, SEVEN)]  # within the longest window, as is all before the shorter one's
    followed.commit(user=user)
    followed.near.refresh()
    assert "more than 10 rows" in followed.near.trouble
    assert followed.both()[0] == followed.both()[1]


def test_views_that_come_and_go_are_followed(place):
    followed = Follower(place, defined(USER))
    followed.commit(user=[("1", BASE, SEVEN)])
    followed.near.refresh()
    followed.writer = place.store(ALL)
    followed.commit(user=[("1", BASE, EIGHT)], short=[("1", BASE, "[1,1]")])
    followed.near.refresh()
    assert (followed.value(), followed.value("short")) == ({"clicks": 2, "last": [8, 7]}, {"clicks": 1})
    followed.writer.drop_view("user@1")
    followed.near.refresh()
    assert followed.value("short") == {"clicks": 1}
    with pytest.raises(UnknownView):
        followed.value("user")


def complete(place: Place, view_id: str) -> None:
    """As a backfill does."""
    if place.pool is None:
        place.tables.starts[view_id][0] = None
        place.tables.change += 1
        return
    with place.transaction() as cursor:
        cursor.execute("UPDATE features.view_starts SET complete_from_ms = NULL")
        cursor.execute("UPDATE features.settings SET change = change + 1")


def test_a_version_whose_past_was_filled_is_not_read_from_a_look_that_has_not_got_it(place):
    followed = Follower(place, defined(SHORT))
    followed.commit(short=[("1", BASE, "[1,1]")])
    again = place.store(defined(SHORT, view("short", CLICKS, version=2, window_ms=20 * SECOND)))
    with place.transaction() as cursor:
        again.begin(cursor, partition=0, next_offset=1, complete_from_ms=BASE)
    one = tiles(("1", BASE, "[1,1]"))
    place.append(again, next_offset=2, tiles={"short@1": one, "short@2": one})
    followed.near.refresh()
    ask, passed, seen = ViewKey(view="short", key="1"), followed.passing._store.news, []

    def read() -> tuple[dict | None, int]:
        found = followed.near.read([ask], now_ms=BASE, cached=True)
        return found.values[ask], found.points["short"].version

    def during(*known, **how):
        seen.append(read())
        return passed(*known, **how)

    assert read() == ({"clicks": 2}, 1), "the new version lacks its past"
    place.append(again, next_offset=3, tiles={"short@2": one})
    complete(place, "short@2")
    followed.passing.news = during
    followed.near.refresh()
    assert seen == [({"clicks": 2}, 1)] * 2
    assert read() == ({"clicks": 2}, 2)


def test_all_that_is_read_together_is_of_one_look(place):
    followed, stop, wrong = Follower(place), threading.Event(), []
    pair = [ViewKey(view="user", key="1"), ViewKey(view="short", key="2")]

    def read() -> None:
        while not stop.is_set():
            found = followed.near.read(pair, now_ms=BASE, cached=True)
            counts = [0 if value is None else value["clicks"] for value in found.values.values()]
            if counts[0] != counts[1] or counts[0] != found.points["user"].offsets.get(0, 0):
                wrong.append((counts, found.points))

    followed.near.refresh()
    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(60):
        followed.commit(user=[("1", BASE, SEVEN)], short=[("2", BASE, "[1,1]")])
        followed.near.refresh()
    stop.set()
    reader.join()
    assert wrong == []
    assert followed.value()["clicks"] == 60


@pytest.fixture
def flaky(dsn: str) -> Iterator[tuple[NearFeatures, PostgresFeatureStore, threading.Event]]:
    """A thread that looks at a store, each third look of which fails."""
    with closing(Pool(PostgresOptions(dsn=dsn))) as pool:
        store, looks = PostgresFeatureStore(ALL, pool=pool), []

        class Flaky(Passing):
            def news(self, *known, **how):
                looks.append(None)
                if len(looks) % 3 == 0:
                    raise StoreUnavailable("away")
                return store.news(*known, **how)

        with pool.transaction() as cursor:
            store.apply(cursor)
        near, stop = NearFeatures(Flaky(store), clock=ManualClock(now_ms=BASE), most_rows=10), threading.Event()
        thread = threading.Thread(target=near.run, args=(stop,), kwargs={"every_s": 0.01})
        thread.start()
        yield near, store, stop
        stop.set()
        thread.join()


@pytest.mark.server
def test_a_store_that_was_away_is_followed_again(flaky, dsn, eventually):
    near, store, _ = flaky
    eventually(lambda: "away" in near.trouble, what="a look fails")
    with closing(Pool(PostgresOptions(dsn=dsn))) as pool:
        place = Place(pool)
        place.append(store, next_offset=1, tiles={"user@1": tiles(("1", BASE, SEVEN))})
    eventually(lambda: near.rows == 1, what="it follows")
