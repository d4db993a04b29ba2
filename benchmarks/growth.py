"""What processes had done and held as a long run went on, and its plot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from rtrec_ray.clock import wall_ms
from rtrec_ray.demo.charts.axes import heading
from rtrec_ray.demo.charts.svg import PALETTE, figure, house_style

POINTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a process had done at a moment (s of the machine): events read, CPU time, memory now; `disk_mb`: tables."""

    at_s: float
    events: int
    cpu_s: float
    rss_mb: float
    disk_mb: float = 0.0


def mark(events: int = 0, *, disk_mb: float = 0.0) -> Mark:
    """This process, now."""
    rss_mb = psutil.Process().memory_info().rss / 2**20
    return Mark(at_s=wall_ms() / 1_000, events=events, cpu_s=time.process_time(), rss_mb=rss_mb, disk_mb=disk_mb)


def grown(growth: Sequence[Sequence[Mark]]) -> dict[str, list[float]]:
    """What all processes together had done, at moments evenly spread over the run: each stands where it last said.

    `events` millions; `cpu_us` CPU time per event since the moment before, µs; `rss_mb`; `disk_mb`.
    """
    moments = np.linspace(min(each[0].at_s for each in growth), max(each[-1].at_s for each in growth), POINTS + 1)
    events, cpu_s, rss_mb, disk_mb = (
        sum(_at(each, name, moments) for each in growth) for name in ("events", "cpu_s", "rss_mb", "disk_mb")
    )
    came = np.diff(events)
    steps = came > 0
    return {
        "events": (events[1:][steps] / 1e6).round(2).tolist(),
        "cpu_us": (np.diff(cpu_s)[steps] / came[steps] * 1e6).round(2).tolist(),
        "rss_mb": rss_mb[1:][steps].round().tolist(),
        "disk_mb": disk_mb[1:][steps].round().tolist(),
    }


def _at(marks: Sequence[Mark], name: str, moments: np.ndarray) -> np.ndarray:
    times = np.array([each.at_s for each in marks])
    values = np.array([float(getattr(each, name)) for each in marks])
    return np.interp(moments, times, values)


def plot(path: Path, long: dict[str, list[float]], panels_of: Sequence[tuple[str, str, str]]) -> None:
    """What grew, over the events. `panels_of`: name in `long`, heading, colour."""
    with house_style():
        made, panels = figure(*(1.5 for _ in panels_of))
        for panel, (name, text, colour) in zip(panels, panels_of, strict=True):
            panel.plot(long["events"], long[name], color=PALETTE[colour])
            panel.set_ylim(0, 1.15 * max(long[name]))
            heading(panel, text)
        panels[-1].set_xlabel("million events read")
        made.patch.set_alpha(1.0)
        made.savefig(path, dpi=110)
