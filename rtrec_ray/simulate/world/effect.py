"""What an experiment found: clicks and regret per arm, with intervals, from who was shown what and what was true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

OBSERVED: Final = pl.Schema(
    {
        "ts_ms": pl.Int64,
        "user_id": pl.Int64,
        "arm": pl.String,
        "impressions": pl.Int64,
        "clicks": pl.Int64,
        "probability": pl.Float64,  # true P(click), mean per impression
        "regret": pl.Float64,  # clicks lost against the best possible slate, mean per impression
        "random": pl.Float64,  # true P(click) of a slate in random order, mean per impression
    }
)
"""One row for each answered request."""

_RESAMPLES: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEffect:
    """One arm. Rates per impression; `regret_ci`: 95 % interval of `regret_after`."""

    impressions: int
    clicks: int
    ctr_before: float | None
    ctr_after: float | None
    regret_before: float | None
    regret_after: float | None
    regret_ci: tuple[float, float] | None


def effect(observed: pl.DataFrame, *, drift_ms: int, seed: int = 0) -> dict[str, ArmEffect]:
    """Each arm before and after `drift_ms`. observed: (n, OBSERVED)."""
    arms = observed["arm"].unique().sort().to_list()
    return {arm: _arm(observed.filter(pl.col("arm") == arm), drift_ms, seed) for arm in arms}


def best_possible(observed: pl.DataFrame, *, drift_ms: int) -> float | None:
    """The click rate after `drift_ms` of who always shows the best slate."""
    after = observed.filter(pl.col("ts_ms") >= drift_ms)
    return _per_impression(after, pl.col("probability") + pl.col("regret"))


def interval(observed: pl.DataFrame, *, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the regret per impression, whole users resampled (Efron & Tibshirani, 1993,
    chapter 8): the requests of one user are alike, those of different users are not.
    """
    if observed.is_empty():
        return None
    of_user = observed.group_by("user_id", maintain_order=True).agg(
        (pl.col("regret") * pl.col("impressions")).sum().alias("lost"), pl.col("impressions").sum()
    )
    lost, shown = of_user["lost"].to_numpy(), of_user["impressions"].to_numpy()
    drawn = np.random.default_rng(seed).integers(0, len(lost), (_RESAMPLES, len(lost)))
    ratios = lost[drawn].sum(axis=1) / shown[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: npt.ArrayLike) -> tuple[float, float, float]:
    """Mean and 95 % interval of one number per seed, by the normal approximation.

    >>> mean_interval([1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    each = np.asarray(values, dtype=np.float64)
    half = 1.96 * each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else float("inf")
    return float(each.mean()), float(each.mean() - half), float(each.mean() + half)


def _arm(rows: pl.DataFrame, drift_ms: int, seed: int) -> ArmEffect:
    before, after = rows.filter(pl.col("ts_ms") < drift_ms), rows.filter(pl.col("ts_ms") >= drift_ms)
    return ArmEffect(
        impressions=int(rows["impressions"].sum()),
        clicks=int(rows["clicks"].sum()),
        ctr_before=_rate(before),
        ctr_after=_rate(after),
        regret_before=_per_impression(before, pl.col("regret")),
        regret_after=_per_impression(after, pl.col("regret")),
        regret_ci=interval(after, seed=seed),
    )


def _rate(rows: pl.DataFrame) -> float | None:
    shown = int(rows["impressions"].sum())
    return int(rows["clicks"].sum()) / shown if shown else None


def _per_impression(rows: pl.DataFrame, value: pl.Expr) -> float | None:
    shown = int(rows["impressions"].sum())
    return float(rows.select((value * pl.col("impressions")).sum()).item()) / shown if shown else None
