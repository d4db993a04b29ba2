"""How good probabilities are: log loss first, since a ranking that is not calibrated cannot be mixed with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Evaluation", "auc", "evaluate", "log_losses"]

Array = npt.NDArray[Any]

_TINY = 1e-7  # float32 cannot tell probabilities nearer to 0 or 1 from them


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Measures over `rows` rows with `positives` clicks, each row counted by its weight; None where they have no value.

    `log_loss`: mean, nats. `normalised_entropy`: log loss over that of the rows' own rate (He et al., ADKDD 2014);
    below 1 something was learnt. `calibration`: predicted clicks over clicks. `auc`: of the ranking of rows.
    """

    rows: int
    positives: int
    log_loss: float | None
    normalised_entropy: float | None
    calibration: float | None
    auc: float | None

    def numbers(self, prefix: str = "") -> dict[str, float]:
        """What has a value, by name."""
        named = {
            "rows": self.rows,
            "positives": self.positives,
            "log_loss": self.log_loss,
            "normalised_entropy": self.normalised_entropy,
            "calibration": self.calibration,
            "auc": self.auc,
        }
        return {f"{prefix}{name}": float(value) for name, value in named.items() if value is not None}


def log_losses(label: Array, probability: Array) -> npt.NDArray[np.float64]:
    """The log loss of each row, (n,), in nats.

    >>> log_losses(np.array([1, 0]), np.array([0.5, 0.25])).round(4).tolist()
    [0.6931, 0.2877]
    """
    p = np.clip(np.asarray(probability, dtype=np.float64), _TINY, 1.0 - _TINY)
    return np.where(np.asarray(label) > 0.5, -np.log(p), -np.log1p(-p))


def auc(label: Array, probability: Array, weight: Array | None = None) -> float | None:
    """The chance that a click is ranked above a row without one, ties counting half; None without either.

    weight: (n,), how many rows each stands for; None: itself.

    >>> auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.9]))
    0.875
    """
    clicked = np.asarray(label) > 0.5
    if clicked.all() or not clicked.any():
        return None
    counted = np.ones(len(clicked)) if weight is None else np.asarray(weight, dtype=np.float64)
    scores, place = np.unique(probability, return_inverse=True)
    above = np.bincount(place, weights=counted * clicked, minlength=len(scores))
    below = np.bincount(place, weights=counted * ~clicked, minlength=len(scores))
    won = np.cumsum(below) - below / 2.0
    return float((above * won).sum() / (above.sum() * below.sum()))


def evaluate(label: Array, probability: Array, weight: Array | None = None) -> Evaluation:
    """All measures over n rows; weight: (n,), how many rows each stands for; None: itself.

    >>> evaluate(np.array([0, 0, 0, 1]), np.full(4, 0.25)).normalised_entropy
    1.0
    """
    rows, positives = len(label), int(np.sum(np.asarray(label) > 0.5))
    if rows == 0:
        return Evaluation(rows=0, positives=0, log_loss=None, normalised_entropy=None, calibration=None, auc=None)
    counted = np.ones(rows) if weight is None else np.asarray(weight, dtype=np.float64)
    clicks = float(counted[np.asarray(label) > 0.5].sum())
    loss = float(np.average(log_losses(label, probability), weights=counted))
    rate = np.full(rows, clicks / counted.sum())
    own = float(np.average(log_losses(label, rate), weights=counted)) if 0 < positives < rows else None
    return Evaluation(
        rows=rows,
        positives=positives,
        log_loss=loss,
        normalised_entropy=None if own is None else loss / own,
        calibration=float(np.sum(counted * probability)) / clicks if positives else None,
        auc=auc(label, probability, counted),
    )
