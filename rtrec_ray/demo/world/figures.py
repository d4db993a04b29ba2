"""What a run in the world amounts to, in numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rtrec_ray.demo.figures import percentiles
from rtrec_ray.demo.world.record import WorldRecord
from rtrec_ray.simulate.world.effect import best_possible, effect
from rtrec_ray.simulate.world.experiment import ARMS


def summary(record: WorldRecord) -> dict[str, Any]:
    """The machine-readable report. Rates and regret are per impression, regret from the true probabilities."""
    seen = record.observed()
    arms = effect(seen, drift_ms=record.first_drift_ms, seed=record.seed)
    return {
        "ok": record.ok,
        "source": "world",
        "seed": record.seed,
        "minutes": record.minutes,
        "seconds": round(record.seconds, 1),
        "speed": record.time.speed,
        "drifts": [{"kind": drift.kind, "at_ms": drift.at_ms} for drift in record.drifts],
        "arms": {arm: asdict(arms[arm]) for arm in ARMS},
        "best_possible": {"ctr_after": best_possible(seen, drift_ms=record.first_drift_ms)},
        "training_over_static": _ratio(arms["training"].regret_after, arms["static"].regret_after),
        "features_over_static": _ratio(arms["features"].regret_after, arms["static"].regret_after),
        "counts": record.counts,
        "checks": [
            {"stage": check.stage, "claim": check.claim, "ok": check.ok, "figure": check.figure}
            for check in record.checks
        ],
        "latency_ms": _latency(record),
        "freshness_ms": _freshness(record),
        "phases": [{"name": phase.name, "seconds": round(phase.end_s - phase.start_s, 1)} for phase in record.phases],
    }


def _latency(record: WorldRecord) -> dict[str, float | None]:
    good = [asking.answered.latency_ms for asking in record.asked if asking.answered.status == 200]
    p50, p99 = percentiles(good, 50.0, 99.0)
    return {"recommend_p50": _round(p50), "recommend_p99": _round(p99)}


def _freshness(record: WorldRecord) -> dict[str, float | None]:
    """How old what an answer used was, ms of wall time. The model's age: of the arm that trains."""
    speed, good = record.time.speed, [asking for asking in record.asked if asking.answered.status == 200]
    features = [a / speed for asking in good if (a := asking.answered.feature_age_ms) is not None]
    models = [
        a / speed for asking in good if asking.arm == "training" and (a := asking.answered.model_age_ms) is not None
    ]
    feature_p50, feature_p99 = percentiles(features, 50.0, 99.0)
    (model_p50,) = percentiles(models, 50.0)
    return {"feature_p50": _round(feature_p50), "feature_p99": _round(feature_p99), "model_p50": _round(model_p50)}


def _ratio(of: float | None, to: float | None) -> float | None:
    return None if of is None or not to else round(of / to, 4)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
