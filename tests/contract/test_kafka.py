"""Laws of the log that every client must keep."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from rtrec_ray.errors import ConfigInvalid, KafkaUnavailable, RecordTooLarge
from rtrec_ray.events import BEHAVIOR, DEAD_LETTER, INFERENCE, PROFILE
from rtrec_ray.kafka.base import (
    EARLIEST,
    MAX_RECORD_BYTES,
    Admin,
    Consumer,
    KafkaOptions,
    Producer,
    RecordBatch,
    TopicPartition,
    TopicSpec,
)
from rtrec_ray.kafka.connect import connect_admin, connect_consumer, connect_producer
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.kafka.partitioner import partition_of
from rtrec_ray.kafka.stamps import STAMPS, check_stamps
from rtrec_ray.kafka.topics import ensure_topics, topic_specs

PARTITIONS = 4
PARTS = [TopicPartition(topic=BEHAVIOR, partition=number) for number in range(PARTITIONS)]
SERVER = [pytest.param(library, marks=pytest.mark.server) for library in ("confluent", "kafka-python")]


@dataclass(frozen=True, kw_only=True)
class Log:
    """One log with topic `behavior`, and how to reach it."""

    consumer: Callable[[], Consumer]
    producer: Callable[[], Producer]
    admin: Callable[[], Admin]


def log_on(bootstrap: str, library: Any) -> Log:
    options = KafkaOptions(
        bootstrap=bootstrap, library=library, partitions=PARTITIONS, suffix=f"-{uuid.uuid4().hex[:8]}"
    )
    return Log(
        consumer=lambda: connect_consumer(options),
        producer=lambda: connect_producer(options),
        admin=lambda: connect_admin(options),
    )


@pytest.fixture(params=["memory", *SERVER])
def log(request: pytest.FixtureRequest) -> Log:
    if request.param == "memory":
        broker = MemoryBroker(partitions=PARTITIONS)
        log = Log(consumer=broker.consumer, producer=broker.producer, admin=broker.admin)
    else:
        log = log_on(request.getfixturevalue("kafka_bootstrap"), request.param)
    make(log, BEHAVIOR)
    return log


def make(log: Log, *topics: str) -> None:
    with log.admin() as admin:
        admin.ensure_topics([spec for spec in topic_specs(partitions=PARTITIONS) if spec.topic in topics])


@pytest.fixture
def producer(log: Log) -> Iterator[Producer]:
    with closing(log.producer()) as producer:
        yield producer


@pytest.fixture
def consumer(log: Log) -> Iterator[Consumer]:
    with closing(log.consumer()) as consumer:
        yield consumer


def write(producer: Producer, values: list[bytes | None], *, key: bytes = b"1", topic: str = BEHAVIOR) -> None:
    producer.send_many(topic, [key] * len(values), values)
    producer.flush(timeout_s=20)


def read(consumer: Consumer, count: int, *, max_records: int = 1000, rounds: int = 400) -> list[RecordBatch]:
    """Poll until `count` records came; batches that only move a position are left out."""
    batches: list[RecordBatch] = []
    for _ in range(rounds):
        if sum(map(len, batches)) >= count:
            return batches
        batches += [batch for batch in consumer.poll(max_records=max_records, timeout_s=0.05) if len(batch)]
    pytest.fail(f"{sum(map(len, batches))} of {count} records came")


def values_of(batches: list[RecordBatch]) -> list[bytes | None]:
    return [value for batch in batches for value in batch.values]


def numbers(count: int, *, start: int = 0) -> list[bytes | None]:
    return [b"%d" % number for number in range(start, start + count)]


def test_what_is_written_with_one_key_is_read_in_that_order_from_one_partition(log, producer, consumer) -> None:
    write(producer, numbers(500), key=b"42")
    consumer.assign(dict.fromkeys(PARTS, EARLIEST))
    batches = read(consumer, 500)
    assert values_of(batches) == numbers(500)
    assert {batch.partition for batch in batches} == {partition_of(b"42", partitions=PARTITIONS)}
    assert [offset for batch in batches for offset in batch.offsets.tolist()] == list(range(500))


def test_every_client_sends_a_key_to_the_partition_of_the_java_client(log, producer, consumer) -> None:
    keys = [b"%d" % user for user in range(200)]
    producer.send_many(BEHAVIOR, keys, keys)
    producer.flush(timeout_s=20)
    consumer.assign(dict.fromkeys(PARTS, EARLIEST))
    for batch in read(consumer, 200):
        assert {partition_of(key, partitions=PARTITIONS) for key in batch.values} == {batch.partition}


def test_reading_goes_on_exactly_where_next_offset_says(log, producer, consumer) -> None:
    write(producer, numbers(100))
    consumer.assign(dict.fromkeys(PARTS, EARLIEST))
    first = read(consumer, 1, max_records=30)
    assert 1 <= sum(map(len, first)) <= 30
    with closing(log.consumer()) as second:
        place = TopicPartition(topic=BEHAVIOR, partition=first[0].partition)
        second.assign({place: first[-1].next_offset})
        rest = read(second, 100 - sum(map(len, first)))
    assert values_of(first) + values_of(rest) == numbers(100)


def test_no_poll_answers_more_than_was_asked_for(log, producer, consumer) -> None:
    write(producer, numbers(50))
    consumer.assign(dict.fromkeys(PARTS, EARLIEST))
    seen = []
    while len(seen) < 50:
        batches = consumer.poll(max_records=7, timeout_s=1.0)
        assert sum(map(len, batches)) <= 7
        seen += values_of(batches)
    assert seen == numbers(50)


def test_a_log_without_news_gives_an_empty_answer(log, consumer) -> None:
    consumer.assign(dict.fromkeys(PARTS, 0))
    assert values_of(consumer.poll(max_records=10, timeout_s=0.1)) == []


def test_a_tombstone_and_an_empty_value_stay_what_they_are(log, producer, consumer) -> None:
    write(producer, [None, b"", b"x"])
    consumer.assign(dict.fromkeys(PARTS, EARLIEST))
    assert values_of(read(consumer, 3)) == [None, b"", b"x"]


def test_the_ends_are_one_past_the_last_record(log, producer, consumer) -> None:
    write(producer, numbers(3), key=b"42")
    ends = consumer.end_offsets(PARTS)
    assert ends[TopicPartition(topic=BEHAVIOR, partition=partition_of(b"42", partitions=PARTITIONS))] == 3
    assert sum(ends.values()) == 3


def test_a_paused_partition_waits_and_then_goes_on_without_a_gap(log, producer, consumer) -> None:
    write(producer, numbers(300), key=b"42")
    place = TopicPartition(topic=BEHAVIOR, partition=partition_of(b"42", partitions=PARTITIONS))
    consumer.assign({place: 0})
    first = read(consumer, 1, max_records=10)
    consumer.pause([place])
    assert values_of(consumer.poll(max_records=100, timeout_s=0.3)) == []
    consumer.resume([place])
    assert values_of(first) + values_of(read(consumer, 300 - sum(map(len, first)))) == numbers(300)


def test_assigning_again_replaces_positions_and_pauses(log, producer, consumer) -> None:
    write(producer, numbers(20), key=b"42")
    place = TopicPartition(topic=BEHAVIOR, partition=partition_of(b"42", partitions=PARTITIONS))
    consumer.assign({place: 0})
    read(consumer, 20)
    consumer.pause([place])
    consumer.assign({place: 15})
    assert values_of(read(consumer, 5)) == numbers(5, start=15)


def test_topics_do_not_mix(log, producer, consumer) -> None:
    make(log, INFERENCE)
    write(producer, [b"behavior"])
    write(producer, [b"inference"], topic=INFERENCE)
    parts = {TopicPartition(topic=INFERENCE, partition=number): EARLIEST for number in range(PARTITIONS)}
    consumer.assign(parts)
    assert [(batch.topic, batch.values) for batch in read(consumer, 1)] == [(INFERENCE, [b"inference"])]


def test_the_time_of_writing_comes_with_each_record(log, producer, consumer) -> None:
    write(producer, numbers(2))
    consumer.assign(dict.fromkeys(PARTS, EARLIEST))
    batch = read(consumer, 2)[0]
    assert batch.stamps_ms.shape == (len(batch),)
    assert batch.stamps_ms.min() > 1_700_000_000_000


def test_a_record_over_the_limit_is_refused_and_its_neighbours_are_not_written(log, producer, consumer) -> None:
    with pytest.raises(RecordTooLarge) as refused:
        producer.send_many(BEHAVIOR, [b"1", b"1"], [b"small", b"x" * (MAX_RECORD_BYTES + 1)])
    assert "max_record_bytes" in refused.value.mend
    producer.flush(timeout_s=20)
    assert sum(consumer.end_offsets(PARTS).values()) == 0


def test_the_largest_record_and_the_largest_dead_letter_pass(log, producer, consumer) -> None:
    make(log, DEAD_LETTER)
    producer.deliver(BEHAVIOR, [b"1"], [b"x" * MAX_RECORD_BYTES], timeout_s=20)
    producer.deliver(DEAD_LETTER, [b"1"], [b"x" * (2 * MAX_RECORD_BYTES)], timeout_s=20)
    consumer.assign(dict.fromkeys(PARTS, EARLIEST))
    assert [len(value or b"") for value in values_of(read(consumer, 1))] == [MAX_RECORD_BYTES]


def test_delivered_means_readable(log, producer, consumer) -> None:
    producer.deliver(BEHAVIOR, [b"1", b"2"], [b"a", b"b"], timeout_s=20)
    assert sum(consumer.end_offsets(PARTS).values()) == 2


def test_delivering_nothing_is_done_at_once(log, producer) -> None:
    producer.deliver(BEHAVIOR, [], [], timeout_s=0.1)


def test_making_topics_twice_makes_them_once(log) -> None:
    with log.admin() as admin:
        assert admin.ensure_topics([TopicSpec(topic=BEHAVIOR, partitions=9)]) == []
        assert admin.partitions(BEHAVIOR) == PARTITIONS
        assert admin.partitions("no-such-topic") is None


def test_new_topics_follow_the_partitions_of_those_they_are_joined_with(log) -> None:
    with log.admin() as admin:
        assert ensure_topics(admin, partitions=9) == PARTITIONS


def test_an_existing_topic_that_its_producers_stamp_is_refused_with_the_line_that_mends_it(log) -> None:
    wanted = [spec for spec in topic_specs(partitions=PARTITIONS) if spec.topic in (BEHAVIOR, PROFILE)]
    with log.admin() as admin:
        admin.ensure_topics([TopicSpec(topic=PROFILE, partitions=PARTITIONS, settings={STAMPS: "CreateTime"})])
        with pytest.raises(ConfigInvalid, match="must be LogAppendTime, and it is CreateTime for profile") as refused:
            admin.ensure_topics(wanted)
        assert admin.ensure_topics([spec for spec in wanted if spec.topic == BEHAVIOR]) == []
    command, entity = refused.value.mend.split(" --entity-name ")
    assert command.startswith("kafka-configs --bootstrap-server ")
    assert entity.startswith("profile")
    assert entity.endswith(" --add-config message.timestamp.type=LogAppendTime")


def test_a_topic_that_the_list_does_not_show_yet_is_looked_at_all_the_same(log, monkeypatch) -> None:
    spec = next(spec for spec in topic_specs(partitions=PARTITIONS) if spec.topic == PROFILE)
    with log.admin() as admin:
        admin.ensure_topics([TopicSpec(topic=PROFILE, partitions=PARTITIONS, settings={STAMPS: "CreateTime"})])
        monkeypatch.setattr(type(admin), "partitions", lambda self, topic: None)
        with pytest.raises(ConfigInvalid, match="it is CreateTime for profile"):
            admin.ensure_topics([spec])


def test_a_cluster_that_does_not_tell_its_settings_is_warned_of_and_used(caplog) -> None:
    spec = next(iter(topic_specs(partitions=PARTITIONS)))
    check_stamps([spec], {spec.topic: None}, options=KafkaOptions())
    assert [record.message for record in caplog.records] == ["topic_stamps_not_known"]


def test_topics_that_cannot_be_joined_are_refused() -> None:
    admin = MemoryBroker().admin()
    admin.ensure_topics([TopicSpec(topic=BEHAVIOR, partitions=4), TopicSpec(topic=PROFILE, partitions=3)])
    with pytest.raises(ConfigInvalid, match="behavior 4, profile 3"):
        ensure_topics(admin, partitions=4)


@pytest.mark.parametrize("library", ["confluent", "kafka-python"])
def test_a_broker_that_is_not_there_is_an_outcome_with_a_name(library) -> None:
    options = KafkaOptions(bootstrap="127.0.0.1:1", library=library, timeout_s=0.5)
    with closing(connect_consumer(options)) as consumer:
        consumer.assign({PARTS[0]: 0})
        with pytest.raises(KafkaUnavailable):
            read(consumer, 1, rounds=100)
        with pytest.raises(KafkaUnavailable):
            consumer.end_offsets(PARTS)
    with closing(connect_producer(options)) as producer, pytest.raises(KafkaUnavailable):
        producer.deliver(BEHAVIOR, [b"1"], [b"x"])
    with connect_admin(options) as admin, pytest.raises(KafkaUnavailable):
        admin.partitions(BEHAVIOR)


@pytest.mark.parametrize("library", ["confluent", "kafka-python"])
@pytest.mark.parametrize("connect", [connect_consumer, connect_producer, connect_admin])
def test_a_setting_that_the_client_does_not_know_is_refused_by_name(library, connect) -> None:
    options = KafkaOptions(library=library, client={"sasl.pasword": "x"})
    with pytest.raises(ConfigInvalid, match=r"sasl\.pasword"):
        connect(options)
