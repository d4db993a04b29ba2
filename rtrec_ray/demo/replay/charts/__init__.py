"""The report's charts: a record in, an <svg> out. Every one has the run's wall time along its foot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rtrec_ray.demo.replay.charts.models import losses, versions
from rtrec_ray.demo.replay.charts.requests import latency
from rtrec_ray.demo.replay.charts.stages import phases, stages
from rtrec_ray.demo.replay.record import DemoRecord

_CHARTS: Final[dict[str, Callable[[DemoRecord], str]]] = {
    "phases": phases,
    "stages": stages,
    "losses": losses,
    "versions": versions,
    "latency": latency,
}


def charts(record: DemoRecord) -> dict[str, str]:
    """Every chart by name; empty text where there is nothing to draw."""
    return {name: draw(record) for name, draw in _CHARTS.items()}
