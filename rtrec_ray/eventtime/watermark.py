"""How far event time has come (Akidau et al., "The Dataflow Model", VLDB 2015, section 2.3).

A source's watermark is the largest event time it brought, less the bound on disorder; an operator's is the minimum
over its sources. A source at its log's end for a while is idle and left out; one that lags is stalled and makes the
others wait. When all are idle the watermark goes on with the clock from where it stands, so that the last windows of a
quiet system close. While a broker is away nobody looks: the session ends, and the next one begins where it left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkOptions:
    """`disorder_ms` in event time; `idle_after_ms` in wall time."""

    disorder_ms: int = 5_000
    idle_after_ms: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One partition of one topic. `at_end_since_ms`: since when (wall) each look found the position at the log's
    end.
    """

    max_ts_ms: int | None = None
    at_end_since_ms: int | None = None


class Watermark:
    """The watermark of one operator over its sources. It never moves back.

    `value_ms`, `max_ts_ms`: what an owner before left. Event time stood while there was none.

    >>> mark = Watermark(["behavior"], options=WatermarkOptions(disorder_ms=5))
    >>> mark.arrived("behavior", max_ts_ms=100)
    >>> mark.advance(wall_ms=0, now_ms=1_000)
    95
    """

    def __init__(
        self,
        sources: Iterable[str],
        *,
        options: WatermarkOptions,
        value_ms: int | None = None,
        max_ts_ms: Mapping[str, int] | None = None,
    ) -> None:
        known = max_ts_ms or {}
        self._sources = {name: Source(max_ts_ms=known.get(name)) for name in sources}
        self._options = options
        self._value_ms = value_ms
        self._goes_on: tuple[int, int] | None = None  # from a time of events, since a time of the event clock, ms

    @property
    def value_ms(self) -> int | None:
        """The watermark, ms; None before anything is known."""
        return self._value_ms

    def max_ts_ms(self, source: str) -> int | None:
        """The largest event time that `source` brought, ms."""
        return self._sources[source].max_ts_ms

    def arrived(self, source: str, *, max_ts_ms: int | None) -> None:
        """Records came; `max_ts_ms` is the largest event time among the accepted ones, None when none was accepted."""
        old = self._sources[source]
        largest = max((ts for ts in (old.max_ts_ms, max_ts_ms) if ts is not None), default=None)
        self._sources[source] = Source(max_ts_ms=largest)
        self._goes_on = None

    def looked(self, source: str, *, at_end: bool, wall_ms: int) -> None:
        """A live owner compared its position with the log's end. Not at the end means lag: stalled, never idle."""
        old = self._sources[source]
        since = (old.at_end_since_ms if old.at_end_since_ms is not None else wall_ms) if at_end else None
        self._sources[source] = replace(old, at_end_since_ms=since)

    def active_ms(self, *, wall_ms: int) -> dict[str, int | None]:
        """The largest event time of each source that is not idle, ms; None for an unknown one."""
        return {name: s.max_ts_ms for name, s in self._sources.items() if not self._idle(s, wall_ms)}

    def rests(self, *, wall_ms: int) -> bool:
        """Whether all sources are idle and none ever brought a time."""
        sources = self._sources.values()
        return all(s.max_ts_ms is None and self._idle(s, wall_ms) for s in sources)

    def advance(self, *, wall_ms: int, now_ms: int) -> int | None:
        """The watermark as of now; `now_ms` is the event clock's time."""
        active = [s for s in self._sources.values() if not self._idle(s, wall_ms)]
        candidate = self._of_active(active) if active else self._of_idle(now_ms)
        if active:
            self._goes_on = None
        if candidate is not None and (self._value_ms is None or candidate > self._value_ms):
            self._value_ms = candidate
        return self._value_ms

    def _idle(self, source: Source, wall_ms: int) -> bool:
        since = source.at_end_since_ms
        return since is not None and wall_ms - since >= self._options.idle_after_ms

    def _of_active(self, active: list[Source]) -> int | None:
        times = [s.max_ts_ms for s in active]
        if any(ts is None for ts in times):
            return None  # it lags behind records of unknown time
        return min(ts for ts in times if ts is not None) - self._options.disorder_ms

    def _of_idle(self, now_ms: int) -> int | None:
        largest = max((s.max_ts_ms for s in self._sources.values() if s.max_ts_ms is not None), default=None)
        if largest is None:
            return None
        if self._goes_on is None:
            # Not from the largest time again: after a record without a newer one (late, a copy, a dead letter) it would
            # stand for as long as it had gone on.
            at_least = largest - self._options.disorder_ms
            stands_ms = at_least if self._value_ms is None else max(at_least, self._value_ms)
            self._goes_on = (stands_ms, now_ms)
        from_ms, since_ms = self._goes_on
        # An event may be ahead of the clock by the skew bound; going on from it must not overtake what happens now.
        return min(from_ms + max(0, now_ms - since_ms), max(now_ms, largest) - self._options.disorder_ms)
