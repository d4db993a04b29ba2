"""Kafka goes away and comes back: clients say so, and go on by themselves where they were."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest

from rtrec_ray.embedded.kafka import KafkaServer
from rtrec_ray.errors import KafkaUnavailable
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.base import Consumer, KafkaOptions, Producer, TopicPartition, TopicSpec
from rtrec_ray.kafka.confluent_consumer import ConfluentConsumer
from rtrec_ray.kafka.connect import connect_admin, connect_consumer, connect_producer

pytestmark = [pytest.mark.server, pytest.mark.slow]

PLACE = TopicPartition(topic=BEHAVIOR, partition=0)


@dataclass(frozen=True, kw_only=True)
class Clients:
    """One library's consumer and producer on a topic of their own, and what was read so far."""

    consumer: Consumer
    producer: Producer
    seen: list[bytes | None]

    def read(self) -> list[bytes | None]:
        for batch in self.consumer.poll(max_records=100, timeout_s=0.1):
            self.seen.extend(batch.values)
        return self.seen

    def says_away(self) -> bool:
        try:
            self.read()
        except KafkaUnavailable:
            return True
        return False

    def delivers(self, value: bytes) -> bool:
        try:
            self.producer.deliver(BEHAVIOR, [b"1"], [value], timeout_s=1.0)
        except KafkaUnavailable:
            return False
        return True


@pytest.fixture
def libraries(kafka_bootstrap: str) -> Iterator[list[Clients]]:
    with ExitStack() as stack:
        yield [open_clients(stack, kafka_bootstrap, library) for library in ("confluent", "kafka-python")]


def open_clients(stack: ExitStack, bootstrap: str, library: Any) -> Clients:
    options = KafkaOptions(bootstrap=bootstrap, library=library, suffix=f"-{uuid.uuid4().hex[:8]}", timeout_s=3.0)
    with connect_admin(options) as admin:
        admin.ensure_topics([TopicSpec(topic=BEHAVIOR, partitions=1)])
    clients = Clients(
        consumer=stack.enter_context(closing(connect_consumer(options))),
        producer=stack.enter_context(closing(connect_producer(options))),
        seen=[],
    )
    clients.consumer.assign({PLACE: 0})
    return clients


def test_clients_outlive_a_broker_that_is_away(kafka_server: KafkaServer, libraries: list[Clients], eventually) -> None:
    for clients in libraries:
        assert eventually(lambda clients=clients: clients.delivers(b"before"), what="a first delivery")
        assert eventually(lambda clients=clients: clients.read() == [b"before"], what="a first record")
    kafka_server.stop()
    try:
        for clients in libraries:
            assert eventually(clients.says_away, what="the consumer says that Kafka is away")
            with pytest.raises(KafkaUnavailable):
                clients.consumer.end_offsets([PLACE])
            assert not clients.delivers(b"during")
    finally:
        kafka_server.start()
    for clients in libraries:
        assert eventually(lambda clients=clients: clients.delivers(b"after"), what="delivery again")
        assert eventually(lambda clients=clients: after(clients), what="reading again")
        # What was not acknowledged was not given up either: it may come later, and what was tried again comes again.
        assert list(dict.fromkeys(clients.seen)) in ([b"before", b"after"], [b"before", b"during", b"after"])
        assert clients.seen.count(b"before") == 1


def after(clients: Clients) -> bool:
    return not clients.says_away() and b"after" in clients.seen


def test_a_client_that_cannot_be_closed_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    class Hanging:
        """As librdkafka's is now and then."""

        def close(self) -> None:
            released.wait()

    released = threading.Event()
    consumer = ConfluentConsumer(KafkaOptions(bootstrap="127.0.0.1:1", timeout_s=0.2))
    own, consumer._client = consumer._client, Hanging()
    consumer.close()
    assert [record.message for record in caplog.records if "closed" in record.message] == ["consumer_not_closed"]
    released.set()
    own.close()
