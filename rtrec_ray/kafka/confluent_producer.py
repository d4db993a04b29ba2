"""Producer and Admin over confluent-kafka (librdkafka)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final, Self

import confluent_kafka as rdkafka
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import KafkaUnavailable
from rtrec_ray.kafka.base import MAX_DEAD_LETTER_BYTES, KafkaOptions, TopicSpec, check_size
from rtrec_ray.kafka.librdkafka import ERROR, MEND, common_settings, make_client, raise_refused, raise_unavailable
from rtrec_ray.kafka.stamps import STAMPS, ensure

_LEARNS_S: Final = 0.05
# What a cluster answers that lets topics be used, and not be looked into.
_NOT_TOLD: Final = (
    ERROR.TOPIC_AUTHORIZATION_FAILED,
    ERROR.CLUSTER_AUTHORIZATION_FAILED,
    ERROR.UNSUPPORTED_VERSION,
    ERROR._UNSUPPORTED_FEATURE,  # noqa: SLF001  # librdkafka's own errors are named so
)


class ConfluentProducer:
    """Producer, idempotent, acknowledged by all in-sync replicas."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._refused: list[Any] = []
        self._client: Any = make_client(rdkafka.Producer, self._settings())

    def send(self, topic: str, *, key: bytes, value: bytes | None) -> None:
        self.send_many(topic, [key], [value])

    def send_many(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        check_size(topic, values, limit=self._options.max_record_bytes)
        self._queue(topic, keys, values, self._reported)

    def deliver(
        self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None], *, timeout_s: float | None = None
    ) -> None:
        check_size(topic, values, limit=self._options.max_record_bytes)
        receipt = _Receipt(len(values))
        self._queue(topic, keys, values, receipt.reported)
        deadline = monotonic_s() + (self._options.timeout_s if timeout_s is None else timeout_s)
        while not receipt.done.is_set() and monotonic_s() < deadline:
            self._client.poll(0.02)
        raise_refused(receipt.refused)
        if not receipt.done.is_set():
            raise KafkaUnavailable(f"{receipt.open} of {len(values)} records not acknowledged in time", mend=MEND)

    def flush(self, *, timeout_s: float | None = None) -> None:
        remaining = self._client.flush(self._options.timeout_s if timeout_s is None else timeout_s)
        refused, self._refused = self._refused, []
        raise_refused(refused)
        if remaining:
            raise KafkaUnavailable(f"{remaining} records not acknowledged in time", mend=MEND)

    def close(self) -> None:
        # Dropping the last reference would wait for the queue; what matters was flushed by its sender.
        self._client.purge()
        self._client.flush(1.0)

    def _settings(self) -> dict[str, Any]:
        return {
            **common_settings(self._options),
            "acks": "all",
            "enable.idempotence": True,
            # librdkafka's own default sends three keys in four to another partition than the Java client does.
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "batch.size": 256 << 10,
            "message.max.bytes": MAX_DEAD_LETTER_BYTES + (64 << 10),
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 64 << 10,
            **self._options.client,
        }

    def _queue(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None], report: Any) -> None:
        name, produce, poll = self._options.physical(topic), self._client.produce, self._client.poll
        for key, value in zip(keys, values, strict=True):
            try:
                produce(name, value, key, on_delivery=report)
            except (BufferError, rdkafka.KafkaException) as error:
                self._queue_slowly(name, key, value, report, error)
        poll(0)

    def _queue_slowly(self, name: str, key: bytes, value: bytes | None, report: Any, error: Exception) -> None:
        deadline = monotonic_s() + self._options.timeout_s
        while monotonic_s() < deadline:
            if not isinstance(error, BufferError):
                raise_unavailable(f"writing to {name} failed", error)
            self._client.poll(0.05)
            try:
                self._client.produce(name, value, key, on_delivery=report)
                return
            except (BufferError, rdkafka.KafkaException) as again:
                error = again
        raise KafkaUnavailable(f"the queue to Kafka stayed full for {self._options.timeout_s:g} s", mend=MEND)

    def _reported(self, error: Any, _message: Any) -> None:
        if error is not None:
            self._refused.append(error)


class _Receipt:
    """Counts the acknowledgements of one delivery. Called back by whichever thread polls the client."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self.open = count
        self.refused: list[Any] = []
        self.done = threading.Event()
        if not count:
            self.done.set()

    def reported(self, error: Any, _message: Any) -> None:
        with self._lock:
            self.open -= 1
            if error is not None:
                self.refused.append(error)
            if not self.open:
                self.done.set()


class ConfluentAdmin:
    """Admin over librdkafka's admin client."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._client: Any = make_client(AdminClient, {**common_settings(options), **options.client})

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        return ensure(
            specs,
            is_there=lambda topic: self.partitions(topic) is not None,
            make=self._make,
            stamps=self._stamps,
            options=self._options,
        )

    def partitions(self, topic: str) -> int | None:
        name = self._options.physical(topic)
        try:
            # The list of all topics: asking for one would make it where the broker makes topics by itself.
            found = self._client.list_topics(timeout=self._options.timeout_s).topics.get(name)
        except rdkafka.KafkaException as error:
            raise_unavailable("asking for the topics failed", error)
        return None if found is None or found.error is not None else len(found.partitions)

    def close(self) -> None:
        """The client has nothing to give back before it is collected."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _make(self, specs: Sequence[TopicSpec]) -> list[str]:
        futures = self._client.create_topics([self._new(spec) for spec in specs], operation_timeout=30.0)
        return [spec.topic for spec in specs if self._made(futures[self._options.physical(spec.topic)])]

    def _new(self, spec: TopicSpec) -> Any:
        return NewTopic(
            self._options.physical(spec.topic),
            spec.partitions,
            self._options.replication,
            config=dict(spec.settings),
        )

    def _stamps(self, topic: str) -> str | None:
        deadline, pause = monotonic_s() + self._options.timeout_s, threading.Event()
        while True:
            try:
                entry = self._settings(topic).get(STAMPS)
                return None if entry is None else str(entry.value)
            except rdkafka.KafkaException as error:
                if error.args[0].code() in _NOT_TOLD:
                    return None
                # A broker may learn a little later of a topic that the controller has.
                if error.args[0].code() != ERROR.UNKNOWN_TOPIC_OR_PART or monotonic_s() > deadline:
                    raise_unavailable("asking for the topics' settings failed", error)
            pause.wait(_LEARNS_S)

    def _settings(self, topic: str) -> Any:
        resource = ConfigResource(ConfigResource.Type.TOPIC, self._options.physical(topic))
        (told,) = self._client.describe_configs([resource], request_timeout=self._options.timeout_s).values()
        return told.result(self._options.timeout_s + 1.0)

    def _made(self, future: Any) -> bool:
        try:
            future.result(30.0)
        except rdkafka.KafkaException as error:
            if error.args[0].code() == ERROR.TOPIC_ALREADY_EXISTS:
                return False
            raise_unavailable("making the topics failed", error)
        return True
