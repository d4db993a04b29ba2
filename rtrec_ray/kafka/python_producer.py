"""Producer and Admin over kafka-python."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final, Self

import kafka
from kafka import errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import KafkaUnavailable
from rtrec_ray.kafka.base import MAX_DEAD_LETTER_BYTES, KafkaOptions, TopicSpec, check_size
from rtrec_ray.kafka.python_client import MEND, common_settings, in_our_words, quiet, translated, translating
from rtrec_ray.kafka.stamps import STAMPS, ensure

_QUEUE: Final = 50_000
_UNKNOWN_TOPIC: Final = 3


class PythonProducer:
    """Producer, idempotent, acknowledged by all in-sync replicas. It connects at its first use."""

    def __init__(self, options: KafkaOptions) -> None:
        translated(options.client)  # a setting that cannot be used is refused at once
        self._options = options
        self._made: Any = None
        self._making = threading.Lock()
        self._changed = threading.Condition()
        self._open = 0
        self._refused: list[Any] = []

    def send(self, topic: str, *, key: bytes, value: bytes | None) -> None:
        self.send_many(topic, [key], [value])

    def send_many(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        for future in self._queue(topic, keys, values):
            future.add_errback(self._refused.append)

    def deliver(
        self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None], *, timeout_s: float | None = None
    ) -> None:
        deadline = monotonic_s() + (self._options.timeout_s if timeout_s is None else timeout_s)
        futures = self._queue(topic, keys, values)
        for future in futures:
            with translating("not acknowledged"):
                future.get(timeout=max(0.0, deadline - monotonic_s()))

    def flush(self, *, timeout_s: float | None = None) -> None:
        with translating("not acknowledged in time"):
            self._client().flush(timeout=self._options.timeout_s if timeout_s is None else timeout_s)
        refused, self._refused = self._refused, []
        if refused:
            raise in_our_words(f"{len(refused)} records refused, the first because", refused[0])

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            with translating("closing failed"):
                made.close(timeout=1.0)

    def _client(self) -> Any:
        with self._making, translating("connecting failed"):
            if self._made is None:
                quiet()
                self._made = kafka.KafkaProducer(**self._settings())
            return self._made

    def _settings(self) -> dict[str, object]:
        return {
            **common_settings(self._options),
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 5,
            "batch_size": 256 << 10,
            "max_block_ms": round(self._options.timeout_s * 1000),
            "max_request_size": MAX_DEAD_LETTER_BYTES + (64 << 10),
            "allow_auto_create_topics": False,
        }

    def _queue(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> list[Any]:
        check_size(topic, values, limit=self._options.max_record_bytes)
        client, name = self._client(), self._options.physical(topic)
        return [self._queue_one(client, name, key, value) for key, value in zip(keys, values, strict=True)]

    def _queue_one(self, client: Any, name: str, key: bytes, value: bytes | None) -> Any:
        with self._changed:
            # kafka-python bounds its batches, not their number.
            if not self._changed.wait_for(lambda: self._open < _QUEUE, timeout=self._options.timeout_s):
                raise KafkaUnavailable(f"the queue to Kafka stayed full for {self._options.timeout_s:g} s", mend=MEND)
            self._open += 1
        try:
            with translating(f"writing to {name} failed"):
                future = client.send(name, value=value, key=key)
        except BaseException:
            self._closed_one(None)
            raise
        return future.add_both(self._closed_one)

    def _closed_one(self, _result: object) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify()


class PythonAdmin:
    """Admin over kafka-python's admin client. It connects at its first use."""

    def __init__(self, options: KafkaOptions) -> None:
        translated(options.client)
        self._options = options
        self._made: Any = None

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        return ensure(
            specs,
            is_there=lambda topic: self.partitions(topic) is not None,
            make=lambda missing: [spec.topic for spec in missing if self._make(spec)],
            stamps=self._stamps,
            options=self._options,
        )

    def partitions(self, topic: str) -> int | None:
        with translating("asking for the topics failed"):
            found = self._client().describe_topics([self._options.physical(topic)])
        known = [description for description in found if description["error_code"] != _UNKNOWN_TOPIC]
        return len(known[0]["partitions"]) if known else None

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            with translating("closing failed"):
                made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _client(self) -> Any:
        if self._made is None:
            quiet()
            with translating("connecting failed"):
                self._made = KafkaAdminClient(**common_settings(self._options))
        return self._made

    def _stamps(self, topic: str) -> str | None:
        name = self._options.physical(topic)
        resource = ConfigResource(ConfigResourceType.TOPIC, name, [STAMPS])
        with translating("asking for the topics' settings failed"):
            try:
                told = self._client().describe_configs([resource], config_filter="all")
            except errors.IncompatibleBrokerVersion:
                return None
        # A topic that may not be looked into comes without settings, and without an error.
        entry = told["topic"][name].get(STAMPS)
        return None if entry is None else str(entry["value"])

    def _make(self, spec: TopicSpec) -> bool:
        description = {
            "num_partitions": spec.partitions,
            "replication_factor": self._options.replication,
            "configs": dict(spec.settings),
        }
        with translating(f"making topic {spec.topic} failed"):
            try:
                self._client().create_topics(
                    {self._options.physical(spec.topic): description}, timeout_ms=30_000, wait_for_metadata=True
                )
            except errors.TopicAlreadyExistsError:
                return False
        return True
