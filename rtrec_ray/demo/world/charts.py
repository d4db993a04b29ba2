"""The report's charts: a record in, an <svg> out. The foot of each is the wall time of the live part."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl
from matplotlib.ticker import FuncFormatter

from rtrec_ray.demo.charts.axes import end_labels, heading, mark, share_of, time_axis
from rtrec_ray.demo.charts.svg import PALETTE, figure, house_style, to_svg
from rtrec_ray.demo.world.record import WorldRecord

COLOURS: Final = {"static": PALETTE["orange"], "features": PALETTE["blue"], "training": PALETTE["green"]}
NAMES: Final = {"static": "static", "features": "real-time features", "training": "+ real-time training"}
DRIFTS: Final = {"trend": "trend", "parting": "cities", "new_items": "new ads"}

_BIN_S: Final = 10.0


def charts(record: WorldRecord) -> dict[str, str]:
    """Every chart by name; empty text where there is nothing to draw."""
    drawn = {"clicks": clicks, "regret": regret, "freshness": freshness}
    return {name: draw(record) if record.asked else "" for name, draw in drawn.items()}


def clicks(record: WorldRecord) -> str:
    """True click rate of what each arm showed, beside the best possible and random."""
    seen = _binned(record)
    with house_style():
        made, (panel,) = figure(3.6)
        heading(panel, "Clicks to be expected of 100 impressions, from the true probabilities (means of 10 s)")
        whole = seen.group_by("bin", maintain_order=True).agg(pl.col("best").mean(), pl.col("random").mean())
        lines = [
            ("best possible", whole["bin"], whole["best"], PALETTE["ink"], ":"),
            *((NAMES[arm], *_series(seen, arm, "probability"), colour, "-") for arm, colour in COLOURS.items()),
            ("random", whole["bin"], whole["random"], PALETTE["quiet"], ":"),
        ]
        _draw(panel, [(name, x, 100.0 * y, colour, style) for name, x, y, colour, style in lines], record)
        return to_svg(made, title="Click rate of each arm over time, beside the best possible and random")


def regret(record: WorldRecord) -> str:
    """Clicks lost against the best possible, per arm."""
    seen = _binned(record)
    with house_style():
        made, (panel,) = figure(2.8)
        heading(panel, "Clicks lost of 100 impressions against the best possible (regret; lower is better)")
        lines = [
            (NAMES[arm], x, 100.0 * y, colour, "-")
            for arm, colour in COLOURS.items()
            for x, y in [_series(seen, arm, "regret")]
        ]
        _draw(panel, lines, record)
        return to_svg(made, title="Regret of each arm over time")


def freshness(record: WorldRecord) -> str:
    """How old features and model were when they were used, wall time."""
    good = [asking for asking in record.asked if asking.answered.status == 200]
    speed = record.time.speed
    features = [(a.at_s, age / speed / 1_000.0) for a in good if (age := a.answered.feature_age_ms) is not None]
    models = [
        (a.at_s, age / speed / 1_000.0)
        for a in good
        if a.arm == "training" and (age := a.answered.model_age_ms) is not None
    ]
    if not features or not models:
        return ""
    with house_style():
        made, (panel,) = figure(2.4)
        heading(panel, "Age of what an answer was made with (seconds of wall time, medians of 10 s; logarithmic)")
        panel.set_yscale("log")
        start_s = _start_s(record)
        lines = []
        for name, points, colour in (
            ("the model that learns", models, PALETTE["green"]),
            ("features", features, PALETTE["blue"]),
        ):
            x, y = _medians(np.array(points), start_s)
            lines.append((name, x, y, colour, "-"))
        _draw(panel, lines, record)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return to_svg(made, title="Freshness of features and of the model that learns")


def _binned(record: WorldRecord) -> pl.DataFrame:
    """Means by (bin, arm); `bin` in s of wall time since the live part began."""
    time, start_s = record.time, _start_s(record)
    seen = record.observed().with_columns(
        ((time.clock_s + (pl.col("ts_ms") - time.event_ms) / (1_000.0 * time.speed) - start_s) / _BIN_S)
        .floor()
        .alias("number")
    )
    return (
        seen.with_columns(((pl.col("number") + 0.5) * _BIN_S).alias("bin"))
        .group_by("bin", "arm")
        .agg(
            pl.col("probability").mean(),
            pl.col("regret").mean(),
            (pl.col("probability") + pl.col("regret")).mean().alias("best"),
            pl.col("random").mean(),
        )
        .sort("bin")
    )


def _series(seen: pl.DataFrame, arm: str, name: str) -> tuple[Any, Any]:
    of_arm = seen.filter(pl.col("arm") == arm)
    return of_arm["bin"].to_numpy(), of_arm[name].to_numpy()


def _medians(points: Any, start_s: float) -> tuple[Any, Any]:
    bins = np.floor((points[:, 0] - start_s) / _BIN_S)
    numbers = np.unique(bins[bins >= 0])
    return (numbers + 0.5) * _BIN_S, np.array([np.median(points[bins == number, 1]) for number in numbers])


def _draw(panel: Any, lines: list[tuple[str, Any, Any, str, str]], record: WorldRecord) -> None:
    for _, x, y, colour, style in lines:
        panel.plot(x, y, color=colour, linestyle=style)
    time_axis(panel, end_s=60.0 * record.minutes)
    panel.set_xlabel("wall time since the live part began, minutes:seconds")
    if panel.get_yscale() == "linear":
        panel.set_ylim(bottom=0.0)
    start_s = _start_s(record)
    mark(panel, [(record.time.at_s(drift.at_ms) - start_s, DRIFTS[drift.kind]) for drift in record.drifts])
    labels = [(name, share_of(panel, float(np.asarray(y)[-1])), colour) for name, _, y, colour, _ in lines]
    end_labels(panel, labels, at=1.0, apart=0.07)


def _start_s(record: WorldRecord) -> float:
    return record.time.at_s(record.live_ms[0])
