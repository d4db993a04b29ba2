"""The run as a whole: what it did when, and its events on their way through the stages."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter

from rtrec_ray.demo.charts.axes import end_labels, heading, share_of, time_axis
from rtrec_ray.demo.charts.svg import PALETTE, figure, house_style, to_svg
from rtrec_ray.demo.record import Moment
from rtrec_ray.demo.replay.charts.days import days_above
from rtrec_ray.demo.replay.record import DemoRecord
from rtrec_ray.demo.words import thousands

STAGES: Final = {
    "features": ("features", PALETTE["blue"]),
    "samples": ("samples", PALETTE["green"]),
    "history": ("history", PALETTE["orange"]),
}
"""Task → its name in the charts and its colour, the same in all of them."""


def phases(record: DemoRecord) -> str:
    """What the run did when."""
    if not record.phases:
        return ""
    with house_style():
        made, (panel,) = figure(0.45 + 0.24 * len(record.phases))
        for row, phase in enumerate(record.phases):
            took_s = phase.end_s - phase.start_s
            panel.barh(row, took_s, left=phase.start_s, height=0.55, color=PALETTE["sky"], linewidth=0)
            # On the side where there is room.
            early = phase.end_s < 0.8 * record.seconds
            panel.annotate(
                f"{took_s:.0f} s",
                xy=(phase.end_s if early else phase.start_s, row),
                xytext=(5 if early else -5, 0),
                textcoords="offset points",
                va="center",
                ha="left" if early else "right",
                fontsize=8.5,
                color=PALETTE["quiet"],
            )
        panel.set_yticks(range(len(record.phases)), [phase.name for phase in record.phases])
        panel.tick_params(axis="y", labelcolor=PALETTE["ink"])
        panel.set_ylim(len(record.phases) - 0.4, -0.6)
        panel.grid(visible=False)
        panel.spines["left"].set_visible(False)
        time_axis(panel, end_s=record.seconds)
        return to_svg(made, title="What the run did when")


def stages(record: DemoRecord) -> str:
    """Events through the stages, how far each is behind, and how far watermarks are behind the clock."""
    if not record.moments:
        return ""
    with house_style():
        made, (through, behind, delay) = figure(2.5, 1.8, 1.9)
        _draw_through(through, record)
        _draw_behind(behind, record)
        _draw_delay(delay, record)
        days_above(through, record)
        time_axis(delay, end_s=record.seconds)
        return to_svg(made, title="Events through the stages, lag of each stage, and delay of the watermarks")


def _draw_through(panel: Any, record: DemoRecord) -> None:
    heading(panel, "Behaviour events: written to Kafka, and applied and committed by each stage (count)")
    at_s = [moment.at_s for moment in record.moments]
    on_log = [moment.on_log for moment in record.moments]
    most = max(on_log[-1], 1)
    panel.set_ylim(0, most * 1.06)
    panel.fill_between(at_s, on_log, color=PALETTE["quiet"], alpha=0.15, linewidth=0)
    labels = [(f"on Kafka {on_log[-1]:,}", on_log[-1] / (most * 1.06), PALETTE["quiet"])]
    for task, (name, colour) in STAGES.items():
        applied = [_applied(moment, task) for moment in record.moments]
        panel.plot(at_s, applied, color=colour, linewidth=1.3, drawstyle="steps-post")
        labels.append((f"{name} {applied[-1]:,}", applied[-1] / (most * 1.06), colour))
    end_labels(panel, labels, at=1.0, apart=0.09)
    panel.yaxis.set_major_formatter(FuncFormatter(thousands))


def _draw_behind(panel: Any, record: DemoRecord) -> None:
    heading(panel, "Lag: events on Kafka that a stage has not committed yet (count; logarithmic above 10)")
    panel.set_yscale("symlog", linthresh=10.0, linscale=0.5)
    at_s, labels, most = [moment.at_s for moment in record.moments], [], 10.0
    for task, (name, colour) in STAGES.items():
        lag = [max(0, moment.on_log - _applied(moment, task)) for moment in record.moments]
        panel.plot(at_s, lag, color=colour, linewidth=1.0)
        most = max(most, *lag)
        labels.append((f"{name}, median {np.median(lag):,.0f}", float(np.median(lag)), colour))
    panel.set_ylim(0, most * 1.5)
    panel.yaxis.set_major_locator(FixedLocator([0, 10, 100, 1_000, 10_000, 100_000]))
    panel.yaxis.set_major_formatter(FuncFormatter(thousands))
    end_labels(panel, [(text, share_of(panel, y), colour) for text, y, colour in labels], at=1.0, apart=0.13)


def _draw_delay(panel: Any, record: DemoRecord) -> None:
    speed = record.time.speed
    heading(panel, "Delay: how far a stage's watermark is behind the clock (s of wall time)")
    labels, most = [], 0.0
    for task, (name, colour) in STAGES.items():
        points = [
            (moment.at_s, (moment.clock_ms - mark) / speed / 1_000.0)
            for moment in record.moments
            if (mark := _watermark(moment, task)) is not None
        ]
        if points:
            at_s, delay = zip(*points, strict=True)
            panel.plot(at_s, delay, color=colour, linewidth=1.0)
            middle = float(np.median(delay))
            most = max(most, float(np.percentile(delay, 99)))
            labels.append((f"{name}, median {middle:.1f}", middle, colour))
    panel.set_ylim(0.0, max(most * 1.15, 1.0))
    end_labels(panel, [(text, share_of(panel, y), colour) for text, y, colour in labels], at=1.0, apart=0.13)


def _applied(moment: Moment, task: str) -> int:
    stage = moment.stages.get(task)
    return 0 if stage is None else stage.applied


def _watermark(moment: Moment, task: str) -> int | None:
    stage = moment.stages.get(task)
    return None if stage is None else stage.watermark_ms
