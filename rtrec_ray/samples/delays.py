"""How long clicks take to come, by page: what a wait costs in first labels that are wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

SECOND_MS: Final = 1_000
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
EDGES_MS: Final = tuple(
    SECOND_MS * seconds
    for seconds in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_800, 3_600, 3 * 3_600, 12 * 3_600, 86_400, 3 * 86_400)
)
"""Upper edges of the histogram, exclusive, ms; its last bucket is open."""

DELAY_SCHEMA: Final = pl.Schema({"page_id": pl.Int64, "delay_ms": pl.Int64})
"""The first click on an impression: where it was shown, how long after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Of the clicked impressions of a page (None: of all pages). `quantiles_ms`: share of clicks → by when they had
    come; `histogram`: clicks by `EDGES_MS`; `missed`: share of them later than the wait, which are first written as
    negatives.
    """

    page_id: int | None
    clicks: int
    quantiles_ms: dict[str, int]
    histogram: list[int]
    missed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayReport:
    """The delays of all pages together and of each, most clicks first. `sampled`: share of the clicks looked at."""

    wait_ms: int
    sampled: float
    all_pages: Delays
    pages: list[Delays]

    def as_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        return {**asdict(self), "edges_ms": list(EDGES_MS)}


def report_delays(clicks: pl.DataFrame, *, wait_ms: int, sampled: float = 1.0) -> DelayReport | None:
    """(n, DELAY_SCHEMA) → what they amount to; None without clicks.

    A sample is written when the watermark passes its impression by the wait: a click at exactly that time is too late.

    >>> clicks = pl.DataFrame({"page_id": [1, 1, 2, 2], "delay_ms": [10, 20, 59_999, 60_000]})
    >>> found = report_delays(clicks, wait_ms=60_000)
    >>> found.all_pages.missed, [(page.page_id, page.missed) for page in found.pages]
    (0.25, [(1, 0.0), (2, 0.5)])
    """
    if clicks.is_empty():
        return None
    # A client's clock may put a click before its impression; it waited for nothing.
    later = clicks.with_columns(pl.col("delay_ms").clip(lower_bound=0))
    of_pages = {
        int(page): frame["delay_ms"].to_numpy()
        for (page,), frame in later.drop_nulls("page_id").partition_by("page_id", as_dict=True).items()
    }
    ordered = sorted(of_pages.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return DelayReport(
        wait_ms=wait_ms,
        sampled=sampled,
        all_pages=_delays(None, later["delay_ms"].to_numpy(), wait_ms=wait_ms),
        pages=[_delays(page, delays, wait_ms=wait_ms) for page, delays in ordered],
    )


def _delays(page_id: int | None, delays: npt.NDArray[np.int64], *, wait_ms: int) -> Delays:
    quantiles = np.quantile(delays, list(QUANTILES.values()), method="inverted_cdf")
    buckets = np.bincount(np.searchsorted(EDGES_MS, delays, side="right"), minlength=len(EDGES_MS) + 1)
    return Delays(
        page_id=page_id,
        clicks=len(delays),
        quantiles_ms={name: int(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
        histogram=buckets.tolist(),
        missed=float((delays >= wait_ms).mean()),
    )
