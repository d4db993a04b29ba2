"""Past samples get features that they did not have, out of a real history, into a real PostgreSQL."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import msgspec
import orjson
import polars as pl
import pytest

from actors.feature import FeatureOperator
from rtrec_ray.errors import BackfillImpossible, StoreUnavailable
from rtrec_ray.events import CatalogItem, ProfileVersion
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.file import load_definitions, parse_definitions
from rtrec_ray.features.request import Recent, item_asks, item_features, request_asks, request_features, trends
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode
from rtrec_ray.postgres.connection import Pool, PostgresOptions, connect
from rtrec_ray.samples.columns import REQUEST_SCHEMA, REVISION_SCHEMA
from rtrec_ray.samples.settlement import Settled
from rtrec_ray.stores.features.as_of import AsOfReader
from rtrec_ray.stores.features.past import past_of
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import schema
from rtrec_ray.stores.progress import Committed, write_committed
from rtrec_ray.stores.samples.backfill import SamplesBackfill
from rtrec_ray.stores.samples.writing import PostgresSampleLedger
from tests.conftest import Eventually

pytestmark = pytest.mark.server

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
BASE = 1_767_225_600_000
MINUTE = 60_000
EVENTS, REQUESTS = 1_500, 120
VIEWS = ("user_browse_5m", "user_browse_1m", "category_top_items_10m", "top_viewed_30m", "segment_page_top_ads")
LOGGED = {"country": "CN", "gender": "f", "user_5m_view": -1}
NO_VALUES = {"country", "gender", "city", "age_band", "realtime", "item_category", "item_type"} | {
    "item_category_recently_viewed"
}
MET = {
    "user_5m_view",
    "user_last_items",
    "user_1m_pages",
    "item_category_clicks_10m",
    "item_type_views_30m",
    "item_segment_clicks_10m",
    "item_recently_viewed",
}
ROWS = "SELECT event_day, request_id, view, version, features, items FROM samples.backfilled ORDER BY 2, 3"


def events() -> Iterator[dict[str, Any]]:
    """Views and clicks of 50 minutes."""
    for number in range(EVENTS):
        yield {
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


def requests() -> list[dict[str, Any]]:
    """Requests of that time, each with two items."""
    rng = random.Random(1)
    return [
        {
            "request_id": f"r{number:03}",
            "user_id": rng.randrange(1, 7),
            "ts": BASE + 5 * MINUTE + number * 20_001,
            "items": [ranked(item, place) for place, item in enumerate(rng.sample(range(7), 2), start=1)],
        }
        for number in range(REQUESTS)
    ]


def ranked(item: int, place: int) -> dict[str, Any]:
    features = {"item_category": str(item % 3), "item_type": "ad"}
    return {"item_id": item, "position": place, "score": 0.5, "features": features}


@pytest.fixture
def pool(dsn: str) -> Iterator[Pool]:
    with closing(Pool(PostgresOptions(dsn=dsn), size=3)) as made:
        yield made


@pytest.fixture
def store(pool: Pool) -> PostgresFeatureStore:
    """The stream took all events; and users have profiles."""
    found = PostgresFeatureStore(DEFINITIONS, pool=pool)
    owner = FeatureOperator(0, store=found, latest_ms=lambda wall_ms: 1 << 62, watermark=WatermarkOptions())
    with pool.transaction() as cursor:
        found.apply(cursor)
        owner.restore(cursor, committed={})
        profiles = [{"user_id": user, "ts": BASE, "country": "CN", "gender": "f"} for user in range(1, 4)]
        owner.apply(record_batch("profile", 0, [msgspec.json.encode(each) for each in profiles]))
        owner.apply(record_batch("behavior", 0, [msgspec.json.encode(each) for each in events()]))
        owner.write(cursor)
    return found


@pytest.fixture
def reader(dsn: str, pool: Pool, store: PostgresFeatureStore, tmp_path: Path) -> Iterator[AsOfReader]:
    """The history has the events and is sure of them up to the last but nine requests."""
    batch = record_batch("behavior", 0, [msgspec.json.encode(each) for each in events()])
    frame = decode(batch, latest_ms=lambda wall_ms: 1 << 62).frame
    origin = {"partition": pl.lit(0, dtype=pl.Int32), "kafka_ts": pl.lit(0, dtype=pl.Int64), "raw": pl.lit(b"")}
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path)))
    written = files.write("behavior", frame.with_columns(**origin).select(schema("behavior").names()), partition=0)
    with closing(PostgresHistoryManifest(PostgresOptions(dsn=dsn))) as manifest, pool.transaction() as cursor:
        manifest.add(cursor, written)
        at = Committed(next_offset={"behavior": EVENTS}, watermark_ms=requests()[-9]["ts"])
        write_committed(cursor, task="history", partition=0, at=at, lag=0, counts={})
    with closing(past_of(str(tmp_path), PostgresOptions(dsn=dsn))) as past:
        yield AsOfReader(store=store, past=past)


@pytest.fixture(autouse=True)
def samples(pool: Pool) -> None:
    """The requests and their samples, as they were logged."""
    rows = [
        {
            "event_day": dt.date(2026, 1, 1),
            "request_id": request["request_id"],
            "item_id": item["item_id"],
            "user_id": request["user_id"],
            "event_time_ms": request["ts"],
            "page_id": 1,
            "position": item["position"],
            "label": 0,
            "labels": "{}",
            "item_features": orjson.dumps(item["features"]).decode(),
            "model_version": "1",
            "features": orjson.dumps(LOGGED).decode(),
            "items": orjson.dumps(request["items"]).decode(),
        }
        for request in requests()
        for item in request["items"]
    ]
    whole = (
        pl.DataFrame(rows)
        .with_columns(pl.lit(None).alias(name) for name in ("arm", "as_of", "propensity", "score", "source_offset"))
        .with_columns(negative_rate=1.0, definition_version=1)
    )
    asked = whole.unique("request_id", maintain_order=True)
    settled = Settled(
        requests=asked.select(pl.col(name).cast(kind) for name, kind in REQUEST_SCHEMA.items()),
        samples=whole.select(pl.col(name).cast(kind) for name, kind in REVISION_SCHEMA.items()),
        counts=Counter(),
    )
    with pool.transaction() as cursor:
        PostgresSampleLedger(partition=0).write(cursor, settled)


def rows(pool: Pool, statement: str) -> list[tuple[Any, ...]]:
    with pool.transaction() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def served(store: PostgresFeatureStore, request: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    """What serving would have logged of the request and the item, had it asked for the tile before."""
    profile = ProfileVersion(user_id=request["user_id"], ts=0, country="CN", gender="f")
    ids = [each["item_id"] for each in request["items"]]
    shown = [CatalogItem(item_id=each, ts=0, item_type="ad", category_id=each % 3) for each in ids]
    asks = [*request_asks(user_id=request["user_id"], profile=profile, page_id=1), *item_asks(shown)]
    values = store.get(asks, as_of_ms=request["ts"], now_ms=request["ts"])
    features = request_features(values, profile, user_id=request["user_id"], realtime=True)
    # The whole list: the feature of that name has ten of it.
    viewed = next(value for ask, value in values.items() if ask.view == "user_browse_5m") or {}
    recent = Recent(items=frozenset(viewed.get("last_items", ())))
    mine = next(each for each in shown if each.item_id == item["item_id"])
    own = item_features(mine, trends(values, profile, page_id=1), recent=recent)
    return {name: value for name, value in {**features, **own}.items() if name not in NO_VALUES}


def test_past_samples_get_just_what_serving_would_have_logged_beside_what_it_did(
    pool: Pool, store: PostgresFeatureStore, reader: AsOfReader
) -> None:
    logged = rows(pool, "SELECT request_id, item_id, features FROM samples.current ORDER BY 1, 2")
    assert {value for (value,) in rows(pool, "SELECT backfilled FROM samples.current")} == {None}
    for view in VIEWS:
        done = SamplesBackfill(reader, pool=pool, portion=50).fill(view, from_ms=None, to_ms=None)
        assert (done.requests, done.already, done.ahead) == (REQUESTS - 9, 0, 9)
    found = rows(pool, "SELECT request_id, item_id, backfilled FROM samples.current ORDER BY 1, 2")
    assert rows(pool, "SELECT request_id, item_id, backfilled FROM samples.ledger ORDER BY 1, 2") == found
    by_key = {(request_id, item_id): features for request_id, item_id, features in found}
    nonzero: Counter[str] = Counter()
    for request in requests()[:-9]:
        for item in request["items"]:
            want = served(store, request, item)
            assert by_key[request["request_id"], item["item_id"]] == want
            nonzero.update(name for name, value in want.items() if value not in (0, []))
    assert nonzero.keys() >= MET
    assert rows(pool, "SELECT request_id, item_id, features FROM samples.current ORDER BY 1, 2") == logged
    assert [by_key[request["request_id"], request["items"][0]["item_id"]] for request in requests()[-9:]] == [None] * 9


def test_a_run_that_ended_half_way_goes_on_and_leaves_what_an_undisturbed_one_does(
    pool: Pool, reader: AsOfReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SamplesBackfill(reader, pool=pool, portion=20)
    whole.fill("user_browse_5m", from_ms=None, to_ms=None)
    undisturbed = rows(pool, ROWS)
    with pool.transaction() as cursor:
        cursor.execute("TRUNCATE samples.backfilled")
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if done == 40:
            raise StoreUnavailable("killed")

    with pytest.raises(StoreUnavailable):
        SamplesBackfill(reader, pool=pool, portion=20).fill(
            "user_browse_5m", from_ms=None, to_ms=None, progress=progress
        )
    assert told == [0, 20, 40]
    assert len(rows(pool, ROWS)) == 40
    again = SamplesBackfill(reader, pool=pool, portion=20).fill("user_browse_5m", from_ms=None, to_ms=None)
    assert (again.requests, again.already) == (REQUESTS - 9 - 40, 40)
    assert rows(pool, ROWS) == undisturbed
    third = SamplesBackfill(reader, pool=pool).fill("user_browse_5m", from_ms=None, to_ms=None)
    assert (third.requests, third.already) == (0, REQUESTS - 9)


def work(dsn: str, folder: str, die_after: int) -> None:
    """A run in a process of its own, which is gone once it has committed that many requests."""

    def progress(done: int, total: int) -> None:
        if done >= die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    options = PostgresOptions(dsn=dsn)
    with closing(Pool(options, size=1)) as pool, closing(past_of(folder, options)) as past:
        store = PostgresFeatureStore(DEFINITIONS, pool=pool)
        store.refresh()
        job = SamplesBackfill(AsOfReader(store=store, past=past), pool=pool, portion=2)
        job.fill("user_browse_5m", from_ms=None, to_ms=None, progress=progress)


WAITING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INTO samples.backfilled%'
"""


def test_runs_killed_in_a_commit_and_between_two_leave_what_an_undisturbed_one_does(
    dsn: str, pool: Pool, reader: AsOfReader, tmp_path: Path, eventually: Eventually
) -> None:
    SamplesBackfill(reader, pool=pool).fill("user_browse_5m", from_ms=None, to_ms=None)
    undisturbed = rows(pool, ROWS)
    with pool.transaction() as cursor:
        cursor.execute("TRUNCATE samples.backfilled")

    def run(die_after: int = 1_000) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=work, args=(dsn, str(tmp_path), die_after))
        process.start()
        return process

    with closing(connect(PostgresOptions(dsn=dsn))) as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE samples.backfilled IN SHARE MODE")
        cut = run()
        eventually(lambda: rows(pool, WAITING), what="a commit waits")
        cut.kill()
        cut.join()
    assert rows(pool, ROWS) == []
    for die_after, expected in ((2, 2), (42, 44), (1_000, len(undisturbed))):
        run(die_after).join()
        assert len(rows(pool, ROWS)) == expected
    assert rows(pool, ROWS) == undisturbed


NEW = """
tile: 10s
horizon: 40m
retention: 70m
views:
  - name: user_9m
    version: 1
    keys: [user_id]
    window: 9m
    source: {event_type: [view, click]}
    aggregations: {clicks: {count: events, where: {event_type: click}}, pages: {distinct: page_id}}
  - name: pair_9m
    version: 1
    keys: [user_id|item_id, country|gender|category_id]
    window: 9m
    source: {event_type: [view, click]}
    aggregations: {dwell: {mean: dwell_ms}, kinds: {count_by: event_type}}
  - name: searched
    version: 1
    keys: [query]
    window: 9m
    source: {event_type: search}
    aggregations: {n: {count: events}}
"""


def test_a_view_that_serving_does_not_know_gives_past_samples_every_value_it_has(
    pool: Pool, store: PostgresFeatureStore, reader: AsOfReader
) -> None:
    with pool.transaction() as cursor:
        PostgresFeatureStore(parse_definitions(NEW), pool=pool).apply(cursor)
    store.refresh()
    for view in ("user_9m", "pair_9m"):
        done = SamplesBackfill(reader, pool=pool, portion=50).fill(view, from_ms=None, to_ms=None)
        assert (done.requests, done.ahead) == (REQUESTS - 9, 9)
    found = rows(pool, "SELECT request_id, item_id, backfilled FROM samples.current")
    by_key = {(request_id, item_id): features for request_id, item_id, features in found}
    with_data = 0
    for request in requests()[:-9]:
        end = request["ts"] // 10_000 * 10_000
        window = [event for event in events() if end - 9 * MINUTE <= event["ts"] < end]
        own = [event for event in window if event["user_id"] == request["user_id"]]
        # Of the users those with a profile; the requests say all are of CN and f.
        segment = [event for event in window if event["user_id"] <= 3]
        for item in (each["item_id"] for each in request["items"]):
            of_item = [event for event in own if event["item_id"] == item]
            of_category = [event for event in segment if event["category_id"] == item % 3]
            with_data += bool(of_item and of_category)
            assert by_key[request["request_id"], item] == {
                "user_9m.clicks": sum(event["event_type"] == "click" for event in own),
                "user_9m.pages": [1] if own else [],
                "pair_9m.user_id|item_id.dwell": 3.0 if of_item else None,
                "pair_9m.user_id|item_id.kinds": dict(Counter(event["event_type"] for event in of_item)),
                "pair_9m.country|gender|category_id.dwell": 3.0 if of_category else None,
                "pair_9m.country|gender|category_id.kinds": dict(Counter(event["event_type"] for event in of_category)),
            }
    assert with_data > 100
    with pytest.raises(BackfillImpossible, match="keys of searched are made of query"):
        SamplesBackfill(reader, pool=pool).fill("searched", from_ms=None, to_ms=None)


def test_only_requests_of_the_stretch_are_filled(pool: Pool, reader: AsOfReader) -> None:
    job, times = SamplesBackfill(reader, pool=pool), [request["ts"] for request in requests()]
    done = job.fill("user_browse_1m@1", from_ms=times[3], to_ms=times[5])
    assert (done.view, done.requests, done.ahead) == ("user_browse_1m@1", 2, 0)
    assert [row[1] for row in rows(pool, ROWS)] == ["r003", "r004"]


def test_segments_are_not_computed_while_profiles_wait_to_be_read(reader, pool) -> None:
    def come_to(task: str, offset: int) -> None:
        with pool.transaction() as cursor:
            at = Committed(next_offset={"profile": offset}, watermark_ms=requests()[-9]["ts"])
            write_committed(cursor, task=task, partition=0, at=at, lag=0, counts={})

    job = SamplesBackfill(reader, pool=pool)
    come_to("history", 5)
    come_to("features", 4)
    with pytest.raises(BackfillImpossible, match="not all is there yet"):
        job.fill("segment_page_top_ads", from_ms=None, to_ms=None)
    assert job.fill("user_browse_5m", from_ms=None, to_ms=None).requests == REQUESTS - 9
    come_to("features", 5)
    assert job.fill("segment_page_top_ads", from_ms=None, to_ms=None).requests == REQUESTS - 9
