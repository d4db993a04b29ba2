"""What every feature store does, in memory and in PostgreSQL."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import permutations, product

import msgspec
import polars as pl
import pytest

from actors.feature import FeatureOperator
from rtrec_ray.app.system import LatestBelieved
from rtrec_ray.clock import REAL, ManualClock
from rtrec_ray.errors import BeyondRetention, DefinitionInvalid, HistoryBehind, ListsOvertaken, UnknownView
from rtrec_ray.events import ITEM_SCHEMA, PROFILE_SCHEMA, CatalogItem, ProfileVersion
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.definition import NOT_BEGUN_MS
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.past import HistoryPast
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import FeatureStore, ReadPoint, TaskOutput, VersionPoint
from rtrec_ray.stores.features.views import list_views, read_view
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import MemoryHistoryManifest
from rtrec_ray.stores.history.store import History, schema
from rtrec_ray.stores.progress import Committed, write_committed
from tests.feature_place import BASE, DEFINITIONS, HOUR, MINUTE, SECOND, Place, place, tiles

__all__ = ["place"]

QUERIES = ViewKey(view="top_queries_30m", key="all")


def searches(*rows):
    """Tiles of top_queries_30m: (start, query, n)."""
    return {"top_queries_30m@1": tiles(*(("all", start, f'[{n},["{query}",{n}]]') for start, query, n in rows))}


def test_rows_of_one_tile_add_up_over_commits_and_partitions(place):
    store = place.store()
    place.append(store, tiles=searches((BASE, "a", 1)))
    place.append(store, tiles=searches((BASE, "a", 1), (BASE + 10 * SECOND, "b", 1)))
    place.append(store, partition=1, tiles=searches((BASE, "b", 5)))
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE + MINUTE) == {QUERIES: {"top": [["b", 6], ["a", 2]]}}


def test_a_past_time_is_floored_to_the_tile_and_now_includes_the_open_one(place):
    store = place.store()
    place.append(store, tiles=searches((BASE, "a", 1), (BASE + 10 * SECOND, "b", 1)))
    at = {as_of_ms: store.get([QUERIES], as_of_ms=as_of_ms, now_ms=BASE + 12 * SECOND)[QUERIES] for as_of_ms in (
        BASE, BASE + 10 * SECOND - 1, BASE + 10 * SECOND, BASE + 19_999, BASE + 30 * MINUTE + 9_999,
        BASE + 30 * MINUTE + 10 * SECOND, BASE + 30 * MINUTE + 20 * SECOND, None,
    )}  # fmt: skip
    a, b = ["a", 1], ["b", 1]
    values = [None if value is None else value["top"] for value in at.values()]
    assert values == [None, None, [a], [a], [a, b], [b], None, [a, b]]


def test_a_time_ahead_of_the_watermark_neither_waits_nor_fails(place):
    store = place.store()
    place.append(store, watermark_ms=BASE, tiles=searches((BASE, "a", 1)))
    assert store.get([QUERIES], as_of_ms=BASE + 10 * 365 * 24 * HOUR, now_ms=BASE) == {QUERIES: None}


def test_a_time_whose_tiles_are_gone_is_refused_rather_than_answered_wrong(place):
    store = place.store()
    place.append(store, watermark_ms=BASE + DEFINITIONS.retention_ms, tiles=searches((BASE, "a", 1)))
    store.drop_expired()
    assert store.get([QUERIES], as_of_ms=BASE + 30 * MINUTE, now_ms=BASE) == {QUERIES: {"top": [["a", 1]]}}
    with pytest.raises(BeyondRetention, match="top_queries_30m"):
        store.get([QUERIES], as_of_ms=BASE + 30 * MINUTE - 1, now_ms=BASE)


def test_an_unknown_view_is_named_with_those_that_exist(place):
    with pytest.raises(UnknownView, match="top_viewed_30m"):
        place.store().get([ViewKey(view="nope", key="1")], as_of_ms=None, now_ms=BASE)


def test_a_view_deleted_from_the_file_stays_until_it_is_dropped(place):
    place.append(place.store(), tiles=searches((BASE, "a", 1)))
    views = tuple(view for view in DEFINITIONS.views if view.name != QUERIES.view)
    store = place.store(replace(DEFINITIONS, views=views))
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE) == {QUERIES: {"top": [["a", 1]]}}
    store.drop_view("top_queries_30m@1")
    store.refresh()
    with pytest.raises(UnknownView, match=QUERIES.view):
        store.get([QUERIES], as_of_ms=None, now_ms=BASE)
    with pytest.raises(UnknownView, match="top_queries_30m@1"):
        store.drop_view("top_queries_30m@1")
    other = replace(DEFINITIONS.view(QUERIES.view), window_ms=MINUTE)
    with pytest.raises(DefinitionInvalid, match="top_queries_30m version 1 is already defined otherwise"):
        place.store(replace(DEFINITIONS, views=(*views, other)))
    again = place.store()
    assert again.get([QUERIES], as_of_ms=None, now_ms=BASE) == {QUERIES: None}


def test_a_read_says_which_offsets_are_behind_its_values(place):
    store = place.store()
    user = ViewKey(view="user_browse_5m", key="1")
    place.append(store, tiles=searches((BASE, "a", 1)), next_offset=3)
    place.append(store, partition=1, tiles=searches((BASE, "a", 1)), next_offset=7)
    before = store.read([QUERIES, user], now_ms=BASE + SECOND, cached=True)  # nobody has made lists yet
    assert before.values == {QUERIES: {"top": [["a", 2]]}, user: None}
    point = ReadPoint(as_of_ms=BASE + SECOND, offsets={0: 3, 1: 7}, version=1)
    assert before.points == {"top_queries_30m": point, "user_browse_5m": point}
    TopLists(store).rebuild(now_ms=BASE + 2 * SECOND)
    place.append(store, tiles=searches((BASE, "b", 5)), next_offset=4)
    after = store.read([QUERIES, user], now_ms=BASE + 3 * SECOND, cached=True)
    assert after.values[QUERIES] == {"top": [["a", 2]]}
    assert after.points == {
        "top_queries_30m": ReadPoint(as_of_ms=BASE + 2 * SECOND, offsets={0: 3, 1: 7}, version=1),
        "user_browse_5m": ReadPoint(as_of_ms=BASE + 3 * SECOND, offsets={0: 4, 1: 7}, version=1),
    }
    merged = store.read([QUERIES], now_ms=BASE + 3 * SECOND, cached=False)
    assert merged.values[QUERIES] == {"top": [["b", 5], ["a", 2]]}
    assert merged.points["top_queries_30m"].offsets == {0: 4, 1: 7}
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE + 3 * SECOND) == merged.values


def test_a_read_of_a_store_that_nobody_wrote_to_has_no_offsets_behind_it(place):
    reading = place.store().read([QUERIES], now_ms=BASE, cached=True)
    assert (dict(reading.values), dict(reading.points[QUERIES.view].offsets)) == ({QUERIES: None}, {})


def test_a_view_nobody_applied_has_no_data(place):
    store = PostgresFeatureStore(DEFINITIONS, pool=place.pool) if place.pool else place.store()
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE) == {QUERIES: None}


def test_one_version_has_one_definition_and_values_of_versions_never_mix(place):
    place.append(place.store(), tiles=searches((BASE, "a", 1)))
    old = DEFINITIONS.view(QUERIES.view)
    changed = replace(old, window_ms=10 * MINUTE)
    others = tuple(view for view in DEFINITIONS.views if view is not old)
    with pytest.raises(DefinitionInvalid, match="top_queries_30m version 1"):
        place.store(replace(DEFINITIONS, views=(*others, changed)))
    with pytest.raises(DefinitionInvalid, match="tile"):
        place.store(replace(DEFINITIONS, tile_ms=5_000))
    second = place.store(replace(DEFINITIONS, views=(*others, replace(changed, version=2))))
    first, newer = (ViewKey(view=f"{QUERIES.view}@{version}", key="all") for version in (1, 2))
    assert second.get([first, newer], as_of_ms=None, now_ms=BASE) == {first: {"top": [["a", 1]]}, newer: None}


def test_the_newest_version_is_read_as_soon_as_its_window_is_full(place):
    store = place.store()
    place.append(store, watermark_ms=BASE, tiles=searches((BASE, "a", 1)))
    view = DEFINITIONS.view(QUERIES.view)
    newer = place.store(replace(DEFINITIONS, views=(replace(view, window_ms=10 * MINUTE, version=2),)))
    with place.transaction() as cursor:
        begun = newer.begin(cursor, partition=0, next_offset=7, complete_from_ms=BASE + 1)
        again = newer.begin(cursor, partition=0, next_offset=9, complete_from_ms=BASE + 9)
    assert [each.id for each in begun.definitions.views if each.name == QUERIES.view] == [f"{QUERIES.view}@1", f"{QUERIES.view}@2"]  # fmt: skip  # noqa: E501
    assert again == begun
    place.append(newer, watermark_ms=BASE, tiles={"top_queries_30m@2": tiles(("all", BASE, '[1,["b",1]]'))})
    versions = [
        read_view(newer, QUERIES.view, ["all"], as_of_ms=None, now_ms=now_ms)["version"]
        for now_ms in (BASE, BASE + 10 * MINUTE + 10 * SECOND - 1, BASE + 10 * MINUTE + 10 * SECOND)
    ]
    assert versions == [1, 1, 2]


def test_what_is_live_has_a_number_that_rises_with_every_change(place):
    store = place.store()
    place.append(store)
    store.refresh()
    assert not store.refresh()
    with place.transaction() as cursor:
        assert store.apply(cursor) == ()
        live = store.begin(cursor, partition=0, next_offset=0, complete_from_ms=None)
        assert not store.changed(cursor, since=live.change)
    other = replace(DEFINITIONS.view(QUERIES.view), version=2)
    newer = place.store(replace(DEFINITIONS, views=(other,)), new=(other.id,))
    assert newer.definitions.views[-1] == other
    with place.transaction() as cursor:
        assert store.changed(cursor, since=live.change)
    assert store.refresh()
    assert {view.id for view in store.definitions.views} == {view.id for view in (*DEFINITIONS.views, other)}


def test_readers_are_told_of_a_new_view_once_and_once_more_when_every_partition_has_begun_it(place):
    store, partitions = place.store(), range(5)
    told = store.change()
    for partition in partitions:
        place.append(store, partition=partition)
    assert store.change() == told, "all views are complete from the first event on"
    other = replace(DEFINITIONS.view(QUERIES.view), version=2)
    newer = place.store(replace(DEFINITIONS, views=(other,)), new=(other.id,))
    assert store.change() == told + 1
    for partition in partitions:
        with place.transaction() as cursor:
            live = newer.begin(cursor, partition=partition, next_offset=7, complete_from_ms=BASE + partition)
        newer.refresh()
        begun = partition == partitions[-1]
        assert other.id in {view.id for view in live.definitions.views}
        assert newer.definitions.complete_from_ms == {other.id: BASE + 4 if begun else NOT_BEGUN_MS}
        assert (live.change, store.change()) == (told + 1 + begun,) * 2


def test_tiles_that_a_shorter_retention_dropped_do_not_come_back_with_a_longer_one(place):
    store = place.store()
    place.append(store, watermark_ms=BASE + DEFINITIONS.retention_ms, tiles=searches((BASE, "a", 1)))
    store.drop_expired()
    longer = replace(DEFINITIONS, retention_ms=10 * DEFINITIONS.retention_ms)
    later = place.store(longer)
    later.refresh()
    with pytest.raises(BeyondRetention, match="top_queries_30m"):
        later.get([QUERIES], as_of_ms=BASE + 30 * MINUTE - 1, now_ms=BASE)
    assert later.get([QUERIES], as_of_ms=BASE + 30 * MINUTE, now_ms=BASE) == {QUERIES: {"top": [["a", 1]]}}


def test_a_key_may_be_any_text(place):
    store = place.store()
    keys = ["", "é|\U0001f600", "a\tb\nc", 'q"\\', "NULL", "\\N", "x" * 1_000]
    place.append(store, tiles={"segment_page_top_ads@1": tiles(*((key, BASE, '[1,[1,1],[0,"e",1]]') for key in keys))})
    asks = [ViewKey(view="segment_page_top_ads", key=key) for key in [*keys, "a\0b", "\ud800", "x" * 100_000]]
    values = store.get(asks, as_of_ms=None, now_ms=BASE)
    assert [values[ask] for ask in asks] == [{"top": [[1, 1]], "last": [1]}] * len(keys) + [None] * 3


def test_what_a_commit_left_is_what_the_next_owner_loads(place):
    store = place.store()
    profile = pl.DataFrame([(1, 5, "CN", "f", None, "20")], schema=PROFILE_SCHEMA, orient="row")
    place.append(store, watermark_ms=7, seen=[(0, b"12345678"), (MINUTE, b"abcdefgh")], profiles=profile)
    place.append(store, partition=1, watermark_ms=8)
    place.append(store, watermark_ms=9, seen=[(MINUTE, b"ABCDEFGH")], seen_to_ms=0)
    with place.transaction() as cursor:
        state, other = (store.load(cursor, partition=partition) for partition in (0, 1))
        seen, nothing = list(state.seen), list(other.seen)
    assert (state.watermark_ms, other.watermark_ms) == (9, 8)
    assert sorted(seen) == [(MINUTE, b"ABCDEFGH"), (MINUTE, b"abcdefgh")]
    assert state.profiles.equals(profile)
    assert (nothing, other.profiles.height) == ([], 0)


def test_what_was_counted_is_loaded_by_minute_and_never_as_a_whole(place):
    store, each, n = place.store(), 10_000, 500
    place.append(store, seen=[(number % 7 * MINUTE, number.to_bytes(1, "little") * each) for number in range(250)])
    place.append(store, seen=[(number % 7 * MINUTE, number.to_bytes(1, "little") * each) for number in range(250)])
    tracemalloc.start()
    with place.transaction() as cursor:
        minutes = [minute for minute, hashes in store.load(cursor, partition=0).seen if len(hashes) == each]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert minutes == sorted(number % 7 * MINUTE for number in [*range(250)] * 2)
    assert peak < each * n // 2


def test_a_user_has_the_newest_profile_that_held_at_the_time(place):
    store = place.store()
    rows = [(1, 5, "CN", "f", "Shanghai", "20"), (1, 9, "IN", "f", None, "20"), (2, 5, None, None, None, None)]
    place.append(store, profiles=pl.DataFrame(rows, schema=PROFILE_SCHEMA, orient="row"))
    place.append(store, profiles=pl.DataFrame([(1, 9, "FR", "m", None, "30")], schema=PROFILE_SCHEMA, orient="row"))
    assert store.profiles([1, 2, 3], as_of_ms=8).profiles == {
        1: ProfileVersion(user_id=1, ts=5, country="CN", gender="f", city="Shanghai", age_band="20"),
        2: ProfileVersion(user_id=2, ts=5),
    }
    assert store.profiles([1], as_of_ms=9).profiles[1] == ProfileVersion(
        user_id=1, ts=9, country="FR", gender="m", age_band="30"
    )
    assert store.profiles([1], as_of_ms=4).profiles == {}


def test_a_read_of_profiles_and_of_the_catalogue_says_which_versions_are_behind_it(place):
    store = place.store()
    assert (store.profiles([1], as_of_ms=7).point, store.catalogue().point) == (None, None)
    place.append(store, profile_offset=3, item_offset=2)
    place.append(store, partition=1, profile_offset=9)
    for users in ([1], [1, 2], []):
        assert store.profiles(users, as_of_ms=7).point == VersionPoint(offsets={0: 3, 1: 9}, as_of_ms=7)
    assert store.catalogue().point == VersionPoint(offsets={0: 2, 1: 0})


def test_the_catalogue_holds_the_newest_version_of_every_item(place):
    store = place.store()
    place.append(store, items=pl.DataFrame([(2, 5, "ad", 3, "x"), (1, 5, None, None, None)], schema=ITEM_SCHEMA, orient="row"))  # fmt: skip  # noqa: E501
    place.append(store, items=pl.DataFrame([(2, 4, "ad", 4, "older")], schema=ITEM_SCHEMA, orient="row"))
    place.append(store, items=pl.DataFrame([(1, 5, "video", 9, "again")], schema=ITEM_SCHEMA, orient="row"))
    ad = CatalogItem(item_id=2, ts=5, item_type="ad", category_id=3, title="x")
    video = CatalogItem(item_id=1, ts=5, item_type="video", category_id=9, title="again")
    assert store.catalogue().items == [video, ad]
    assert store.items([2, 3]) == {2: ad}


def test_a_rebuilt_list_is_what_the_tiles_say_and_stays_until_the_next_rebuild(place):
    store = place.store()
    lists = TopLists(store)
    place.append(store, next_offset=1, tiles=searches((BASE, "a", 1)))
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE, cached=True) == {QUERIES: {"top": [["a", 1]]}}
    assert lists.rebuild(now_ms=BASE) == 1
    place.append(store, next_offset=2, tiles=searches((BASE, "a", 1)))
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE, cached=True) == {QUERIES: {"top": [["a", 1]]}}
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE) == {QUERIES: {"top": [["a", 2]]}}
    lists.rebuild(now_ms=BASE)
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE, cached=True) == {QUERIES: {"top": [["a", 2]]}}
    assert lists.rebuild(now_ms=BASE + HOUR) == 0
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE, cached=True) == {QUERIES: None}


def test_a_keeper_that_starts_anew_forgets_the_lists_of_keys_that_have_no_data(place):
    store = place.store()
    place.append(store, next_offset=1, tiles=searches((BASE, "a", 1)))
    TopLists(store).rebuild(now_ms=BASE)
    assert TopLists(store).rebuild(now_ms=BASE + HOUR) == 0
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE, cached=True) == {QUERIES: None}


class StoppedKeeper:
    """A keeper that stands still between what it reads and what it writes, and begins anew when it came too late."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.definitions = store, store.definitions
        self.list_rounds, self.list_rows = store.list_rounds, store.list_rows
        self.lists, self.held = TopLists(self), None

    def put_lists(self, rounds) -> None:
        self.held = rounds

    def step(self, *, now_ms: int) -> bool:
        """Read or write, in turn; whether it did not come too late."""
        if self.held is None:
            self.lists.rebuild(now_ms=now_ms)
            return True
        held, self.held = self.held, None
        try:
            self.store.put_lists(held)
        except ListsOvertaken:
            self.lists = TopLists(self)
            return False
        return True


def test_two_keepers_in_any_order_end_with_the_lists_that_the_tiles_say(place):
    store, now_ms, offset = place.store(), BASE, 0
    keys = [ViewKey(view="category_top_items_10m", key=str(key)) for key in range(7)]
    for order in product(sorted(set(permutations("aaabb"))), "ab"):
        keepers = {name: StoppedKeeper(store) for name in "ab"}
        for name in order[0]:
            offset, now_ms = offset + 1, now_ms + 7 * SECOND
            row = (str(offset % 7), now_ms // 10_000 * 10_000, f"[1,[{offset % 5},1]]")
            place.append(store, next_offset=offset, tiles={"category_top_items_10m@1": tiles(row)})
            keepers[name].step(now_ms=now_ms)
        left = keepers[order[1]]  # the other one ends where it stands
        while left.held is not None or not (left.step(now_ms=now_ms) and left.step(now_ms=now_ms)):
            left.step(now_ms=now_ms)
        cached = store.get(keys, as_of_ms=None, now_ms=now_ms, cached=True)
        assert cached == store.get(keys, as_of_ms=None, now_ms=now_ms), order


def test_rounds_that_are_written_together_leave_what_the_last_of_them_says(place):
    store, keys = place.store(), [ViewKey(view="category_top_items_10m", key=str(key)) for key in range(3)]
    lists, end_ms = TopLists(store), 0
    for offset, minutes in enumerate(((0, 5), (6, 12), (13, 14), (15, 40)), start=1):
        rows = [(str(minute % 3), BASE + minute * MINUTE, f"[1,[{minute},1]]") for minute in minutes]
        place.append(store, next_offset=offset, tiles={"category_top_items_10m@1": tiles(*rows)})
        moments, end_ms = range(end_ms or BASE, BASE + minutes[-1] * MINUTE, MINUTE), BASE + minutes[-1] * MINUTE
        lists.rebuild_at(moments)
        cached = store.get(keys, as_of_ms=None, now_ms=moments[-1], cached=True)
        assert cached == store.get(keys, as_of_ms=moments[-1], now_ms=0)
    assert store.list_rounds()["category_top_items_10m@1"] == 40
    assert not any(cached.values()), "the last window has nothing"


def test_a_round_that_comes_too_late_changes_no_list(place):
    store = place.store()
    place.append(store, next_offset=1, tiles=searches((BASE, "a", 1)))
    first, second = StoppedKeeper(store), StoppedKeeper(store)
    assert first.step(now_ms=BASE)
    place.append(store, next_offset=2, tiles=searches((BASE, "b", 5)))
    for _ in range(2):
        assert second.step(now_ms=BASE)
    # Of one of its views nobody has written meanwhile.
    first.held = [replace(each, number=1 + (each.view.name != QUERIES.view)) for each in first.held]
    assert not first.step(now_ms=BASE)
    assert set(store.list_rounds().values()) - {0} == {1}
    assert store.get([QUERIES], as_of_ms=None, now_ms=BASE, cached=True) == {QUERIES: {"top": [["b", 5], ["a", 1]]}}
    for _ in range(2):
        assert first.step(now_ms=BASE), "it begins anew"


def test_lists_kept_by_what_came_are_what_the_tiles_say_at_every_round(place):
    store, events = place.store(), with_retractions(random_events(seed=4, n=400), seed=4)
    lists, owner = TopLists(store), owner_of(store)
    keys = [
        *(ViewKey(view="category_top_items_10m", key=str(category)) for category in range(1, 4)),
        *(ViewKey(view="segment_page_top_ads", key=f"CN|f|{page}") for page in (1, 2)),
        ViewKey(view="top_viewed_30m", key="ad"),
        QUERIES,
    ]
    with place.transaction() as cursor:
        owner.restore(cursor, committed={})
    profiles = [{"user_id": user, "ts": BASE, "country": "CN", "gender": "f"} for user in range(1, 5)]
    owner.apply(record_batch("profile", 0, [msgspec.json.encode(each) for each in profiles]))
    met: Counter[ViewKey] = Counter()
    for start in range(0, len(events), 40):
        values = [msgspec.json.encode(event) for event in events[start : start + 40]]
        owner.apply(record_batch("behavior", 0, values, first_offset=start))
        with place.transaction() as cursor:
            owner.write(cursor)
        owner.committed()
        now_ms = BASE + start * 3_000
        if start % 80 == 0:
            lists.rebuild(now_ms=now_ms)
            cached = store.get(keys, as_of_ms=None, now_ms=now_ms, cached=True)
            assert cached == store.get(keys, as_of_ms=None, now_ms=now_ms)
            met.update(key for key, value in cached.items() if value is not None)
    assert set(met) == set(keys)


def test_hours_that_no_window_reaches_are_dropped_and_no_others(place):
    store = place.store()
    hours = [BASE + n * HOUR for n in range(6)]
    place.append(store, watermark_ms=hours[5], tiles=searches(*((hour, "a", 1) for hour in hours)))
    kept_from = (hours[5] - DEFINITIONS.retention_ms) // HOUR * HOUR
    assert store.drop_expired() == sum(hour < kept_from for hour in hours) > 0
    assert store.drop_expired() == 0
    assert store.get([QUERIES], as_of_ms=hours[5] + MINUTE, now_ms=0) == {QUERIES: {"top": [["a", 1]]}}


def test_tiles_are_written_and_trusted_until_retention_has_come_to_them(place):
    store = place.store()
    first = BASE + HOUR
    leapt = first + 10 * DEFINITIONS.retention_ms
    place.append(store, partition=1, watermark_ms=leapt, tiles=searches((first, "b", 2), (leapt, "b", 3)))
    place.append(store, watermark_ms=first, tiles=searches((first, "a", 1)))
    assert store.get([QUERIES], as_of_ms=first + MINUTE, now_ms=0) == {QUERIES: {"top": [["b", 2], ["a", 1]]}}
    assert store.drop_expired() == 1
    with pytest.raises(BeyondRetention):
        store.get([QUERIES], as_of_ms=first + MINUTE, now_ms=0)
    assert store.get([QUERIES], as_of_ms=leapt + MINUTE, now_ms=0) == {QUERIES: {"top": [["b", 3]]}}
    tiles = searches((first, "a", 1), (leapt, "a", 1))
    with place.transaction() as cursor:
        assert store.append(cursor, TaskOutput(partition=0, watermark_ms=leapt, tiles=tiles)).rows == 1
    assert store.get([QUERIES], as_of_ms=leapt + MINUTE, now_ms=0) == {QUERIES: {"top": [["b", 3], ["a", 1]]}}


def test_a_read_for_people_says_view_time_version_and_values(place):
    store = place.store()
    place.append(store, tiles={"user_browse_1m@1": tiles(("7", BASE, '[1,[0,"e",3],[0,"e",5]]'))})
    answer = read_view(store, "user_browse_1m", ["7", "8"], as_of_ms=BASE + 10_007, now_ms=0)
    assert answer == {
        "view": "user_browse_1m",
        "as_of_ms": BASE + 10_000,
        "version": 1,
        "values": {"7": {"pages": [3], "items": [5]}, "8": None},
    }
    assert [view["name"] for view in list_views(DEFINITIONS)] == [view.name for view in DEFINITIONS.views]


def random_events(*, seed: int, n: int):
    generator = random.Random(seed)
    for number in range(n):
        yield {
            "event_id": f"e{number - generator.choice([0, 0, 0, 1])}",
            "event_type": generator.choice(["view", "click", "search", "cart"]),
            "ts": BASE + number * 2_000 - generator.choice([0, 0, 1, 120_000]),
            "user_id": generator.randint(1, 5),
            "item_id": generator.randint(1, 9),
            "item_type": generator.choice(["product", "ad", "ad"]),
            "category_id": generator.randint(1, 3),
            "page_id": generator.randint(1, 2),
            "dwell_ms": generator.randint(0, 9),
            "query": generator.choice(["é", "b", 'q"\\\n', "\U0001f600"]),
        }


def with_retractions(events, *, seed):
    """The events, some of them taken back a while later or before they come; one in a hundred never comes."""
    generator, events = random.Random(seed), list(events)
    ids = Counter(event["event_id"] for event in events)
    placed = [(number, event) for number, event in enumerate(events) if generator.random() > 0.01]
    for number, event in enumerate(events):
        if ids[event["event_id"]] == 1 and generator.random() < 0.2:
            place = max(0.0, number + generator.choice([-20.5, -0.5, 0.5, 20.5]))
            retraction = {"event_id": f"r{number}", "event_type": "retract", "user_id": event["user_id"]}
            placed.append((place, {**retraction, "ts": event["ts"] + generator.randint(0, 9_000), "retracts": event}))
    return [event for _, event in sorted(placed, key=lambda each: each[0])]


def owner_of(store: FeatureStore) -> FeatureOperator:
    return FeatureOperator(0, store=store, latest_ms=lambda wall: 2**62, watermark=WatermarkOptions())


def test_the_next_owner_calls_late_and_duplicate_what_the_last_one_would(place):
    store = place.store()
    counts = []
    for number, ts in enumerate((BASE + HOUR, BASE + HOUR - MINUTE, BASE, BASE + HOUR)):
        event = {"event_id": f"e{number % 3}", "event_type": "view", "ts": ts, "user_id": 1}
        owner = owner_of(store)
        with place.transaction() as cursor:
            owner.restore(cursor, committed={"behavior": number})
        taken = owner.apply(record_batch("behavior", 0, [msgspec.json.encode(event)], first_offset=number))
        counts.append({name for name, n in taken.counts.items() if n} - {"in"})
        with place.transaction() as cursor:
            owner.write(cursor)
        owner.committed()
    assert counts == [set(), {"late", "corrected"}, {"late", "beyond_horizon"}, {"duplicate"}]


def test_one_producer_a_year_ahead_of_the_clock_costs_its_own_records_alone(place):
    clock = ManualClock(now_ms=BASE)
    believed = LatestBelieved(clock=REAL, skew_ms=MINUTE, wall_ms=clock.now_ms)
    store = place.store()
    owner = FeatureOperator(0, store=store, latest_ms=believed, watermark=WatermarkOptions())
    with place.transaction() as cursor:
        owner.restore(cursor, committed={})

    def take(ts, *, offset, stamp_ms):
        event = {"event_id": f"e{offset}", "event_type": "view", "ts": ts, "user_id": 1}
        values = [msgspec.json.encode(event)]
        return owner.apply(record_batch("behavior", 0, values, first_offset=offset, timestamp_ms=stamp_ms))

    year_ms = 365 * 24 * HOUR
    wrong = take(BASE + year_ms, offset=0, stamp_ms=BASE + year_ms)  # CreateTime: the stamp is that clock's too
    good = [take(BASE, offset=1, stamp_ms=BASE), take(BASE - 1, offset=2, stamp_ms=BASE)]
    assert (wrong.counts, wrong.max_ts_ms) == ({"in": 1, "dead": 1}, None)
    assert [(outcome.counts, outcome.max_ts_ms) for outcome in good] == [({"in": 1}, BASE), ({"in": 1}, BASE - 1)]
    with place.transaction() as cursor:
        owner.write(cursor)
    ask = ViewKey(view="user_browse_5m", key="1")
    assert store.get([ask], as_of_ms=None, now_ms=BASE)[ask]["view"] == 2


def test_a_stream_through_an_owner_that_starts_anew_gives_the_same_values_in_every_store(place):
    events = [msgspec.json.encode(event) for event in with_retractions(random_events(seed=1, n=600), seed=1)]
    profiles = [
        msgspec.json.encode({"user_id": user, "ts": BASE, "country": "CN", "gender": "f", "city": f"c{user}"})
        for user in range(1, 5)
    ]
    asks = [
        *(ViewKey(view=view, key=str(user)) for view in ("user_browse_5m", "user_browse_1m") for user in range(1, 6)),
        *(ViewKey(view="category_top_items_10m", key=str(category)) for category in range(1, 4)),
        *(ViewKey(view="segment_page_top_ads", key=f"CN|f|{page}") for page in (1, 2)),
        ViewKey(view="segment_page_top_ads", key="CN|f|c1|1"),
        ViewKey(view="top_viewed_30m", key="ad"),
        QUERIES,
    ]

    def values(here: Place, *, cuts: list[int]):
        store = here.store()
        for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True):
            owner = owner_of(store)
            with here.transaction() as cursor:
                owner.restore(cursor, committed={"behavior": start, "profile": 4 if start else 0})
            if not start:
                owner.apply(record_batch("profile", 0, profiles))
            owner.apply(record_batch("behavior", 0, events[start:end], first_offset=start))
            with here.transaction() as cursor:
                owner.write(cursor)
            owner.committed()
        return [store.get(asks, as_of_ms=BASE + n * MINUTE, now_ms=0) for n in range(0, 30, 3)]

    answers = values(place, cuts=[100, 101, 350])
    assert answers == values(Place(None), cuts=[])
    assert all(any(answer[ask] is not None for answer in answers) for ask in asks)


def history_of(events, *, first=0):
    """The events as the history has them, in no order. `first`: the offset of the first one."""
    origin = {"partition": 0, "kafka_ts": 0, "raw": b""}
    rows = [
        {
            **event,
            **origin,
            "offset": first + n,
            "retracts": json.dumps(event["retracts"]) if "retracts" in event else None,
        }
        for n, event in enumerate(events)
    ]
    return pl.DataFrame(rows, schema=schema("behavior")).sample(fraction=1.0, shuffle=True, seed=0)


@pytest.mark.server
def test_a_time_whose_tiles_are_gone_is_answered_out_of_the_history_as_the_tiles_would(dsn, tmp_path):
    events = with_retractions(random_events(seed=2, n=600), seed=2)
    files, manifest = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path))), MemoryHistoryManifest()
    manifest.add(None, files.write("behavior", history_of(events), partition=0))
    past = HistoryPast(History(files, manifest))
    pool = Pool(PostgresOptions(dsn=dsn), size=2)
    place = Place(pool)
    place.store()
    store = PostgresFeatureStore(DEFINITIONS, pool=pool, past=past)
    owner = owner_of(store)
    with pool.transaction() as cursor:
        owner.restore(cursor, committed={})
        profile = {"user_id": 1, "ts": BASE, "country": "CN", "gender": "f"}
        owner.apply(record_batch("profile", 0, [msgspec.json.encode(profile)]))
        owner.apply(record_batch("behavior", 0, [msgspec.json.encode(event) for event in events]))
        owner.write(cursor)
    asks = [
        *(ViewKey(view="user_browse_5m", key=str(user)) for user in range(1, 7)),
        *(ViewKey(view="segment_page_top_ads", key=f"CN|f|{page}") for page in (1, 2)),
        QUERIES,
    ]
    moments = [BASE + n * 70_000 for n in range(3, 18)]
    before = [store.get(asks, as_of_ms=moment, now_ms=0) for moment in moments]
    place.append(store, watermark_ms=BASE + 30 * 24 * HOUR)
    assert store.drop_expired() > 0
    assert [store.get(asks, as_of_ms=moment, now_ms=0) for moment in moments] == before
    assert all(any(values[ask] is not None for values in before) for ask in asks if ask.key != "6")
    pool.close()


class LaggingHistory:
    """A stream of one partition into PostgreSQL, and a history that has come less far."""

    def __init__(self, pool: Pool, uri: str, events) -> None:
        self.pool, self.events = pool, events
        self.files, self.manifest = ArrowHistoryFiles(HistoryFilesOptions(uri=uri)), MemoryHistoryManifest()
        self.owner = owner_of(Place(pool).store())
        with pool.transaction() as cursor:
            self.owner.restore(cursor, committed={})

    def commit(self, start: int, end: int) -> None:
        values = [msgspec.json.encode(event) for event in self.events[start:end]]
        self.owner.apply(record_batch("behavior", 0, values, first_offset=start))
        with self.pool.transaction() as cursor:
            self.owner.write(cursor)
        self.owner.committed()

    def keep(self, start: int, end: int) -> None:
        frame = history_of(self.events[start:end], first=start)
        with self.pool.transaction() as cursor:
            self.manifest.add(cursor, self.files.write("behavior", frame, partition=0))
            at = Committed(next_offset={"behavior": end})
            write_committed(cursor, task="history", partition=0, at=at, lag=0, counts={})

    def store(self) -> PostgresFeatureStore:
        past = HistoryPast(History(self.files, self.manifest))
        store = PostgresFeatureStore(DEFINITIONS, pool=self.pool, past=past)
        store.refresh()
        return store


@pytest.mark.server
def test_a_time_that_the_history_has_not_reached_is_refused_until_it_has(dsn, tmp_path):
    begin, end = 300, 330
    early, late = BASE + 200 * 2_000, BASE + end * 2_000
    with closing(Pool(PostgresOptions(dsn=dsn), size=2)) as pool:
        place = LaggingHistory(pool, str(tmp_path), list(random_events(seed=3, n=end)))
        place.commit(0, begin)
        Place(pool).store(replace(DEFINITIONS, views=(replace(DEFINITIONS.view(QUERIES.view), version=2),)))
        place.commit(begin, begin)
        place.commit(begin, end)
        store = place.store()

        def values(as_of_ms: int):
            """Of the view that was always there, and of the one that began in between."""
            asks = [ViewKey(view=f"{QUERIES.view}@{version}", key="all") for version in (1, 2)]
            return [store.get([ask], as_of_ms=as_of_ms, now_ms=0)[ask] for ask in asks]

        place.keep(0, begin - 1)
        with pytest.raises(HistoryBehind, match=QUERIES.view):
            values(early)
        place.keep(begin - 1, begin)
        always, again = values(early)
        assert always == again is not None
        with pytest.raises(HistoryBehind, match=QUERIES.view):
            values(late)
        place.keep(begin, end)
        always, again = values(late)
        assert always == again
