"""Figures that both reports have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentiles(values: Sequence[float], *shares: float) -> tuple[float | None, ...]:
    """Percentiles (shares in [0, 100]), None of nothing.

    >>> percentiles([1.0, 3.0], 50.0), percentiles([], 50.0)
    ((2.0,), (None,))
    """
    if not values:
        return tuple(None for _ in shares)
    return tuple(float(np.percentile(values, share)) for share in shares)
