"""Whether a version may serve: thresholds, and comparisons that know how much of a difference is noise.

With 29 clicks among 6,000 held-out rows two good models differ by chance more than by merit, so a version is refused
only for being worse beyond the interval by more than is negligible (a non-inferiority margin): paired differences per
request, resampled by request (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8), since the rows of
one request are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.metrics import evaluate, log_losses
from training.options import GateOptions

__all__ = ["Exam", "Interval", "Verdict", "difference", "judge"]

Array = npt.NDArray[Any]

_CHUNK = 2_000_000  # resampled numbers held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and the bounds between which it lies with the confidence asked for."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """Held-out rows and what models say of them: each (n,). `champion`: None for a first version.

    `request`: any integers, equal for rows of one request. `base_rate`: what a model without features would say.
    `weight`: how many rows of the world each stands for; None: itself.
    """

    label: Array
    request: Array
    candidate: Array
    champion: Array | None
    base_rate: float
    weight: Array | None = None

    @property
    def counted(self) -> Array:
        """The weights, (n,)."""
        return np.ones(len(self.label)) if self.weight is None else self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`reasons`: why not; empty when the version may serve. `metrics`: what was measured, by name."""

    reasons: tuple[str, ...]
    metrics: dict[str, float]

    @property
    def accepted(self) -> bool:
        """Whether the version may serve."""
        return not self.reasons


def judge(exam: Exam, options: GateOptions) -> Verdict:
    """Apply the rules: finite probabilities, enough proof, calibration, not worse than the constant rate (a first
    version) or than the champion.
    """
    requests = len(np.unique(exam.request))
    if requests < options.min_requests:
        reason = f"only {requests} held-out requests, {options.min_requests} are needed to judge"
        return Verdict(reasons=(reason,), metrics={"held_out_requests": float(requests)})
    if not np.isfinite(exam.candidate).all() or exam.candidate.min() < 0.0 or exam.candidate.max() > 1.0:
        return Verdict(reasons=("its probabilities are not all numbers from 0 to 1",), metrics={})
    found = evaluate(exam.label, exam.candidate, exam.counted)
    metrics = found.numbers("held_out_") | {"held_out_requests": float(requests)}
    reasons = [*_calibrated(exam, options, metrics), *_as_good(exam, options, metrics)]
    return Verdict(reasons=tuple(reasons), metrics=metrics)


def difference(
    mine: Array, other: Array, request: Array, options: GateOptions, *, weight: Array | None = None
) -> Interval:
    """The mean over rows of mine - other, with its interval by resampling whole requests; weight: (n,), None: 1 each.

    >>> few = GateOptions(resamples=50)
    >>> difference(np.ones(4), np.zeros(4), np.array([1, 1, 2, 3]), few)
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    counted = np.ones(len(mine)) if weight is None else weight
    return _ratio((mine - other) * counted, counted, request, options)


def _calibrated(exam: Exam, options: GateOptions, metrics: dict[str, float]) -> list[str]:
    if not (exam.label > 0.5).any():
        return []  # without a click there is no ratio, and the log loss still speaks
    # Clicks over predicted: never a division by zero.
    ratio = _ratio(exam.label * exam.counted, exam.candidate * exam.counted, exam.request, options)
    metrics |= {"clicks_over_predicted_low": ratio.low, "clicks_over_predicted_high": ratio.high}
    low, high = options.calibration
    if ratio.low > 1.0 / low or ratio.high < 1.0 / high:
        bounds = f"{ratio.low:.2f} to {ratio.high:.2f}"
        return [f"clicks are {bounds} times those predicted, allowed is {1 / high:.2f} to {1 / low:.2f}"]
    return []


def _as_good(exam: Exam, options: GateOptions, metrics: dict[str, float]) -> list[str]:
    own = log_losses(exam.label, exam.candidate)
    name, other = ("constant", np.full(len(own), exam.base_rate))
    if exam.champion is not None:
        name, other = "champion", exam.champion
    theirs = log_losses(exam.label, other)
    gap = difference(own, theirs, exam.request, options, weight=exam.counted)
    metrics |= {f"over_{name}": gap.mean, f"over_{name}_low": gap.low, f"over_{name}_high": gap.high}
    if gap.low > options.negligible * float(np.average(theirs, weights=exam.counted)):
        return [f"its log loss is above that of the {name} by {gap.mean:.6f} ({gap.low:.6f} to {gap.high:.6f})"]
    return []


def _ratio(upper: Array, lower: Array, request: Array, options: GateOptions) -> Interval:
    """sum(upper) / sum(lower) over rows, with its percentile interval over resampled requests."""
    _, place = np.unique(request, return_inverse=True)
    sums = np.stack([np.bincount(place, weights=upper), np.bincount(place, weights=lower)], axis=1)
    count = len(sums)
    random = np.random.default_rng(options.seed)
    chunk = max(1, _CHUNK // count)
    draws = []
    for start in range(0, options.resamples, chunk):
        chosen = random.integers(0, count, size=(min(chunk, options.resamples - start), count))
        total = sums[chosen].sum(axis=1)
        draws.append(total[:, 0] / np.maximum(total[:, 1], 1e-12))
    tail = (1.0 - options.confidence) / 2.0
    low, high = np.quantile(np.concatenate(draws), [tail, 1.0 - tail])
    mean = sums[:, 0].sum() / max(float(sums[:, 1].sum()), 1e-12)
    return Interval(mean=float(mean), low=float(low), high=float(high))
