"""Samples whose negatives were thinned out, and how the world is found again behind them.

A row says which share of the negatives like it was kept, `negative_rate` in (0, 1]; positives are all kept. In what was
kept the odds of a click are 1 / rate times those of the world, so its log odds are the model's less log(rate) (He et
al., ADKDD 2014, section 6.3; King & Zeng, Political Analysis 2001, section 4.1). The loss is taken there, and the model
itself foresees the world's probabilities. Measures count a kept negative 1 / rate times (Horvitz & Thompson, JASA
1952).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

__all__ = ["SAMPLING_COLUMNS", "importance", "negative_rates"]

_NAME: Final = "negative_rate"

SAMPLING_COLUMNS: Final = (_NAME,)
"""What to read of a sample, beside all else."""


def negative_rates(rows: pl.DataFrame) -> npt.NDArray[np.float32]:
    """The share of negatives kept, (n,); 1 where nothing is known of it.

    >>> negative_rates(pl.DataFrame({"negative_rate": [0.25, None]})).tolist()
    [0.25, 1.0]
    """
    if _NAME not in rows.columns:
        return np.ones(rows.height, dtype=np.float32)
    return rows[_NAME].fill_null(1.0).to_numpy().astype(np.float32)


def importance(label: npt.NDArray[Any], negative_rate: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How many rows of the world each row stands for, (n,).

    >>> importance(np.array([1, 0]), np.array([0.25, 0.25])).tolist()
    [1.0, 4.0]
    """
    return np.where(np.asarray(label) > 0.5, 1.0, 1.0 / np.asarray(negative_rate, dtype=np.float64))
