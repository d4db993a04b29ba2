"""What every store of static features does, in memory and in PostgreSQL, and what a run over a history leaves in it."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rtrec_ray.errors import BeyondRetention, LeaseHeld
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.counted import NAME_SCHEMA
from rtrec_ray.features.daily import (
    COUNT_SCHEMA,
    COUNTED,
    DAY_MS,
    ENTITIES,
    VALUES,
    complete_day,
    first_minute,
    start_ms,
)
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import MemoryHistoryManifest
from rtrec_ray.stores.history.store import History, HistoryFile
from rtrec_ray.stores.history.tidy import TidyOptions, tidy
from rtrec_ray.stores.static.memory import MemoryStaticFeatures
from rtrec_ray.stores.static.postgres import PostgresStaticFeatures
from rtrec_ray.stores.static.run import HereCounting, Run, RunOrder, RunReport, Unit, units
from rtrec_ray.stores.static.store import StaticFeatures, StaticValues, list_static, read_static
from tests.daily_events import (
    DAY_START_MS,
    PARTITIONS,
    Event,
    day,
    event,
    plain_counts,
    plain_values,
    random_events,
    retraction,
    write,
)

LAST = 8  # of nine days
NOBODY = 999


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest) -> Iterator[StaticFeatures]:
    if request.param == "memory":
        yield MemoryStaticFeatures()
        return
    options = PostgresOptions(dsn=request.getfixturevalue("dsn"))
    with closing(PostgresStaticFeatures(options, portion_rows=7)) as made:
        yield made


class Place:
    """A history that grows, and runs over it."""

    def __init__(self, folder: Path, store: StaticFeatures) -> None:
        self.folder, self.store = folder, store
        self.files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(folder)))
        self.manifest = MemoryHistoryManifest()
        self.history = History(self.files, self.manifest)
        self.events: list[Event] = []

    def come(self, events: Sequence[Event], *, partitions: int = PARTITIONS) -> None:
        self.manifest.add(None, write(self.folder, events, first=len(self.events), partitions=partitions))
        self.events += events

    def run(
        self, *, complete: int | None = LAST, counting: Any = None, rows: int = 40, keep: int = 35, **order: Any
    ) -> RunReport:
        here = counting or HereCounting(self.history, self.store)
        run = Run(history=self.history, store=self.store, counting=here, rows_per_task=rows, keep_days=keep)
        wanted = RunOrder(owner="test", complete=None if complete is None else day(complete), **order)
        return run.correct(wanted)

    def read(self, at: int | None = None) -> dict[tuple[str, int], Any]:
        """Every value, by entity and key."""
        found: dict[tuple[str, int], Any] = {}
        for entity, field in ENTITIES.items():
            keys = sorted({each[field] for each in self.events if each.get(field) is not None})
            asked = self.store.static(entity, keys, as_of_day=None if at is None else day(at))
            found |= {(entity, key): value for key, value in asked.values.items() if value is not None}
        return found

    def expected(self, at: int = LAST) -> dict[tuple[str, int], Any]:
        return plain_values(plain_counts(self.events), as_of_day=day(at))


@pytest.fixture
def place(tmp_path: Path, store: StaticFeatures) -> Place:
    return Place(tmp_path, store)


def _counts(*rows: tuple[int, str, int, int, int]) -> pl.DataFrame:
    """(day, entity, key, impressions, clicks) as COUNT_SCHEMA."""
    return pl.DataFrame(
        [
            {**dict.fromkeys(COUNTED, 0), "day": day(at), "entity": entity, "key": key, "impression": shown, "click": n}
            for at, entity, key, shown, n in rows
        ],
        schema=COUNT_SCHEMA,
    )


def test_a_store_without_a_run_has_no_values_and_says_so(store: StaticFeatures) -> None:
    assert store.static("user", [1]) == StaticValues(as_of_day=None, values={1: None})
    answer = read_static(store, "daily_user", ["1"], as_of_ms=None)
    assert answer == {"view": "daily_user", "as_of_ms": None, "version": 1, "values": {"1": None}}


def test_values_are_those_of_the_last_publication_until_the_next(store: StaticFeatures) -> None:
    with store.begin("a") as correction:
        correction.add(_counts((0, "item", 1, 4, 1), (0, "item", 1, 4, 0), (1, "item", 1, 2, 1), (1, "user", 1, 0, 1)))
        correction.replace([day(0), day(1)])
        assert store.static("item", [1]).as_of_day is None
        assert correction.publish(day(1)) == 2
        correction.add(_counts((1, "item", 1, 100, 0)))
        correction.replace([day(1)])
        assert correction.state().stale
    of_item = store.static("item", [1, 2])
    assert (of_item.as_of_day, of_item.values[2]) == (day(1), None)
    value = of_item.values[1]
    assert value is not None
    assert list(value) == list(VALUES)
    assert (value["impression_1d"], value["click_rate_1d"], value["impression_7d"], value["click_7d"]) == (
        2,
        0.5,
        10,
        2,
    )
    of_user = store.static("user", [1]).values[1]
    assert of_user is not None
    assert (of_user["click_1d"], of_user["click_rate_1d"]) == (1, None)
    with store.begin("b") as correction:
        correction.publish(day(1))
    anew = store.static("item", [1]).values[1]
    assert anew is not None
    assert (anew["impression_1d"], anew["impression_7d"]) == (100, 108)


def test_an_earlier_day_is_read_from_the_days_counts_and_a_later_one_from_the_values(store: StaticFeatures) -> None:
    with store.begin("a") as correction:
        correction.add(_counts(*((at, "item", 1, 10, at) for at in range(9))))
        correction.replace([day(at) for at in range(9)])
        correction.publish(day(8))
    clicks = {at: store.static("item", [1, 2], as_of_day=day(at)) for at in (-1, 0, 6, 7, 8, 9)}
    assert {at: found.as_of_day for at, found in clicks.items()} == {
        at: min(day(at), day(8)) for at in (-1, 0, 6, 7, 8, 9)
    }
    assert {at: found.values[1] and found.values[1]["click_7d"] for at, found in clicks.items()} == {
        -1: None,
        0: 0,
        6: 21,
        7: 28,
        8: 35,
        9: 35,
    }
    assert read_static(store, "daily_item", ["1"], as_of_ms=start_ms(day(8)) - 1)["as_of_ms"] == start_ms(day(7))


def test_what_was_dropped_is_refused_and_stays_dropped(store: StaticFeatures) -> None:
    names = pl.DataFrame([(0, first_minute(day(at)), "a") for at in (1, 2)], schema=NAME_SCHEMA, orient="row")
    with store.begin("a") as correction:
        correction.note(taken_back=names, days=[day(at) for at in range(11)], offsets={0: 5})
        correction.add(_counts(*((at, "item", 1, 10, at) for at in range(11))))
        correction.replace([day(at) for at in range(11)])
        assert correction.publish(day(9), kept_from=day(2)) == 1
        assert correction.publish(day(10), kept_from=day(1)) == 1
        assert (correction.state().kept_from, correction.days()) == (day(2), [day(at) for at in range(2, 11)])
    value = store.static("item", [1], as_of_day=day(8)).values[1]
    assert value is not None
    assert value["click_7d"] == sum(range(2, 9))
    with pytest.raises(BeyondRetention, match="kept from 2026-01-03 on, and 2026-01-02 is asked for") as refused:
        store.static("item", [1], as_of_day=day(7))
    assert "as of 2026-01-09 or later" in refused.value.mend
    assert store.taken_back(from_minute=first_minute(day(2)), to_minute=first_minute(day(3))).height == 1
    with pytest.raises(BeyondRetention):
        store.taken_back(from_minute=first_minute(day(2)) - 1, to_minute=first_minute(day(3)))


def test_a_replaced_day_is_pending_no_more_and_another_stays_as_it_was(store: StaticFeatures) -> None:
    with store.begin("a") as correction:
        correction.note(taken_back=NAME_SCHEMA.to_frame(), days=[day(2), day(0), day(1)], offsets={0: 5, 1: 7})
        assert correction.pending(upto=day(1)) == [day(0), day(1)]
        correction.add(_counts((0, "item", 1, 1, 0), (2, "item", 1, 5, 0)))
        correction.replace([day(0)])
        assert correction.pending(upto=day(9)) == [day(1), day(2)]
        correction.replace([day(1)])
        assert correction.days() == [day(0), day(1), day(2)]
        correction.publish(day(2))
    value = store.static("item", [1]).values[1]
    assert value is not None
    assert value["impression_7d"] == 1
    with store.begin("b") as correction:
        assert correction.state().offsets == {0: 5, 1: 7}
        assert correction.pending(upto=day(9)) == [day(2)]


def test_names_taken_back_are_kept_once_however_long_they_are(store: StaticFeatures) -> None:
    long = "".join(random.Random(0).choices("abcdefgh\"',\n 你", k=100_000))
    rows = [(0, 10, "a"), (0, 11, "b"), (1, 10, "a"), (0, 12, long)]
    names = pl.DataFrame(rows, schema=NAME_SCHEMA, orient="row")
    with store.begin("a") as correction:
        for _ in range(2):
            correction.note(taken_back=names, days=[], offsets={})
    found = store.taken_back(from_minute=10, to_minute=12)
    assert found.schema == NAME_SCHEMA
    assert sorted(found.rows()) == [(0, 10, "a"), (0, 11, "b"), (1, 10, "a")]
    assert store.taken_back(from_minute=12, to_minute=13).rows() == [(0, 12, long)]


def test_one_run_goes_on_at_a_time_and_a_failed_one_is_in_nobodys_way(store: StaticFeatures) -> None:
    with store.begin("first"), pytest.raises(LeaseHeld, match="first"), store.begin("second"):
        pass
    with pytest.raises(RuntimeError, match="half way"):
        _end_half_way(store)
    with store.begin("fourth") as correction:
        correction.replace([day(0)])
        assert correction.publish(day(0)) == 0


def _end_half_way(store: StaticFeatures) -> None:
    with store.begin("third") as correction:
        correction.add(_counts((0, "item", 1, 1, 0)))
        raise RuntimeError("half way")


def test_a_key_that_is_no_number_is_the_key_of_nothing(store: StaticFeatures) -> None:
    answer = read_static(store, "daily_category", ["x", "", str(2**63), "-1"], as_of_ms=None)
    assert list(answer["values"].values()) == [None] * 4


def test_the_list_names_views_keys_and_values() -> None:
    user, item, category = list_static()
    assert [user["name"], item["name"], category["name"]] == ["daily_user", "daily_item", "daily_category"]
    assert (item["keys"], item["window_ms"], item["tile_ms"]) == (["item_id"], 7 * DAY_MS, DAY_MS)
    assert len(item["values"]) == 18


def test_a_day_is_complete_when_event_time_is_at_its_end() -> None:
    assert [complete_day(start_ms(day(1)) + late_ms) for late_ms in (-1, 0)] == [day(-1), day(0)]


def test_a_run_leaves_what_a_plain_count_of_all_events_gives(place: Place) -> None:
    place.come(random_events(1_500, days=9))
    report = place.run()
    assert place.read() == place.expected()
    assert (report.as_of_day, report.days) == (day(LAST), tuple(day(at) for at in range(9)))
    assert report.events == sum(
        n for (_, entity, _), of_key in plain_counts(place.events).items() if entity == "user" for n in of_key.values()
    )
    assert report.keys == len(place.expected())
    for at in range(9):
        assert place.read(at) == place.expected(at)


def test_a_run_again_counts_nothing_and_one_of_everything_changes_nothing(place: Place) -> None:
    place.come(random_events(800, days=9))
    place.run()
    again, everything = place.run(), place.run(everything=True)
    assert (again.days, again.events, again.keys) == ((), 0, None)
    assert len(everything.days) == 9
    assert place.read() == place.expected()


def test_a_late_event_or_retraction_corrects_its_day_and_just_the_values_that_reach_it(place: Place) -> None:
    place.come(random_events(1_000, days=9))
    place.run()
    old = {at: place.read(at) for at in range(9)}
    original = next(each for each in place.events if each["event_type"] == "click" and each["ts"] >= start_ms(day(1)))
    for late in (event("late", "click", at_ms=DAY_MS + 5, user=3), retraction(original, after_ms=6 * DAY_MS)):
        place.come([late])
        of_day = 1 if late["event_type"] == "click" else int((original["ts"] - start_ms(day(0))) // DAY_MS)
        assert day(of_day) in place.run().days
    for at in range(9):
        assert place.read(at) == place.expected(at)
        assert (place.read(at) != old[at]) == (1 <= at <= 7)


def test_a_copy_and_a_retraction_are_of_an_event_that_came_before_partitions_were_added(place: Place) -> None:
    plain = [event(n, "view", at_ms=n * 30_000, user=n % 7, item=n % 3) for n in range(60)]
    place.come(plain)
    place.come([*plain[:20], *(retraction(each) for each in plain[-20:])], partitions=3)
    place.run(complete=0, rows=7)
    assert place.read() == place.expected(0)
    place.come([retraction(each, after_ms=60_000) for each in plain[20:30]], partitions=5)
    place.run(complete=0, rows=7)
    assert place.read() == place.expected(0)


def test_the_day_that_is_not_over_waits_unless_it_is_asked_for(place: Place) -> None:
    place.come(random_events(600, days=9))
    assert place.run(complete=None).days == ()
    assert place.run(complete=None, days=(day(8),)).days == (day(8),)
    assert place.read() == {}
    before = place.run(complete=7)
    assert (before.as_of_day, before.days[-1]) == (day(7), day(7))
    assert place.read() == place.expected(7)
    place.come([event("later", "view", at_ms=8 * DAY_MS + 77)])
    assert place.run(complete=7).days == ()
    assert place.run(complete=8).days == (day(8),)
    assert place.read() == place.expected(8)


def test_values_do_not_go_back_to_an_earlier_day(place: Place) -> None:
    place.come(random_events(300, days=9))
    place.run()
    assert place.run(complete=3).as_of_day == day(LAST)
    assert place.read() == place.expected()


def test_files_put_together_bring_nothing_up(place: Place) -> None:
    for start in range(0, 600, 50):
        place.come(random_events(600, days=9)[start : start + 50])
    place.run()
    assert tidy(place.files, place.manifest, TidyOptions(min_files=2)).replaced > 0
    assert place.run().days == ()
    place.come([event("late", "view", at_ms=3 * DAY_MS)])
    tidy(place.files, place.manifest, TidyOptions(min_files=2))
    assert place.run().days == (day(3),)
    assert place.read() == place.expected()


def test_a_retraction_that_was_noted_before_brings_up_no_day_again(place: Place) -> None:
    taken = event(0, "view", at_ms=0)
    back = retraction(taken, after_ms=4 * DAY_MS)
    place.come([taken, back])
    place.run()
    place.come([event(1, "view", at_ms=4 * DAY_MS)])
    assert tidy(place.files, place.manifest, TidyOptions(min_files=2)).replaced == 2
    assert place.run().days == (day(4),)
    assert place.read() == place.expected()


def test_days_that_no_window_reaches_are_dropped_by_the_run_that_goes_on_and_what_comes_for_them_is_named(
    place: Place,
) -> None:
    place.come(random_events(1_200, days=12))
    assert place.run(keep=9).days == tuple(day(at) for at in range(9))
    later = place.run(complete=11, keep=9)
    assert (later.days, later.too_old) == (tuple(day(at) for at in (9, 10, 11)), ())
    place.come([event("old", "view", at_ms=2 * DAY_MS), event("late", "view", at_ms=3 * DAY_MS)])
    report = place.run(complete=11, keep=9)
    assert (report.days, report.too_old) == ((day(3),), (day(2),))
    for at in (9, 10, 11):
        assert place.read(at) == place.expected(at)
    with pytest.raises(BeyondRetention, match="2026-01-03 is asked for"):
        place.read(8)
    with pytest.raises(BeyondRetention, match="2026-01-03 is asked for"):
        place.run(complete=11, keep=9, days=(day(2),))
    everything = place.run(complete=11, keep=9, everything=True)
    assert (everything.days, everything.too_old) == (
        tuple(day(at) for at in range(3, 12)),
        tuple(day(at) for at in range(3)),
    )
    assert place.read(11) == place.expected(11)


class Dying(HereCounting):
    """Counting that ends in the middle."""

    left = 3

    def counts(self, units: Sequence[Unit]) -> Iterator[pl.DataFrame]:
        for part in super().counts(units):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("killed")
            yield part


class DyingStore:
    """A store whose runs end before they publish."""

    def __init__(self, store: StaticFeatures) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def begin(self, owner: str) -> Any:
        return _unpublished(self._store.begin(owner))


class _unpublished:  # noqa: N801 - a context manager
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __enter__(self) -> Any:
        correction = self._inner.__enter__()

        class Mortal:
            def __getattr__(self, name: str) -> Any:
                if name == "publish":
                    raise RuntimeError("killed")
                return getattr(correction, name)

        return Mortal()

    def __exit__(self, *error: object) -> Any:
        return self._inner.__exit__(*error)


def test_what_is_taken_back_in_a_day_is_noted_until_the_day_ends(place: Place) -> None:
    old = event("old", "view", at_ms=0)
    place.come([old, event("new", "view", at_ms=4 * DAY_MS)])
    place.run(complete=4, keep=5)
    place.come([retraction(old, after_ms=4 * DAY_MS)])
    mortal = Run(
        history=place.history,
        store=DyingStore(place.store),  # type: ignore[arg-type]
        counting=HereCounting(place.history, place.store),
        keep_days=3,
    )
    with pytest.raises(RuntimeError, match="killed"):
        mortal.correct(RunOrder(owner="mortal", complete=day(4)))
    minute = first_minute(day(0))
    assert place.store.taken_back(from_minute=minute, to_minute=minute + 1)["event_id"].to_list() == [old["event_id"]]
    place.run(complete=4, keep=3)
    with pytest.raises(BeyondRetention):
        place.store.taken_back(from_minute=minute, to_minute=minute + 1)


def test_whatever_a_killed_run_left_the_next_one_finishes(place: Place) -> None:
    place.come(random_events(900, days=9))
    with pytest.raises(RuntimeError, match="killed"):
        place.run(counting=Dying(place.history, place.store))
    assert place.read() == {}
    assert place.run().as_of_day == day(LAST)
    assert place.read() == place.expected()

    place.come([event("late", "view", at_ms=7 * DAY_MS)])
    stale = place.read()
    mortal = Run(
        history=place.history,
        store=DyingStore(place.store),  # type: ignore[arg-type]
        counting=HereCounting(place.history, place.store),
    )
    with pytest.raises(RuntimeError, match="killed"):
        mortal.correct(RunOrder(owner="mortal", complete=day(LAST)))
    assert place.read() == stale
    place.run()
    assert place.read() == place.expected()


@pytest.mark.parametrize("rows", [1, 7, 100, 100_000])
def test_units_of_a_day_have_each_event_once_and_all_that_share_its_name(tmp_path: Path, rows: int) -> None:
    files = write(tmp_path, random_events(300, days=1))
    of_hour = [replace(file, path=f"{file.path}-{n}", row_count=50) for n, file in enumerate(files)]
    found = units(of_hour, max_rows=rows)
    minutes = [minute for unit in found for minute in _minutes(unit)]
    assert len(minutes) == len(set(minutes))
    read = sorted((file.path, minute) for unit in found for file in unit.files for minute in _minutes(unit))
    there = {(file.path, minute) for file in of_hour for minute in range(3 * 1_440) if _has(file, minute)}
    assert [each for each in read if each in there] == sorted(there)
    assert all(unit.from_ms % 60_000 == unit.to_ms % 60_000 == 0 for unit in found)
    assert {unit.rows <= rows for unit in found} == {True}


def _minutes(unit: Unit) -> Iterable[int]:
    """Since the first midnight."""
    return range((unit.from_ms - DAY_START_MS) // 60_000, (unit.to_ms - DAY_START_MS) // 60_000)


def _has(file: HistoryFile, minute: int) -> bool:
    start_ms = DAY_START_MS + minute * 60_000
    return file.min_ts_ms < start_ms + 60_000 and file.max_ts_ms >= start_ms


def test_progress_comes_to_its_end(place: Place) -> None:
    place.come(random_events(400, days=9))
    told: list[tuple[int, int]] = []
    run = Run(
        history=place.history,
        store=place.store,
        counting=HereCounting(place.history, place.store),
        rows_per_task=30,
    )
    run.correct(RunOrder(owner="test", complete=day(LAST)), progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, len(place.events))
    assert told[-1] == (len(place.events), len(place.events))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert dt.date(2026, 1, 9) == day(LAST)
    assert len(place.history.files(BEHAVIOR)) > 9
