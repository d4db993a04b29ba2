"""Days of event time along a chart."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from rtrec_ray.demo.replay.record import DemoRecord

_DAY_MS: Final = 86_400_000


def days_above(panel: Any, record: DemoRecord) -> None:
    """Name the days of event time above the panel."""
    time = record.time
    first = -(-time.event_at(0.0) // _DAY_MS)
    last = time.event_at(record.seconds) // _DAY_MS
    shown = [day for day in range(first, last + 1) if record.log.first_ms - _DAY_MS < day * _DAY_MS]
    upper = panel.secondary_xaxis("top")
    upper.patch.set_visible(False)
    # A day needs an eleventh of the width for its name with the weekday.
    room = (time.at_s(_DAY_MS) - time.at_s(0)) / record.seconds
    upper.set_xticks([time.at_s(day * _DAY_MS) for day in shown], [_day_name(day, short=room < 0.09) for day in shown])
    upper.tick_params(length=3, labelsize=8.0, pad=1)
    upper.spines["top"].set_visible(False)


def _day_name(day: int, *, short: bool) -> str:
    date = datetime.fromtimestamp(day * _DAY_MS / 1_000.0, tz=UTC)
    return f"{date.day} {date:%b}" if short else f"{date:%a} {date.day} {date:%b}"
