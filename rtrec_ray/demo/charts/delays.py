"""How long clicks take to come, as a picture: the share that has come by then, a line a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from rtrec_ray.demo.charts.axes import heading
from rtrec_ray.demo.charts.svg import PALETTE, figure, house_style
from rtrec_ray.samples.delays import DelayReport

_LINES: Final = ("blue", "orange", "green", "purple", "sky")
_TICKS_S: Final = {
    1: "1 s", 5: "5 s", 15: "15 s", 60: "1 min", 300: "5 min", 1_800: "30 min", 10_800: "3 h", 86_400: "1 d",
    604_800: "7 d",
}  # fmt: skip
_LEAST_S: Final = 0.5


def draw_delays(clicks: pl.DataFrame, report: DelayReport, path: Path) -> None:
    """Draw delays (n, DELAY_SCHEMA) and what the report says of them into a .png or .svg."""
    with house_style():
        made, (panel,) = figure(4.0)
        made.patch.set(facecolor="white", alpha=1.0)
        heading(
            panel,
            f"share of clicks that have come by then, of {report.all_pages.clicks:,} clicked impressions",
        )
        end_s = _time_axis(panel, clicks, report)
        named = list(zip(report.pages, _LINES, strict=False))
        for page, colour in named:
            delays = clicks.filter(pl.col("page_id") == page.page_id)["delay_ms"]
            _line(panel, delays, PALETTE[colour], end_s=end_s, width=1.2)
        _line(panel, clicks["delay_ms"], PALETTE["ink"], end_s=end_s, width=2.2)
        _mark_wait(panel, report.wait_ms / 1_000)
        panel.set_ylim(0, 1.02)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        whole = (report.all_pages.missed, "all pages", PALETTE["ink"])
        _legend(panel, [whole, *((page.missed, f"page {page.page_id}", PALETTE[colour]) for page, colour in named)])
        made.savefig(path, dpi=150)


def _time_axis(panel: Any, clicks: pl.DataFrame, report: DelayReport) -> float:
    latest = clicks["delay_ms"].to_numpy().max() / 1_000
    end_s = float(min(max(1.1 * latest, 10.0 * report.wait_ms / 1_000, 10.0), 8 * 86_400))
    panel.set_xscale("log")
    panel.set_xlim(_LEAST_S, end_s)
    ticks = [second for second in _TICKS_S if second <= end_s]
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_major_formatter(FixedFormatter([_TICKS_S[second] for second in ticks]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("event time from the impression to its first click")
    return end_s


def _line(panel: Any, delays: pl.Series, colour: str, *, end_s: float, width: float) -> None:
    seconds = np.sort(np.clip(delays.to_numpy() / 1_000, _LEAST_S, None))
    # A thousand steps show what a hundred thousand would.
    shares = np.unique(np.linspace(0, len(seconds) - 1, min(len(seconds), 1_000)).astype(int))
    x = np.concatenate([[_LEAST_S], seconds[shares], [end_s]])
    y = np.concatenate([[0.0], (shares + 1) / len(seconds), [1.0]])
    panel.step(x, y, where="post", color=colour, linewidth=width)


def _legend(panel: Any, lines: list[tuple[float, str, str]]) -> None:
    """Names below the curves, where these never come, in the order in which they cross the wait."""
    lines = sorted(lines)
    for place, (missed, name, colour) in enumerate(reversed(lines)):
        panel.text(
            0.99,
            0.04 + 0.06 * place,
            f"{name}: {missed:.1%} after the wait",
            color=colour,
            fontsize=8.5,
            ha="right",
            transform=panel.transAxes,
        )


def _mark_wait(panel: Any, wait_s: float) -> None:
    panel.axvline(wait_s, color=PALETTE["red"], linewidth=1.0, linestyle=(0, (3, 2)))
    panel.annotate(
        "the wait",
        xy=(wait_s, 0.04),
        xytext=(4, 0),
        textcoords="offset points",
        color=PALETTE["red"],
        fontsize=8.5,
    )
