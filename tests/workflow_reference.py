"""What conditions mean, said plainly over a whole list of events: slow, and written another way than the evaluator."""

from __future__ import annotations

from dataclasses import dataclass

from rtrec_ray.workflow.conditions import AllOf, AnyOf, Condition, Count, EventIs, Sequence, Within
from rtrec_ray.workflow.stimuli import Occurred


@dataclass(frozen=True)
class Firing:
    at: int  # index into the events
    start_ms: int


def firings(condition: Condition, events: list[Occurred], *, begin: int = 0, within: int | None = None) -> list[Firing]:
    """All meetings from index `begin` on: after each, the condition looks only at what comes later."""
    found: list[Firing] = []
    while (first := _first(condition, events, begin, within)) is not None:
        found.append(first)
        begin = first.at + 1
    return found


def _first(condition: Condition, events: list[Occurred], begin: int, within: int | None) -> Firing | None:
    if isinstance(condition, Within):
        return _first(condition.term, events, begin, condition.ms if within is None else min(within, condition.ms))
    for at in range(begin, len(events)):
        starts = [s for s in _starts(condition, events, begin, at, within) if _fresh(s, events[at].time_ms, within)]
        if starts:
            return Firing(at=at, start_ms=max(starts))
    return None


def _starts(condition: Condition, events: list[Occurred], begin: int, at: int, within: int | None) -> list[int]:
    """When the ways began in which the condition is met at index `at`."""
    now, seen = events[at].time_ms, events[: at + 1]
    match condition:
        case EventIs():
            return [now] if condition.matches(events[at]) else []
        case AnyOf(terms=terms):
            return [f.start_ms for term in terms for f in firings(term, seen, begin=begin, within=within) if f.at == at]
        case Count(n=n, term=term):
            inner = firings(term, seen, begin=begin, within=within)
            fresh = [f for f in inner if _fresh(f.start_ms, now, within)]
            return [min(f.start_ms for f in fresh)] if len(fresh) >= n and fresh[-1].at == at else []
        case AllOf(terms=terms):
            inner = [firings(term, seen, begin=begin, within=within) for term in terms]
            if not any(f.at == at for each in inner for f in each):
                return []
            newest = [max((f.start_ms for f in each), default=None) for each in inner]
            return (
                []
                if None in newest
                else [min(s for s in newest if s is not None)]
                if all(_fresh(s, now, within) for s in newest)
                else []
            )
        case Sequence(terms=terms):
            chains = [(f.at, f.start_ms) for f in firings(terms[0], seen, begin=begin, within=within)]
            for term in terms[1:]:
                steps = [(start, _first(term, seen, after + 1, within)) for after, start in chains]
                chains = [(f.at, min(start, f.start_ms)) for start, f in steps if f is not None]
            return [start for end, start in chains if end == at]
    raise AssertionError(condition)


def _fresh(start_ms: int, now_ms: int, within: int | None) -> bool:
    return within is None or start_ms >= now_ms - within
