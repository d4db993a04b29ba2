"""The history on a real Kafka and PostgreSQL, with its process killed between any two steps of a commit."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import orjson
import polars as pl
import pytest

from rtrec_ray.events import BEHAVIOR, DEAD_LETTER, ITEM
from rtrec_ray.kafka.base import EARLIEST, KafkaOptions, TopicPartition
from rtrec_ray.kafka.connect import connect_admin, connect_consumer, connect_producer
from rtrec_ray.kafka.deadletter import decode_dead
from rtrec_ray.kafka.topics import ensure_topics
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import HOUR_MS, History, HistoryManifest
from rtrec_ray.stores.progress import read_stages

pytestmark = pytest.mark.server

PARTITIONS = 2
START_MS = 1_700_000_000_000
BROKEN = [b"{", b'{"event_id": "x", "event_type": "dance", "ts": 1, "user_id": 1}', b"[]", b"\xff"]


@pytest.fixture
def kafka(kafka_bootstrap: str) -> KafkaOptions:
    options = KafkaOptions(bootstrap=kafka_bootstrap, suffix=f"-{uuid.uuid4().hex[:8]}", partitions=PARTITIONS)
    with connect_admin(options) as admin:
        ensure_topics(admin, partitions=PARTITIONS)
    return options


@pytest.fixture
def manifest(dsn: str) -> Iterator[HistoryManifest]:
    with closing(PostgresHistoryManifest(PostgresOptions(dsn=dsn))) as made:
        yield made


def _event(number: int, rng: random.Random) -> bytes:
    """A view in one of three hours, out of order, with a field that nobody knows."""
    event = {
        "event_id": f"e{number}",
        "event_type": "view",
        "ts": START_MS + rng.randrange(3 * HOUR_MS),
        "user_id": number % 50,
        "color": "rødt",
    }
    return orjson.dumps(event)


def _produce(kafka: KafkaOptions, first: int, last: int) -> tuple[list[bytes], list[bytes]]:
    """Write events with a broken record among every twenty; answers the good and the bad values."""
    rng = random.Random(first)
    good, bad, items = [_event(number, rng) for number in range(first, last)], [], []
    with closing(connect_producer(kafka)) as producer:
        for number, value in enumerate(good, start=first):
            producer.send(BEHAVIOR, key=str(number % 50).encode(), value=value)
            if number % 20 == 0:
                bad.append(BROKEN[number // 20 % len(BROKEN)])
                producer.send(BEHAVIOR, key=str(number % 50).encode(), value=bad[-1])
            if number % 50 == 0:
                items.append(orjson.dumps({"item_id": number, "ts": START_MS, "title": "x"}))
                producer.send(ITEM, key=str(number).encode(), value=items[-1])
        producer.flush()
    return good, bad


def _dead_letters(kafka: KafkaOptions, *, at_least: int) -> list[tuple[bytes, bytes | None]]:
    """(key of the bad record, its value) of everything in topic dead-letter."""
    found: list[tuple[bytes, bytes | None]] = []
    with closing(connect_consumer(kafka)) as consumer:
        parts = [TopicPartition(topic=DEAD_LETTER, partition=number) for number in range(PARTITIONS)]
        consumer.assign(dict.fromkeys(parts, EARLIEST))
        ends = sum(consumer.end_offsets(parts).values())
        while len(found) < max(ends, at_least):
            for batch in consumer.poll(max_records=1_000, timeout_s=5.0):
                letters = [decode_dead(value) for value in batch.values if value is not None]
                found += [(letter.key, letter.value) for letter in letters]
    return found


class Worker:
    """The process under test."""

    def __init__(self, *arguments: str) -> None:
        script = Path(__file__).with_name("history_worker.py")
        self.process = subprocess.Popen([sys.executable, str(script), *arguments])

    def wait(self) -> int:
        return self.process.wait(timeout=60)


def _visible(manifest: HistoryManifest) -> int:
    return sum(one.rows for one in manifest.summary() if one.topic == BEHAVIOR)


@pytest.mark.slow
def test_a_kill_between_any_two_steps_of_a_commit_leaves_each_record_in_the_history_once(
    dsn: str, kafka: KafkaOptions, manifest: HistoryManifest, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    arguments = (dsn, kafka.bootstrap, kafka.suffix, str(tmp_path / "h"))
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path / "h")))
    good, bad = _produce(kafka, 0, 1_500)
    # Each of the two partitions commits at least once, however fast the machine: more is not sure to come.
    for point, count in [("after-files", "5"), ("after-rows", "2"), ("after-commit", "1")]:
        assert Worker(*arguments, point, count).wait() == -9
        more = _produce(kafka, len(good), len(good) + 100)
        good, bad = good + more[0], bad + more[1]
    last = Worker(*arguments, "never", "0")
    try:
        eventually(lambda: _visible(manifest) >= len(good))
    finally:
        last.process.terminate()
        assert last.wait() == 0
    frame = pl.DataFrame(pl.from_arrow(History(files, manifest).dataset(BEHAVIOR).to_table()))
    assert sorted(frame["raw"]) == sorted(good)
    assert frame.select("partition", "offset").is_unique().all()
    assert set(frame["kafka_ts"] > START_MS) == {True}
    for file in manifest.files(BEHAVIOR):
        assert file.min_ts_ms // HOUR_MS == file.max_ts_ms // HOUR_MS
        assert f"hour={file.event_hour:02}" in file.path
    on_disk = set(files.paths(BEHAVIOR))
    assert {file.path for file in manifest.files(BEHAVIOR)} < on_disk  # the killed ones left files that nobody reads
    letters = _dead_letters(kafka, at_least=len(bad))
    assert sorted(value for _, value in dict(letters).items() if value is not None) == sorted(bad)
    _counts_add_up(dsn, records=len(good) + len(bad), dead=len(bad))


def _counts_add_up(dsn: str, *, records: int, dead: int) -> None:
    with closing(connect(PostgresOptions(dsn=dsn))) as connection, transaction(connection) as cur:
        counts = read_stages(cur)["history"].counts
        cur.execute("SELECT sum(row_count) FROM meta.history_files")
        (rows,) = cur.fetchone() or (None,)
    items = counts["in"] - records
    assert (counts["dead"], counts["out"], rows) == (dead, records - dead + items, records - dead + items)
