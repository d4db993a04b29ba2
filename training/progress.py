"""Progressive evaluation: every sample is an exam before it is a lesson (Gama et al., Machine Learning 90, 2013)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rtrec_ray.stores.training import ProgressPoint
from training.metrics import auc, log_losses

__all__ = ["ProgressWindow"]

Array = npt.NDArray[Any]


class ProgressWindow:
    """Scores since the last point, and over the last `rows` rows for what needs clicks: AUC and calibration."""

    def __init__(self, *, rows: int) -> None:
        self._limit = rows
        self._label = np.zeros(0)
        self._own = np.zeros(0)
        self._base = np.zeros(0)
        self._weight = np.zeros(0)
        self.fresh = 0  # rows since the last point

    def add(self, *, label: Array, own: Array, base: Array, weight: Array) -> None:
        """Take in n rows: labels, probabilities by the learning model and by its base, and how many rows of the world
        each stands for, (n,) each.
        """
        self.fresh += len(label)
        keep = max(self._limit, self.fresh)
        self._label = np.concatenate([self._label, label])[-keep:]
        self._own = np.concatenate([self._own, own])[-keep:]
        self._base = np.concatenate([self._base, base])[-keep:]
        self._weight = np.concatenate([self._weight, weight])[-keep:]

    def point(self, *, commit_seq: int, event_time_ms: int, lag_rows: int, base_version: str) -> ProgressPoint:
        """What is known now; `taken` then begins the next point."""
        new = slice(len(self._label) - self.fresh, None)
        label, own, base, weight = self._label[new], self._own[new], self._base[new], self._weight[new]
        clicks = float((self._label * self._weight).sum())
        return ProgressPoint(
            commit_seq=commit_seq,
            event_time_ms=event_time_ms,
            rows=self.fresh,
            positives=int(label.sum()),
            log_loss=_mean(log_losses(label, own), weight),
            base_log_loss=_mean(log_losses(label, base), weight),
            auc=auc(self._label, self._own, self._weight),
            base_auc=auc(self._label, self._base, self._weight),
            calibration=float((self._own * self._weight).sum()) / clicks if clicks else None,
            base_calibration=float((self._base * self._weight).sum()) / clicks if clicks else None,
            lag_rows=lag_rows,
            base_version=base_version,
        )

    def taken(self) -> None:
        """The last point is stored: begin the next."""
        self.fresh = 0
        kept = (self._label, self._own, self._base, self._weight)
        self._label, self._own, self._base, self._weight = (values[-self._limit :] for values in kept)


def _mean(values: Array, weight: Array) -> float | None:
    return float(np.average(values, weights=weight)) if len(values) else None
