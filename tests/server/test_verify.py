"""Served by the real stages and serving, recomputed from the history: nothing differs, whatever died in between."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from actors.feature import FeatureOperator
from actors.history import HistoryOperator, HistoryOptions
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.app.verify import VerifyOptions, verify_history
from rtrec_ray.backoff import Backoff
from rtrec_ray.cli.features import features as features_command
from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import FeaturesDiffer, StoreUnavailable, VerifyImpossible
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.served import FEATURES
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.postgres.connection import Pool, PostgresOptions, connect
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import History
from rtrec_ray.stores.progress import read_positions
from serving.memory import MemoryServers
from serving.options import ServingOptions
from serving.replica import Replica
from serving.schema import RecommendRequest

pytestmark = pytest.mark.server

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
BASE = 1_767_225_600_000
SECOND = 1_000
PARTITIONS, USERS, ITEMS = 2, 8, 12
KINDS = ("view", "click", "click", "cart", "search")


class Shop:
    """Stages over a log in memory and a real PostgreSQL, a replica that reads there, and shoppers by a script."""

    def __init__(self, dsn, folder, *, make_operator=FeatureOperator):
        self.postgres = PostgresOptions(dsn=dsn)
        self.clock = ManualClock(now_ms=BASE)
        self.broker = MemoryBroker(partitions=PARTITIONS, now_ms=self.clock.now_ms)
        self.producer = self.broker.producer()
        self.pool = Pool(self.postgres, size=4)
        self.store = PostgresFeatureStore(DEFINITIONS, pool=self.pool)
        with self.pool.transaction() as cursor:
            self.store.apply(cursor)
        self.store.refresh()
        self.lists = TopLists(self.store)
        self.manifest = PostgresHistoryManifest(self.postgres)
        self.files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(folder)))
        self.make_operator = make_operator
        self.rng = random.Random(5)
        self.sent = []
        self.numbers = itertools.count()
        servers = MemoryServers(DEFINITIONS, clock=self.clock)
        backends = dataclasses.replace(
            servers.backends(), store=self.store, connect_producer=self.broker.producer, close=lambda: None
        )
        options = ServingOptions(exploration=0.0, store_deadline_s=20.0, profile_refresh_s=1e-9)
        self.replica = Replica(backends, options=options, clock=self.clock)

    def close(self):
        self.replica.close()
        self.manifest.close()
        self.pool.close()

    def send(self, topic, key, **record):
        self.producer.send(topic, key=b"%d" % key, value=msgspec.json.encode(record))

    def send_profile(self, user, **fields):
        self.send("profile", user, user_id=user, **{"ts": BASE, "country": "CN", "gender": "f", **fields})

    def send_items(self):
        for item in range(ITEMS):
            kind = ("ad", "product")[item % 2]
            self.send("item", item, item_id=item, ts=BASE, item_type=kind, category_id=item % 3)

    def send_event(self, **fields):
        user, item = self.rng.randrange(USERS), self.rng.randrange(ITEMS)
        late_ms = self.rng.choice([0, 0, 0, 7_000, 90_000])
        event = {
            "event_id": f"e{next(self.numbers)}",
            "event_type": self.rng.choice(KINDS),
            "ts": self.clock.now_ms() - late_ms,
            "user_id": user,
            "item_id": item,
            "item_type": ("ad", "product")[item % 2],
            "category_id": item % 3,
            "page_id": self.rng.randrange(2),
            "dwell_ms": 3,
            **fields,
        }
        self.sent.append(event)
        self.send("behavior", event["user_id"], **event)

    def shop(self):
        """Some events, one sent again and one taken back now and then."""
        for _ in range(self.rng.randrange(1, 12)):
            self.send_event()
        again = self.rng.choice(self.sent[-40:])
        if self.rng.random() < 0.5:
            self.send("behavior", again["user_id"], **again)
        elif "retracts" not in again and again["event_type"] != "retract":
            self.send_event(user_id=again["user_id"], event_type="retract", ts=self.clock.now_ms(), retracts=again)

    def ask(self, user, *, page=0, **fields):
        request = RecommendRequest(user_id=user, page_id=page, k=6, **fields)
        _, record = asyncio.run(self.replica.service.recommender.answer(request))
        self.send("inference-log", user, **msgspec.to_builtins(record))
        return record

    def refresh(self):
        self.lists.rebuild(now_ms=self.clock.now_ms())
        self.replica.lists.refresh(catalogue_s=0.0)

    @contextmanager
    def running(self, task="features"):
        options = TaskOptions(
            task=task,
            partitions=tuple(range(PARTITIONS)),
            owner="one",
            commit_every_s=0.01,
            poll_s=0.005,
            max_poll_records=7,
            backoff=Backoff(first_s=0.02, longest_s=0.02),
        )
        loop = TaskLoop(
            options,
            make_operator=self._feature_operator if task == "features" else self._history_operator,
            connect_consumer=self.broker.consumer,
            connect_store=partial(connect, self.postgres, application=task, pipeline=True),
            clock=self.clock,
        )
        stop = threading.Event()
        worker = threading.Thread(target=loop.run, args=(stop,))
        worker.start()
        try:
            yield
        finally:
            stop.set()
            worker.join()

    def applied(self):
        return sum(self.reached("features", "behavior").values())

    def applied_beyond(self, offset):
        now = self.applied()
        return now if now > offset else None

    def reached(self, task, topic):
        with self.pool.transaction() as cursor:
            return read_positions(cursor, task=task, topic=topic)

    def keep(self, eventually):
        """Let the history have everything."""
        with self.running("history"):
            eventually(self._kept, what="the history has the log")

    def verify(self, **options):
        history = History(self.files, self.manifest)
        return verify_history(
            self.store,
            history,
            VerifyOptions(**{"share": 1.0, **options}),
            reached={topic: self.reached("history", topic) for topic in ("behavior", "profile", "item")},
            ahead_ms=60_000,
        )

    def _kept(self):
        rows = {each.topic: each.rows for each in self.manifest.summary()}
        topics = ("behavior", "inference-log", "profile", "item")
        return all(rows.get(topic, 0) == len(self.broker.records(topic)) for topic in topics)

    def _feature_operator(self, partition):
        return self.make_operator(
            partition, store=self.store, latest_ms=lambda wall: wall + 60_000, watermark=WatermarkOptions()
        )

    def _history_operator(self, _partition):
        return HistoryOperator(
            files=self.files,
            manifest=self.manifest,
            producer=self.producer,
            latest_ms=lambda wall: wall + 60_000,
            options=HistoryOptions(),
        )


@pytest.fixture
def open_shop(dsn, tmp_path):
    made = []

    def make(**options):
        made.append(Shop(dsn, tmp_path / "history", **options))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


def dying(every):
    """An operator that fails before or after the writing of each so many commits, in turn."""
    commits = itertools.count(1)

    class Dying(FeatureOperator):
        def write(self, cursor):
            number = next(commits)
            if number % every == 0:
                raise StoreUnavailable("killed before the write")
            counts = super().write(cursor)
            if number % every == every // 2:
                raise StoreUnavailable("killed after the write, before the commit")
            return counts

    Dying.commits = commits
    return Dying


def trade(shop, eventually, *, steps=60):
    """Shoppers and requests while the stage runs; some minutes pass, and each request finds the stage further on."""
    records, applied = [], 0
    with shop.running():
        eventually(lambda: len(shop.store.catalogue().items) == ITEMS, what="the catalogue is there")
        for step in range(steps):
            shop.shop()
            applied = eventually(partial(shop.applied_beyond, applied))
            if step % 3 == 0:
                shop.refresh()
            records += [shop.ask(shop.rng.randrange(USERS + 1), page=shop.rng.randrange(2)) for _ in range(3)]
            shop.clock.advance(shop.rng.choice([100, 2_000, 9_000, 30_000]))
    return records


def prepare(shop):
    for user in range(0, USERS, 2):
        shop.send_profile(user, city="A" if user % 4 else None)
    shop.send_items()


@pytest.mark.parametrize("killed", [False, True])
def test_nothing_differs_from_what_the_history_gives_whether_the_stage_died_or_not(open_shop, eventually, killed):
    operator = dying(10) if killed else FeatureOperator
    shop = open_shop(make_operator=operator)
    prepare(shop)
    records = trade(shop, eventually)
    shop.keep(eventually)
    report = shop.verify()
    assert report.as_dict()["examples"] == []
    assert (report.differences, report.not_yet, report.incomplete) == (0, 0, 0)
    assert report.compared == len(records) == 180
    assert all(report.outcomes[name]["equal"] > 100 for name in FEATURES)
    # Of nothing, all values are equal.
    assert sum(record.features["user_5m_click"] for record in records) > 100
    for name in ("item_category_clicks_10m", "item_segment_clicks_10m", "item_city_segment_clicks_10m"):
        assert sum(item.features[name] > 0 for record in records for item in record.items) > 20
    offsets = [tuple(record.as_of["user_browse_5m"].items()) for record in records]
    assert len(set(offsets)) > 20
    assert not killed or next(operator.commits) > 12


def test_a_tile_that_was_written_twice_is_found(open_shop, eventually):
    shop = open_shop()
    prepare(shop)
    with shop.running():
        shop.send_event(user_id=1, event_type="view", ts=BASE)
        eventually(lambda: shop.applied() == 1)
    shop.refresh()
    right = shop.ask(1)
    with shop.pool.transaction() as cursor:
        cursor.execute(
            "INSERT INTO features.tiles SELECT t.* FROM features.tiles t JOIN features.views v USING (view_id) "
            "WHERE v.name = 'user_browse_5m'"
        )
    wrong = shop.ask(1)
    assert (right.features["user_5m_view"], wrong.features["user_5m_view"]) == (1, 2)
    shop.keep(eventually)
    report = shop.verify()
    found = {(each["request_id"], each["feature"], each["kind"]) for each in report.as_dict()["examples"]}
    assert found == {
        (wrong.request_id, "user_5m_view", "mismatch"),
        (wrong.request_id, "user_5m_dwell_ms", "mismatch"),
    }


def test_a_list_that_nobody_brought_up_to_date_has_the_offsets_of_its_last_round(open_shop, eventually):
    shop = open_shop()
    prepare(shop)
    with shop.running():
        shop.send_event(event_type="click", ts=BASE)
        eventually(lambda: shop.applied() == 1)
        shop.refresh()
        shop.clock.advance(50 * SECOND)
        shop.send_event(event_type="click")
        eventually(lambda: shop.applied() == 2)
        record = shop.ask(1)
    assert sum(record.as_of["category_top_items_10m"].values()) == 1
    assert sum(record.as_of["user_browse_5m"].values()) == 2
    assert (record.as_of_ms["category_top_items_10m"], record.as_of_ms["user_browse_5m"]) == (BASE, BASE + 50 * SECOND)
    shop.keep(eventually)
    assert shop.verify().differences == 0


def test_a_profile_that_comes_after_its_clicks_is_no_fault(open_shop, eventually):
    shop = open_shop()
    shop.send_items()
    shop.send_profile(0)
    with shop.running():
        shop.send_event(user_id=2, event_type="click", item_id=0, item_type="ad", page_id=0, ts=BASE + 1)
        eventually(lambda: shop.applied() == 1)
        shop.send_profile(2)
        eventually(lambda: shop.store.profiles([2], as_of_ms=BASE + 1).profiles, what="the profile is there")
        shop.refresh()
        record = shop.ask(0)
    assert [item.features["item_segment_clicks_10m"] for item in record.items if item.item_id == 0] == [0]
    shop.keep(eventually)
    report = shop.verify()
    assert (report.differences, report.outcomes["item_segment_clicks_10m"]["late_profile"]) == (0, 1)


def test_what_the_history_lacks_is_said(open_shop, eventually):
    shop = open_shop()
    with pytest.raises(VerifyImpossible, match="no requests"):
        shop.verify()
    prepare(shop)
    shop.send("inference-log", 1, request_id="r", user_id=1, ts=BASE, model_version="1", features={})
    shop.keep(eventually)
    with pytest.raises(VerifyImpossible, match="which events"):
        shop.verify()
    with shop.running():
        shop.send_event(user_id=1)
        eventually(lambda: shop.applied() == 1)
    shop.refresh()
    shop.ask(1)
    shop.keep(eventually)
    history = History(shop.files, shop.manifest)
    with pytest.raises(VerifyImpossible, match="of 1 requests the history does not have"):
        verify_history(shop.store, history, VerifyOptions(share=1.0), reached={}, ahead_ms=0)
    assert shop.verify().compared == 1


def test_the_command_says_what_differs_and_ends_with_one(open_shop, eventually, tmp_path, monkeypatch):
    shop = open_shop()
    prepare(shop)
    with shop.running():
        shop.send_event(user_id=1, event_type="view", ts=BASE)
        eventually(lambda: shop.applied() == 1)
    shop.refresh()
    shop.ask(1)
    shop.keep(eventually)
    config = tmp_path / "rtrec.yaml"
    config.write_text(
        f'servers:\n  postgres:\n    dsn: "{shop.postgres.dsn}"\nhistory:\n  uri: "{tmp_path / "history"}"\n'
    )
    words = ["verify", "--sample", "1.0", "--config", str(config), "--data-dir", str(tmp_path / "data")]
    done = CliRunner().invoke(features_command, words)
    assert (done.exit_code, done.exception) == (0, None), done.output
    assert "1 requests: 1 compared" in done.output
    shop.send("inference-log", 1, **{**msgspec.to_builtins(shop.ask(1)), "request_id": "w", "features": {}})
    shop.keep(eventually)
    done = CliRunner().invoke(features_command, [*words, "--json"])
    assert isinstance(done.exception, FeaturesDiffer)
    found = msgspec.json.decode(done.stdout)
    assert found["features"]["user_5m_view"]["missing"] == 1
    assert {each["request_id"] for each in found["examples"]} == {"w"}
