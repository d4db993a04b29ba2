"""What a replica counts, in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class ServingMetrics:
    """The counters of one replica, in a registry of its own so that two in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("rtrec_requests", "Requests answered.", "route", "status")
        self.latency = Histogram(
            "rtrec_request_seconds", "Time to answer.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self.degraded = self._counter("rtrec_degraded", "Answers that lacked something.", "reason")
        self.explored = self._counter("rtrec_explored", "Answers in random order.")
        self.items = self._counter("rtrec_items", "Items recommended.")
        self.reloads = self._counter(
            "rtrec_model_reloads", "Looks at the registry, by what came of it.", "role", "outcome"
        )
        self.model = Gauge(
            "rtrec_model_info", "1 for the version that serves.", ("role", "version"), registry=self.registry
        )
        self.logged = self._counter("rtrec_inference_log", "Inference records, by what became of them.", "outcome")
        self.events = self._counter("rtrec_events", "Behaviour events posted, by what became of them.", "outcome")
        self.refreshes = self._counter("rtrec_list_refreshes", "Readings of lists and catalogue.", "outcome")

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def watch(self, name: str, about: str, value: Callable[[], float | None]) -> None:
        """Show a number that is read when the metrics are; None is shown as NaN."""
        Gauge(name, about, registry=self.registry).set_function(lambda: _or_nan(value()))

    def serves(self, version: str, *, role: str, before: str) -> None:
        """Name the version that serves in this role from now on, and the one `before` no more."""
        self.model.remove(role, before)
        self.model.labels(role, version).set(1)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
