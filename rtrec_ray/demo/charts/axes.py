"""What the charts' axes have in common: wall time, names of lines, marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from rtrec_ray.demo.charts.svg import PALETTE
from rtrec_ray.demo.words import minutes


def time_axis(panel: Any, *, end_s: float, start_s: float = 0.0) -> None:
    """Write wall time below the panel, from `start_s` to `end_s`."""
    step = next(
        step for step in (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0, 86_400.0) if end_s - start_s <= 14 * step
    )
    panel.set_xlim(start_s, end_s)
    panel.set_xticks(np.arange(np.ceil(start_s / step) * step, end_s + 1e-9, step))
    panel.xaxis.set_major_formatter(FuncFormatter(minutes))
    panel.set_xlabel("wall time since the run began, minutes:seconds")


def heading(panel: Any, text: str) -> None:
    """Name what a panel shows, in place of a label turned on its side."""
    panel.set_title(text, loc="left", fontsize=9.0, color=PALETTE["ink"], pad=6.0)


def spread(wanted: Sequence[float], *, apart: float) -> list[float]:
    """Places for labels, as near to the wanted ones as `apart` allows, in the same order.

    >>> spread([0.0, 0.1, 5.0], apart=1.0)
    [-0.45, 0.55, 5.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[list[int]] = []
    middles: list[float] = []
    for index in order:
        groups.append([index])
        middles.append(wanted[index])
        while len(groups) > 1 and middles[-1] - middles[-2] < apart * (len(groups[-1]) + len(groups[-2])) / 2.0:
            merged = groups[-2] + groups[-1]
            groups[-2:], middles[-2:] = [merged], [sum(wanted[i] for i in merged) / len(merged)]
    placed = [0.0] * len(wanted)
    for group, middle in zip(groups, middles, strict=True):
        for rank, index in enumerate(group):
            placed[index] = round(middle + apart * (rank - (len(group) - 1) / 2.0), 9)
    return placed


def end_labels(panel: Any, labels: Sequence[tuple[str, float, str]], *, at: float, apart: float) -> None:
    """Name lines at their right end. labels: (text, y in axes share, colour); `apart` in axes share."""
    places = spread([y for _, y, _ in labels], apart=apart)
    for (text, _, colour), y in zip(labels, places, strict=True):
        panel.annotate(
            text,
            xy=(at, y),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            annotation_clip=False,
        )


def mark(panel: Any, moments: Sequence[tuple[float, str]]) -> None:
    """Mark moments (seconds, name) with lines, and with their names where these do not run into each other."""
    start_s, end_s = panel.get_xlim()
    named_to_s = start_s
    for at_s, name in moments:
        panel.axvline(at_s, color=PALETTE["quiet"], linewidth=0.6, linestyle=(0, (2, 2)), zorder=0.5)
        if at_s < named_to_s:
            continue
        named_to_s = at_s + 0.03 * (end_s - start_s)
        panel.annotate(
            name,
            xy=(at_s, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, -2),
            textcoords="offset points",
            va="top",
            fontsize=7.5,
            color=PALETTE["quiet"],
        )


def share_of(panel: Any, y: float) -> float:
    """Where y lies between the panel's foot (0) and its head (1)."""
    panel.autoscale_view()  # limits are worked out late, when drawing
    return float(panel.transAxes.inverted().transform(panel.transData.transform((0.0, y)))[1])
