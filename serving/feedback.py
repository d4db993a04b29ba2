"""The inference log: what was known when a request was answered, sent to Kafka after the answer.

The queue between them is bounded: while Kafka is away answers go on, and records beyond the bound are dropped and
counted. A record that is lost shows downstream as a join miss of its impressions, never as a wrong sample.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

import msgspec

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import KafkaUnavailable, RecordTooLarge
from rtrec_ray.events import INFERENCE, InferenceRecord
from rtrec_ray.kafka.base import Producer
from serving.metrics import ServingMetrics

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.5
_CHUNK: Final = 500
_FLUSH_S: Final = 10.0


class InferenceLog:
    """A bounded queue, and the thread that empties it into the topic. `connect` is called in that thread."""

    def __init__(self, *, connect: Callable[[], Producer], capacity: int, metrics: ServingMetrics) -> None:
        self._connect = connect
        self._capacity = capacity
        self._metrics = metrics
        self._waiting: deque[InferenceRecord] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._encoder = msgspec.json.Encoder()
        self._producer: Producer | None = None
        metrics.watch("rtrec_inference_log_waiting", "Inference records not yet sent.", lambda: len(self._waiting))
        self._thread = threading.Thread(target=self._run, name="inference-log", daemon=True)
        self._thread.start()

    def offer(self, record: InferenceRecord) -> bool:
        """Take a record to be sent; False when the queue is full and it was dropped."""
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self._metrics.logged.labels("dropped").inc()
                return False
            self._waiting.append(record)
            self._changed.notify()
        return True

    def waiting(self) -> int:
        """Records not yet sent."""
        return len(self._waiting)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Send what waits, as far as `timeout_s` allows, and end."""
        deadline = monotonic_s() + timeout_s
        self._closed.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._producer is not None and not self._thread.is_alive():
            try:
                self._producer.flush(timeout_s=max(0.1, deadline - monotonic_s()))
            except KafkaUnavailable as error:
                log.warning("inference_log_not_flushed", extra={"reason": error.message})
            self._producer.close()

    def _run(self) -> None:
        while self._some_wait():
            try:
                if self._producer is None:
                    self._producer = self._connect()
                self._send_all(self._producer)
            except Exception as error:  # noqa: BLE001
                # Also what nobody foresaw: a thread that ends would lose every sample from here on, silently.
                log.warning("inference_log_waits", extra={"reason": repr(error), "waiting": len(self._waiting)})
                self._metrics.logged.labels("retried").inc()
                if self._closed.wait(_RETRY_S):
                    return

    def _some_wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
            return bool(self._waiting)

    def _send_all(self, producer: Producer) -> None:
        # Only this thread takes from the left, and only what Kafka acknowledged: in doubt, twice rather than never.
        while self._waiting:
            with self._changed:
                chunk = list(islice(self._waiting, _CHUNK))
            outcomes = [self._send(producer, record) for record in chunk]
            producer.flush(timeout_s=_FLUSH_S)
            for outcome in outcomes:
                self._metrics.logged.labels(outcome).inc()
                self._waiting.popleft()

    def _send(self, producer: Producer, record: InferenceRecord) -> str:
        try:
            producer.send(INFERENCE, key=str(record.user_id).encode(), value=self._encoder.encode(record))
        except RecordTooLarge:
            return "too_large"
        return "sent"
