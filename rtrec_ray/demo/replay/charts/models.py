"""The models: their versions over time, and their progressive log loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from rtrec_ray.demo.charts.axes import end_labels, heading, mark, share_of, time_axis
from rtrec_ray.demo.charts.svg import PALETTE, figure, house_style, to_svg
from rtrec_ray.demo.record import VersionFacts
from rtrec_ray.demo.replay.charts.days import days_above
from rtrec_ray.demo.replay.figures import progressive
from rtrec_ray.demo.replay.record import DemoRecord
from rtrec_ray.demo.words import thousands


def losses(record: DemoRecord) -> str:
    """Progressive log loss of base and current model, beside that of a constant rate."""
    found = progressive(record)
    if found is None:
        return ""
    named = (
        ("model that learns on", found.current, PALETTE["green"]),
        ("base model, unchanged", found.base, PALETTE["blue"]),
        ("constant click rate", found.constant, PALETTE["quiet"]),
    )
    with house_style():
        made, (mean, saved) = figure(2.3, 2.0)
        start_s, end_s = float(found.at_s[0]), float(found.at_s[-1])
        for panel, curve in ((mean, found.running), (saved, found.saved)):
            lines = [(name, curve(values), colour) for name, values, colour in named]
            for _, y, colour in lines:
                panel.plot(found.at_s, y, color=colour, linestyle="--" if colour == PALETTE["quiet"] else "-")
            if panel is mean:
                _leave_out_the_start(panel, np.array([y for _, y, _ in lines]))
            panel.set_xlim(start_s, end_s)
            end_labels(panel, [(name, share_of(panel, y[-1]), colour) for name, y, colour in lines], at=1.0, apart=0.1)
        heading(
            mean, "Mean log loss of all samples so far, each scored before it is trained on (nats; lower is better)"
        )
        heading(saved, "Nats saved in sum against the constant rate (higher is better)")
        online = [(at_s, f"v{v.version}") for v in record.versions if (at_s := v.online_s) and start_s <= at_s <= end_s]
        mark(mean, online)
        mark(saved, [(at_s, "") for at_s, _ in online])
        saved.yaxis.set_major_formatter(FuncFormatter(thousands))
        time_axis(saved, start_s=start_s, end_s=end_s)
        return to_svg(made, title="Progressive log loss of the base model and of the model that learns on")


def versions(record: DemoRecord) -> str:
    """Each model version: made, validated or rejected, online from when to when."""
    if not record.versions:
        return ""
    with house_style():
        made, (panel,) = figure(0.75 + 0.27 * len(record.versions))
        for row, version in enumerate(record.versions):
            _draw_version(panel, version, row=row, end_s=record.seconds)
        panel.set_yticks(range(len(record.versions)), [_name(version) for version in record.versions])
        panel.tick_params(axis="y", labelcolor=PALETTE["ink"])
        panel.set_ylim(len(record.versions) - 0.4, -0.7)
        panel.grid(visible=False)
        panel.spines["left"].set_visible(False)
        days_above(panel, record)
        time_axis(panel, end_s=record.seconds)
        return to_svg(made, title="Model versions: made, validated or rejected, online")


def _draw_version(panel: Any, version: VersionFacts, *, row: int, end_s: float) -> None:
    rejected = version.outcome == "rejected"
    colour = PALETTE["red"] if rejected else PALETTE["purple"] if version.kind == "base" else PALETTE["green"]
    known_s = version.online_s if version.online_s is not None else version.decided_s
    if known_s is not None:
        panel.plot([version.generated_s, known_s], [row, row], color=PALETTE["quiet"], linewidth=0.8)
    panel.plot(version.generated_s, row, marker="o", markersize=4, color=colour)
    if version.decided_s is not None:
        panel.plot(version.decided_s, row, marker="X" if rejected else "|", markersize=7, color=colour)
    if version.online_s is not None:
        until = end_s if version.offline_s is None else version.offline_s
        panel.barh(row, until - version.online_s, left=version.online_s, height=0.5, color=colour, alpha=0.55)
    if words := _words(version):
        _write_beside(panel, version, words, row=row, end_s=end_s)


def _write_beside(panel: Any, version: VersionFacts, words: str, *, row: int, end_s: float) -> None:
    """On the side where there is room."""
    left = version.generated_s > 0.5 * end_s
    last_s = version.generated_s if version.decided_s is None else version.decided_s
    panel.annotate(
        words,
        xy=(version.generated_s if left else last_s, row),
        xytext=(-7 if left else 7, 0),
        textcoords="offset points",
        va="center",
        ha="right" if left else "left",
        fontsize=8.0,
        color=PALETTE["red"] if version.outcome == "rejected" else PALETTE["quiet"],
    ).set_in_layout(False)


def _words(version: VersionFacts) -> str:
    if version.outcome == "rejected":
        return f"rejected: {_cut(version.reason)}" if version.reason else "rejected"
    return "" if version.outcome else "not validated by the end of the run"


def _cut(text: str, *, most: int = 75) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def _name(version: VersionFacts) -> str:
    return f"v{version.version} {version.family} {version.kind}"


def _leave_out_the_start(panel: Any, curves: Any) -> None:
    """Scale to where the means have settled: their first points are means of next to nothing. curves: (lines, n)."""
    settled = curves[:, curves.shape[1] // 8 :]
    low, high = float(settled.min()), float(settled.max())
    margin = 0.12 * (high - low) or 0.001
    panel.set_ylim(low - margin, high + margin)
