"""A view that began while the system ran, filled from a real history into a real PostgreSQL by a Ray Data job."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pytest

from actors.feature import FeatureOperator
from actors.jobs.backfill import BackfillOptions, backfill
from configs.settings import History as HistorySettings
from configs.settings import Settings
from rtrec_ray.app.lacking import lacking_views
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import BackfillImpossible, ListsOvertaken, StoreUnavailable, UnknownView
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.samples.file import load_definition as load_samples
from rtrec_ray.stores.features.backfill import FeatureBackfill
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.past import past_of
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import schema
from rtrec_ray.stores.progress import Committed, write_committed

pytestmark = [pytest.mark.server, pytest.mark.ray]

CONFIGS = Path(__file__).parents[2] / "configs"
DEFINITIONS = load_definitions(CONFIGS / "features.yaml")
BASE = 1_767_225_600_000
MINUTE = 60_000
EVENTS, CUT = 1_500, 900
AGAIN = tuple(replace(view, version=2) for view in DEFINITIONS.views)
KEYS = [
    *(("user_browse_5m", str(user)) for user in range(1, 6)),
    *(("category_top_items_10m", str(category)) for category in range(3)),
    ("segment_page_top_ads", "CN|f|1"),
    ("top_viewed_30m", "ad"),
]


def events():
    """Views and clicks of 50 minutes; every tenth comes again 200 records later, every fifteenth is taken back then."""
    plain = [
        {
            "event_id": f"e{number}",
            "event_type": ("view", "click")[number % 2],
            "ts": BASE + number * 2_000,
            "user_id": number % 5 + 1,
            "item_id": number % 7,
            "item_type": "ad",
            "category_id": number % 3,
            "page_id": 1,
            "dwell_ms": 3,
        }
        for number in range(EVENTS)
    ]
    for number, event in enumerate(plain):
        yield event
        old = plain[number - 200] if number >= 200 else None
        if old is not None and number % 10 == 0:
            yield old
        if old is not None and number % 15 == 1:
            yield {"event_id": f"r{number}", "event_type": "retract", "ts": event["ts"], "user_id": old["user_id"], "retracts": old}  # fmt: skip  # noqa: E501


class Place:
    """One partition's stream into PostgreSQL, and its history."""

    def __init__(self, pool: Pool, postgres: PostgresOptions, history: Path) -> None:
        self.pool, self.postgres, self.history = pool, postgres, str(history)
        self.values = [msgspec.json.encode(event) for event in events()]
        self.owner = FeatureOperator(
            0,
            store=self.apply(DEFINITIONS),
            latest_ms=lambda wall_ms: 1 << 62,
            watermark=WatermarkOptions(),
        )
        with pool.transaction() as cursor:
            self.owner.restore(cursor, committed={})
        profiles = [{"user_id": user, "ts": BASE, "country": "CN", "gender": "f"} for user in range(1, 4)]
        self.owner.apply(record_batch("profile", 0, [msgspec.json.encode(each) for each in profiles]))

    def apply(self, definitions) -> PostgresFeatureStore:
        store = PostgresFeatureStore(definitions, pool=self.pool)
        with self.pool.transaction() as cursor:
            store.apply(cursor)
        return store

    def run(self, start: int, end: int) -> None:
        """The stream takes these records and commits."""
        batch = record_batch("behavior", 0, self.values[start:end], first_offset=start)
        self.owner.apply(batch)
        with self.pool.transaction() as cursor:
            self.owner.write(cursor)
        self.owner.committed()

    def keep(self, end: int) -> None:
        """The history has the records up to there."""
        batch = record_batch("behavior", 0, self.values[:end])
        frame = decode(batch, latest_ms=lambda wall_ms: 1 << 62).frame
        origin = {"partition": pl.lit(0, dtype=pl.Int32), "kafka_ts": pl.lit(0, dtype=pl.Int64), "raw": pl.lit(b"")}
        files = ArrowHistoryFiles(HistoryFilesOptions(uri=self.history))
        written = files.write("behavior", frame.with_columns(**origin).select(schema("behavior").names()), partition=0)
        manifest = PostgresHistoryManifest(self.postgres)
        with self.pool.transaction() as cursor:
            manifest.add(cursor, written)
            at = Committed(next_offset={"behavior": end}, watermark_ms=BASE)
            write_committed(cursor, task="history", partition=0, at=at, lag=0, counts={})

    def options(self, view: str) -> BackfillOptions:
        return BackfillOptions(
            view=view,
            from_ms=None,
            to_ms=None,
            definitions=DEFINITIONS,
            postgres=self.postgres,
            history_uri=self.history,
        )

    def reader(self) -> PostgresFeatureStore:
        store = PostgresFeatureStore(DEFINITIONS, pool=self.pool)
        store.refresh()
        return store

    def values_of(self, version: int, *, now_ms: int, cached: bool = False):
        asks = [ViewKey(view=f"{view}@{version}", key=key) for view, key in KEYS]
        return list(self.reader().get(asks, as_of_ms=None, now_ms=now_ms, cached=cached).values())


def work(postgres: PostgresOptions, history: str) -> None:
    """Two slices of each view, each tried twice; then of the first view until the second slice with tiles has written
    them, when the process is gone.
    """
    with closing(Pool(postgres, size=1)) as pool, closing(past_of(history, postgres)) as past:
        store = PostgresFeatureStore(DEFINITIONS, pool=pool)
        store.refresh()
        job = FeatureBackfill(store, pool=pool, past=past)
        plans = [job.plan(f"{view.name}@2", from_ms=None, to_ms=None) for view in DEFINITIONS.views]
        for plan in plans:
            for start in plan.todo[:2]:
                job.fill(plan, from_ms=start)
                assert job.fill(plan, from_ms=start) == 0
        write, written = store.append_tiles, [0]

        def dies(*output) -> int:
            written.append(write(*output))
            if sum(map(bool, written)) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return written[-1]

        store.append_tiles = dies
        for start in plans[0].todo[2:]:
            job.fill(plans[0], from_ms=start)


@pytest.fixture
def place(dsn, tmp_path):
    postgres = PostgresOptions(dsn=dsn)
    with closing(Pool(postgres, size=3)) as pool:
        made = Place(pool, postgres, tmp_path)
        made.run(0, CUT)
        made.apply(replace(DEFINITIONS, views=AGAIN))
        made.run(CUT, CUT)  # a commit that notices
        yield made


def test_a_view_filled_by_a_job_that_was_killed_half_way_has_every_value_of_one_that_was_always_there(place, ray_local):
    place.run(CUT, len(place.values))
    place.keep(len(place.values))
    moments = range(BASE + 5 * MINUTE, BASE + 60 * MINUTE, 7 * MINUTE)
    assert any(place.values_of(1, now_ms=now_ms) != place.values_of(2, now_ms=now_ms) for now_ms in moments)
    # What it committed before it was killed, between two slices and in one, stands; the rest is to be done.
    killed = multiprocessing.get_context("spawn").Process(target=work, args=(place.postgres, place.history))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    seen: list[tuple[int, int]] = []
    for view in DEFINITIONS.views:
        done = backfill(place.options(view.name + "@2"), on_slice=lambda done, total: seen.append((done, total)))
        assert done.already > 2 if view is DEFINITIONS.views[0] else done.already == 2
        assert done.slices > done.already
    assert seen[-1][0] == seen[-1][1]
    for now_ms in moments:
        assert place.values_of(1, now_ms=now_ms) == place.values_of(2, now_ms=now_ms)
    last_ms = BASE + EVENTS * 2_000
    TopLists(place.reader()).rebuild(now_ms=last_ms)
    assert place.values_of(1, now_ms=last_ms, cached=True) == place.values_of(2, now_ms=last_ms, cached=True)
    again = backfill(place.options("top_viewed_30m"), on_slice=lambda done, total: None)
    assert (again.view, again.rows, again.already) == ("top_viewed_30m@2", 0, again.slices)


class Overtaken(PostgresFeatureStore):
    """A keeper's store: the tiles behind its lists are read before a view is filled, its lists are written after."""

    fill = staticmethod(lambda: None)

    def put_lists(self, rounds):
        self.fill()
        super().put_lists(rounds)


@pytest.fixture
def job(place):
    with closing(past_of(place.history, place.postgres)) as past:
        yield FeatureBackfill(place.reader(), pool=place.pool, past=past)


@pytest.mark.parametrize("made", [True, False])
def test_lists_that_lack_what_was_filled_are_not_read_by_anybody_until_they_are_made_anew(place, job, made):
    place.run(CUT, len(place.values))
    place.keep(len(place.values))
    last_ms, ask = BASE + EVENTS * 2_000, ViewKey(view="top_viewed_30m", key="ad")
    near = NearFeatures(place.reader(), clock=ManualClock(now_ms=last_ms), most_rows=500_000, longest_s=60.0)

    def read(source):
        found = source.read([ask], now_ms=last_ms, cached=True)
        return found.values[ask], found.points["top_viewed_30m"].version

    def fill():
        plan = job.plan("top_viewed_30m@2", from_ms=None, to_ms=None)
        for start in plan.todo:
            job.fill(plan, from_ms=start)
        job.complete(plan)

    whole, _ = read(place.reader())
    if made:
        TopLists(place.reader()).rebuild(now_ms=last_ms)
    near.refresh()
    keeper = Overtaken(DEFINITIONS, pool=place.pool)
    keeper.refresh()
    keeper.fill = fill
    with pytest.raises(ListsOvertaken):
        TopLists(keeper).rebuild(now_ms=last_ms)
    near.refresh()
    assert read(place.reader()) == read(near) == (whole, 2)
    TopLists(place.reader()).rebuild(now_ms=last_ms)
    near.refresh()
    assert read(place.reader()) == read(near) == (whole, 2)


def test_a_stretch_that_was_begun_goes_on_though_tiles_are_kept_for_less_of_it_now(place, job):
    place.run(CUT, len(place.values))
    place.keep(len(place.values))
    retention_ms = DEFINITIONS.retention_ms

    def plan(from_ms, to_ms=None):
        return job.plan("top_viewed_30m@2", from_ms=from_ms, to_ms=to_ms)

    def mark_comes_to(ms):
        with place.pool.transaction() as cursor:
            cursor.execute("UPDATE features.settings SET kept_upto_ms = %s", (ms,))

    mark_comes_to(BASE + retention_ms)
    first = plan(BASE)
    job.fill(first, from_ms=first.todo[0])
    mark_comes_to(BASE + 11 * MINUTE + retention_ms)
    rest = plan(BASE)
    assert (rest.todo, rest.kept_from_ms) == (first.todo[1:], BASE + 11 * MINUTE)
    for start in rest.todo:
        job.fill(rest, from_ms=start)
    assert job.complete(rest) == BASE + 10 * MINUTE
    assert job.complete(plan(BASE + 20 * MINUTE)) == BASE + 10 * MINUTE, "it has more than that"
    for nothing in ((BASE, BASE + MINUTE), (BASE + 20 * MINUTE, BASE + 15 * MINUTE)):
        with pytest.raises(BackfillImpossible, match="there is nothing before"):
            plan(*nothing)


def test_what_lacks_its_past_is_named_until_it_is_filled_and_readers_are_told(place, tmp_path):
    place.run(CUT, len(place.values))
    place.keep(len(place.values))
    system = System(
        settings=Settings(history=HistorySettings(uri=place.history)),
        directory=tmp_path,
        addresses=Addresses(postgres=place.postgres.dsn),
        features=DEFINITIONS,
        samples=load_samples(CONFIGS / "samples.yaml"),
    )
    assert lacking_views(system) == tuple(view.id for view in AGAIN)
    first, *others = lacking_views(system)
    job = FeatureBackfill(place.reader(), pool=place.pool, past=past_of(place.history, place.postgres))
    plan = job.plan(first, from_ms=None, to_ms=None)
    for start in plan.todo:
        job.fill(plan, from_ms=start)
    assert lacking_views(system) == (first, *others), "it is filled, but readers do not know"
    job.complete(plan)
    assert lacking_views(system) == tuple(others)

    place.apply(replace(DEFINITIONS, views=(replace(AGAIN[0], version=3),)))
    with pytest.raises(BackfillImpossible, match="@3 did not begin"):
        lacking_views(system, begin_s=0.0)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(lacking_views, system, begin_s=60.0)
        place.run(len(place.values), len(place.values))
        assert waiting.result() == (*others, f"{AGAIN[0].name}@3"), "it waits for the stream"


def test_a_view_dropped_and_applied_again_gets_nothing_of_a_backfill_of_before(place):
    place.run(CUT, len(place.values))
    place.keep(len(place.values))
    job = FeatureBackfill(place.reader(), pool=place.pool, past=past_of(place.history, place.postgres))
    plan = job.plan("top_viewed_30m@2", from_ms=None, to_ms=None)
    assert job.fill(plan, from_ms=BASE) > 0
    place.reader().drop_view("top_viewed_30m@2")
    place.apply(replace(DEFINITIONS, views=AGAIN))
    place.run(len(place.values), len(place.values))
    assert job.fill(plan, from_ms=BASE + 10 * MINUTE) == 0
    with pytest.raises(BackfillImpossible, match="top_viewed_30m@2 was dropped"):
        job.complete(plan)
    again = job.plan("top_viewed_30m@2", from_ms=None, to_ms=None)
    assert (again.done, again.starts) == (0, {0: len(place.values)})
    assert job.lacks("top_viewed_30m@2")
    assert place.reader().sizes()["top_viewed_30m@2"].rows == 0


def test_a_file_of_the_history_that_is_gone_is_named_by_the_error_of_the_job(place, ray_local):
    place.run(CUT, len(place.values))
    place.keep(len(place.values))
    for file in Path(place.history).rglob("*.parquet"):
        file.unlink()
    with pytest.raises(StoreUnavailable, match=r"topic=behavior.*\.parquet"):
        backfill(place.options("top_viewed_30m@2"), on_slice=lambda done, total: None)


def test_what_cannot_be_filled_is_said(place, monkeypatch, ray_local):
    monkeypatch.setattr("actors.jobs.backfill._HISTORY_S", 0.5)
    with pytest.raises(BackfillImpossible, match="history"):
        backfill(place.options("top_viewed_30m@2"), on_slice=lambda done, total: None)
    with pytest.raises(UnknownView, match="nope"):
        backfill(place.options("nope"), on_slice=lambda done, total: None)
    with pytest.raises(BackfillImpossible, match="from the first on"):
        backfill(place.options("top_viewed_30m@1"), on_slice=lambda done, total: None)
    place.apply(replace(DEFINITIONS, views=(replace(AGAIN[0], version=3),)))
    with pytest.raises(BackfillImpossible, match="begun"):
        backfill(place.options(f"{AGAIN[0].name}@3"), on_slice=lambda done, total: None)
