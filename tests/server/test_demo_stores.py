"""What the demonstration reads of a real Kafka and PostgreSQL."""

import uuid
from contextlib import closing
from datetime import date

import pytest

from rtrec_ray.clock import ManualClock, monotonic_s
from rtrec_ray.demo.replay.audience import ARM
from rtrec_ray.demo.replay.verify import read_click_rate, read_stored
from rtrec_ray.demo.timeline import Timeline, Watched
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_admin, connect_producer
from rtrec_ray.kafka.topics import ensure_topics
from rtrec_ray.notification import MODEL, MODEL_VALIDATED, NewEvent, PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.progress import Committed, write_committed

pytestmark = pytest.mark.server

PARTITIONS = 2


@pytest.fixture
def kafka(kafka_bootstrap):
    options = KafkaOptions(bootstrap=kafka_bootstrap, suffix=f"-{uuid.uuid4().hex[:8]}", partitions=PARTITIONS)
    with connect_admin(options) as admin:
        ensure_topics(admin, partitions=PARTITIONS)
    return options


def commit(postgres, *, task, partition, applied):
    at = Committed(next_offset={BEHAVIOR: applied, "inference-log": 99}, max_ts_ms={}, watermark_ms=1_000 * applied)
    with closing(connect(postgres)) as connection, transaction(connection) as cursor:
        write_committed(cursor, task=task, partition=partition, at=at, lag=0, counts={"in": applied})


def produce(kafka, count):
    with closing(connect_producer(kafka)) as producer:
        producer.send_many(BEHAVIOR, [str(n).encode() for n in range(count)], [b"{}"] * count)
        producer.flush(timeout_s=10.0)


def test_the_timeline_sees_the_log_the_stages_and_the_models(kafka, dsn, eventually):
    postgres = PostgresOptions(dsn=dsn)
    produce(kafka, 20)
    commit(postgres, task="features", partition=0, applied=3)
    commit(postgres, task="features", partition=1, applied=4)
    told = []
    timeline = Timeline(
        Watched(kafka=kafka, postgres=postgres, clock=ManualClock(now_ms=77), partitions=PARTITIONS),
        began_s=monotonic_s(),
        watch=told.append,
        every_s=0.05,
    )
    timeline.start()
    try:
        eventually(lambda: timeline.moments() and timeline.moments()[-1].on_log == 20)
        with closing(PostgresNotificationStore(postgres)) as notes:
            notes.send(NewEvent(key=MODEL, value="4", type=MODEL_VALIDATED))
            notes.send(NewEvent(key="other", value="x"))
        eventually(lambda: timeline.events())
        seen = len(told)
        eventually(lambda: len(told) >= seen + 3)
    finally:
        timeline.stop()
    last = timeline.moments()[-1]
    assert (last.on_log, last.clock_ms) == (20, 77)
    assert last.stages["features"].applied == 7
    assert last.stages["features"].watermark_ms == 3_000
    assert last.stages["features"].counts == {"in": 7}
    assert [event.value for event in timeline.events()] == ["4"]
    assert sum(len(seen.events) for seen in told) == 1


REQUEST = """INSERT INTO samples.requests (event_day, request_id, user_id, event_time_ms, model_version, arm, features)
             VALUES (%s, %s, 1, 0, %s, %s, '{}')"""
REVISION = """INSERT INTO samples.revisions (event_day, request_id, item_id, revision, arm, label, commit_seq, user_id,
                  event_time_ms, labels, source_partition)
              VALUES (%s, %s, %s, %s, %s, %s, %s, 1, 0, '{}', 0)"""
REVISIONS = [
    ("a", 1, 0, "bts", 0),
    ("a", 2, 0, "bts", 1),
    ("l", 1, 0, ARM, 0),
    ("l", 1, 1, ARM, 1),
    ("m", 1, 0, ARM, 0),
]


def test_the_stores_are_read_by_arm_and_by_newest_revision(dsn):
    postgres, day = PostgresOptions(dsn=dsn), date(2019, 11, 24)
    with closing(connect(postgres)) as connection, transaction(connection) as cursor:
        cursor.execute("SELECT samples.ensure_days(ARRAY[%s])", (day,))
        for request, version, arm in (("a", "open-bandit-bts", "bts"), ("l", "3", ARM), ("m", "4", ARM)):
            cursor.execute(REQUEST, (day, request, version, arm))
        for seq, revision in enumerate(REVISIONS, start=1):
            cursor.execute(REVISION, (day, *revision, seq))
    stored = read_stored(postgres)
    assert (stored.samples_log, stored.positives_log) == (2, 1)
    assert (stored.samples_live, stored.positives_live) == (2, 1)
    assert (stored.joined_samples, stored.joined_requests) == (2, 2)
    assert stored.joined_versions == {"3", "4"}
    assert (stored.misses, stored.history, stored.history_files) == (0, {}, 0)
    assert read_click_rate(postgres, to_seq=2) == 0.5
    assert read_click_rate(postgres, to_seq=0) is None
