"""What a watcher of the run is told: each stage when it first works, each day of the log, each turn of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from rtrec_ray.demo.figures import percentiles
from rtrec_ray.demo.news import of_model
from rtrec_ray.demo.record import Moment
from rtrec_ray.demo.replay.figures import answered
from rtrec_ray.demo.replay.record import Call, LogFacts
from rtrec_ray.demo.timeline import Seen
from rtrec_ray.demo.words import in_ms

_DAY_MS: Final = 86_400_000
_FIRST: Final = {
    "history": "history: the first events are in Parquet files",
    "features": "features: the first events are in the tiles",
    "samples": "samples: the first impressions met their inference records",
}


class News:
    """Turns what is seen into lines, each told once."""

    def __init__(self, log: LogFacts, calls: Callable[[], Sequence[Call]]) -> None:
        self._log = log
        self._calls = calls
        self._begun: set[str] = set()
        self._day = log.first_ms // _DAY_MS

    def lines(self, seen: Seen) -> list[str]:
        """What is new since the last call."""
        lines = [text for event in seen.events if (text := of_model(event))]
        return [*self._first_signs(seen.moment), *lines, *self._day_past(seen.moment)]

    def _first_signs(self, moment: Moment) -> list[str]:
        fresh = [task for task, stage in moment.stages.items() if stage.applied and task not in self._begun]
        self._begun.update(fresh)
        return [_FIRST[task] for task in fresh if task in _FIRST]

    def _day_past(self, moment: Moment) -> list[str]:
        day = min(moment.clock_ms, self._log.last_ms + 1) // _DAY_MS
        if day <= self._day or not moment.stages:
            return []
        past, self._day = self._day, day
        behind = ", ".join(
            f"{task} {max(0, moment.on_log - moment.stages[task].applied):,}"
            for task in _FIRST
            if task in moment.stages
        )
        (p50,) = percentiles([call.latency_ms for call in answered(self._calls())[-200:]], 50.0)
        date = datetime.fromtimestamp(past * _DAY_MS / 1_000.0, tz=UTC)
        day_name = f"{date:%a} {date.day} {date:%b}"
        return [f"{day_name} is over: {moment.on_log:,} events in; behind: {behind}; answers in {in_ms(p50)}"]
