"""What a run on a log amounts to, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rtrec_ray.demo.figures import percentiles
from rtrec_ray.demo.record import ProgressPoint
from rtrec_ray.demo.replay.record import Call, DemoRecord

Array = npt.NDArray[np.float64]

NO_MODEL: Final = "none"
"""The version of an answer that no model ranked."""

_DRAWS: Final = 2_000
_FEWEST: Final = 8  # an interval from fewer blocks would only look like one


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval, None where there is too little to tell."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressive:
    """Losses of samples scored before they were trained on, one entry per point: (n,).

    `rows`: samples in the point. The losses are means over them, in nats: of the model that learns, of the base it
    began from (`version`), and of a constant, the click `rate` known when the base was made.
    """

    version: str
    rate: float
    at_s: Array
    event_time_ms: Array
    rows: Array
    positives: Array
    current: Array
    base: Array
    constant: Array

    def running(self, losses: Array) -> Array:
        """The mean loss over all samples so far: (n,)."""
        running: Array = np.cumsum(self.rows * losses) / np.cumsum(self.rows)
        return running

    def saved(self, losses: Array) -> Array:
        """What has been saved against the constant so far, nats: (n,); above zero is better."""
        saved: Array = np.cumsum(self.rows * (self.constant - losses))
        return saved

    def difference(self, losses: Array, other: Array, *, seed: int = 0) -> Estimate:
        """Mean of losses - other per sample; its interval from drawing whole points again, with return."""
        difference = losses - other
        value = float(np.average(difference, weights=self.rows))
        n = len(self.rows)
        if n < _FEWEST:
            return Estimate(value=value)
        drawn = np.random.default_rng(seed).integers(0, n, size=(_DRAWS, n))
        weighted = self.rows * difference
        means = weighted[drawn].sum(axis=1) / self.rows[drawn].sum(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        return Estimate(value=value, low=float(low), high=float(high))


def constant_loss(rows: Array, positives: Array, *, rate: float) -> Array:
    """Mean log loss, nats, of predicting `rate` for every row: (n,).

    >>> constant_loss(np.array([2.0]), np.array([1.0]), rate=0.5).round(4).tolist()
    [0.6931]
    """
    r = min(max(rate, 1e-7), 1.0 - 1e-7)
    loss: Array = -(positives * np.log(r) + (rows - positives) * np.log1p(-r)) / rows
    return loss


def progressive(record: DemoRecord) -> Progressive | None:
    """The losses on the base model that most samples were scored by; None before there are any.

    A new base begins anew behind samples that the increments on the one before have seen already, so the losses on two
    bases cannot be one curve.
    """
    base = _longest_base(record.progress)
    points = [point for point in record.progress if point.base == base and _scored(point)]
    rate = record.base_rates.get(base)
    if not points or rate is None:
        return None
    columns = {
        name: np.array([getattr(point, name) for point in points], dtype=np.float64)
        for name in ("at_s", "event_time_ms", "rows", "positives", "log_loss", "base_log_loss")
    }
    rows, positives = columns["rows"], columns["positives"]
    return Progressive(
        version=base,
        rate=rate,
        at_s=columns["at_s"],
        event_time_ms=columns["event_time_ms"],
        rows=rows,
        positives=positives,
        current=columns["log_loss"],
        base=columns["base_log_loss"],
        constant=constant_loss(rows, positives, rate=rate),
    )


def answered(calls: Sequence[Call]) -> list[Call]:
    """The calls that got an answer."""
    return [call for call in calls if call.status == 200]


def switches(calls: Sequence[Call]) -> list[Call]:
    """The first answer of each model version, by the time of the request. An answer without a model has version "none".

    >>> [call.version for call in switches([Call(at_s=t, latency_ms=1, status=200, version=v) for t, v in
    ...     enumerate(["none", "1", "none", "1", "2"])])]
    ['1', '2']
    """
    first: dict[str, Call] = {}
    for call in sorted(answered(calls), key=lambda call: call.at_s):
        first.setdefault(call.version, call)
    return [call for version, call in first.items() if version != NO_MODEL]


def summary(record: DemoRecord) -> dict[str, Any]:
    """The machine-readable report."""
    return {
        "ok": record.ok,
        "source": record.log.source,
        "seed": record.seed,
        "minutes": record.minutes,
        "seconds": round(record.seconds, 1),
        "speed": round(record.time.speed, 3),
        "counts": record.counts,
        "checks": [
            {"stage": check.stage, "claim": check.claim, "ok": check.ok, "figure": check.figure}
            for check in record.checks
        ],
        "versions": [_version(record, index) for index in range(len(record.versions))],
        "latency_ms": _latency(record.calls),
        "freshness_ms": _freshness(record),
        "progressive": _progressive(record),
        "phases": [{"name": phase.name, "seconds": round(phase.end_s - phase.start_s, 1)} for phase in record.phases],
        "bounds_ms": record.bounds_ms,
    }


def _longest_base(points: Sequence[ProgressPoint]) -> str:
    rows: Counter[str] = Counter()
    for point in points:
        rows[point.base] += point.rows
    return rows.most_common(1)[0][0] if rows else ""


def _scored(point: ProgressPoint) -> bool:
    return point.rows > 0 and point.log_loss is not None and point.base_log_loss is not None


def _latency(calls: Sequence[Call]) -> dict[str, Any]:
    p50, p99, most = percentiles([call.latency_ms for call in answered(calls)], 50.0, 99.0, 100.0)
    return {"recommend_p50": _round(p50), "recommend_p99": _round(p99), "recommend_max": _round(most)}


def _freshness(record: DemoRecord) -> dict[str, Any]:
    """How old what an answer used was, ms of wall time; event time goes `speed` times as fast."""
    calls, speed = answered(record.calls), record.time.speed
    features = [call.feature_age_ms / speed for call in calls if call.feature_age_ms is not None]
    models = [call.model_age_ms / speed for call in calls if call.model_age_ms is not None]
    feature_p50, feature_p99 = percentiles(features, 50.0, 99.0)
    model_p50, model_p99 = percentiles(models, 50.0, 99.0)
    return {
        "feature_p50": _round(feature_p50),
        "feature_p99": _round(feature_p99),
        "model_p50": _round(model_p50),
        "model_p99": _round(model_p99),
    }


def _progressive(record: DemoRecord) -> dict[str, Any]:
    losses = progressive(record)
    if losses is None:
        return {"rows": 0}
    total = float(losses.rows.sum())
    return {
        "rows": int(total),
        "positives": int(losses.positives.sum()),
        "log_loss": {
            name: round(float(losses.running(getattr(losses, name))[-1]), 6) for name in ("current", "base", "constant")
        },
        "current_minus_base": _estimate(losses.difference(losses.current, losses.base)),
        "current_minus_constant": _estimate(losses.difference(losses.current, losses.constant)),
        "base_minus_constant": _estimate(losses.difference(losses.base, losses.constant)),
        "base": losses.version,
        "base_rate": round(losses.rate, 6),
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    ci = None if estimate.low is None or estimate.high is None else [round(estimate.low, 6), round(estimate.high, 6)]
    return {"mean": round(estimate.value, 6), "ci95": ci}


def _version(record: DemoRecord, index: int) -> dict[str, Any]:
    version = record.versions[index]
    return {
        "version": version.version,
        "kind": version.kind,
        "model": version.family,
        "parent": version.parent,
        "outcome": version.outcome,
        "reason": version.reason,
        "generated_s": _round(version.generated_s),
        "decided_s": _round(version.decided_s),
        "online_s": _round(version.online_s),
        "rows": version.rows,
        "trained_to_ms": version.trained_to_ms,
        "run_id": version.run_id,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
