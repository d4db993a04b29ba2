"""The live requests: how long each took, and the model behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rtrec_ray.demo.charts.axes import end_labels, heading, mark, share_of, time_axis
from rtrec_ray.demo.charts.svg import PALETTE, figure, house_style, to_svg
from rtrec_ray.demo.replay.figures import answered, switches
from rtrec_ray.demo.replay.record import Call, DemoRecord
from rtrec_ray.demo.words import thousands


def latency(record: DemoRecord) -> str:
    """The time each live request took, and when the model behind it changed."""
    good = answered(record.calls)
    if not good:
        return ""
    with house_style():
        made, (panel,) = figure(2.7)
        heading(panel, "Time until the answer of POST /v1/recommend (ms, one dot a request; logarithmic)")
        panel.set_yscale("log")
        for calls, colour in ((_whole(good), PALETTE["blue"]), (_lacking(good), PALETTE["orange"])):
            panel.plot(
                [call.at_s for call in calls],
                [call.latency_ms for call in calls],
                linestyle="none",
                marker="o",
                markersize=2.2,
                markeredgewidth=0,
                alpha=0.45,
                color=colour,
            )
        _draw_medians(panel, good)
        _draw_failures(panel, record.calls)
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(thousands))
        panel.yaxis.set_minor_locator(NullLocator())
        time_axis(panel, end_s=record.seconds)
        mark(panel, [(call.at_s, f"v{call.version}") for call in switches(good)])
        return to_svg(made, title="Latency of live requests, and reloads of the model")


def _draw_medians(panel: Any, good: Sequence[Call], *, width_s: float = 10.0) -> None:
    at_s = np.array([call.at_s for call in good])
    latency_ms = np.array([call.latency_ms for call in good])
    bins = np.floor(at_s / width_s).astype(int)
    middles, p50, p99 = [], [], []
    for index in np.unique(bins):
        inside = latency_ms[bins == index]
        middles.append((index + 0.5) * width_s)
        p50.append(np.percentile(inside, 50))
        p99.append(np.percentile(inside, 99))
    panel.plot(middles, p50, color=PALETTE["ink"], linewidth=1.4)
    panel.plot(middles, p99, color=PALETTE["ink"], linewidth=0.9, linestyle=(0, (4, 2)))
    labels = [("median of 10 s", p50[-1]), ("99th percentile", p99[-1])]
    end_labels(panel, [(text, share_of(panel, y), PALETTE["ink"]) for text, y in labels], at=1.0, apart=0.09)


def _draw_failures(panel: Any, calls: Sequence[Call]) -> None:
    failed = [call for call in calls if call.status != 200]
    if failed:
        panel.plot(
            [call.at_s for call in failed],
            [call.latency_ms for call in failed],
            linestyle="none",
            marker="x",
            markersize=6,
            color=PALETTE["red"],
        )


def _whole(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if not call.degraded]


def _lacking(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call.degraded]
