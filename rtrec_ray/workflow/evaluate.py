"""Whether a condition is met: `handle(condition, state, stimulus)` answers the next state and the meeting, if any.

A state is a JSON value that `initial` begins. Nothing here depends on how often time is told, as long as
`handle` is called with each time that `wake_ms` names before anything later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from rtrec_ray.workflow.conditions import (
    Absence,
    AllOf,
    AnyOf,
    Condition,
    Count,
    EventIs,
    Schedule,
    Sequence,
    StatusIs,
    WatermarkAt,
    Within,
    terms_of,
)
from rtrec_ray.workflow.stimuli import Occurred, StatusChanged, Stimulus, Ticked, WatermarkMoved

State = Any

# Attempts of a sequence that are alike are one. Those of terms with memory may differ: the oldest give way.
MOST_ATTEMPTS: Final = 64
# So many offsets are kept of what met a term: for people, not for decisions.
MOST_OFFSETS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """A meeting. `start_ms`: the time of the first stimulus that it needed; `by`: offsets of its events, ascending."""

    start_ms: int
    by: tuple[int, ...]


Answer = tuple[State, Met | None]


def initial(condition: Condition, time_ms: int) -> State:
    """The state of a condition that begins to look at `time_ms`."""
    if terms_of(condition):
        return _initial_around(condition, time_ms)
    match condition:
        case Schedule():
            return {"next": condition.after(time_ms)}
        case WatermarkAt():
            return {"last": None, "at": None}
        case StatusIs():
            return {"is": False, "by": None}
    return None


def _initial_around(condition: Condition, time_ms: int) -> State:
    match condition:
        case AllOf(terms=terms):
            return {"terms": [initial(term, time_ms) for term in terms], "met": [None] * len(terms)}
        case AnyOf(terms=terms):
            return {"terms": [initial(term, time_ms) for term in terms]}
        case Sequence(terms=terms):
            return {"first": initial(terms[0], time_ms), "attempts": []}
        case Count(term=term):
            return {"term": initial(term, time_ms), "met": []}
        case Within(term=term):
            return {"term": initial(term, time_ms)}
        case Absence(term=term):
            return {"term": initial(term, time_ms), "since": time_ms, "said": False}
    raise TypeError(condition)


def handle(condition: Condition, state: State, stimulus: Stimulus, *, oldest_ms: int | None = None) -> Answer:
    """Take a stimulus. `oldest_ms`: what began before it does not count (see Within)."""
    return _HANDLERS[type(condition)](condition, state, stimulus, oldest_ms)


def wake_ms(condition: Condition, state: State) -> int | None:
    """The next time at which the condition may be met with nothing else happening; None is never."""
    match condition:
        case Schedule():
            return int(state["next"])
        case Absence(ms=ms, term=term):
            return _least([None if state["said"] else state["since"] + ms, wake_ms(term, state["term"])])
        case Sequence(terms=terms):
            later = [wake_ms(terms[step], inner) for step, _, _, inner in state["attempts"]]
            return _least([wake_ms(terms[0], state["first"]), *later])
        case AllOf() | AnyOf():
            pairs = zip(condition.terms, state["terms"], strict=True)
            return _least([wake_ms(term, inner) for term, inner in pairs])
        case Count(term=term) | Within(term=term):
            return wake_ms(term, state["term"])
    return None


def _least(times: list[int | None]) -> int | None:
    return min((time for time in times if time is not None), default=None)


def restart(condition: Condition, state: State) -> State:
    """The state after something around the condition was met: what it remembers is used up, its times go on."""
    match condition:
        case AllOf(terms=terms):
            return {"terms": _restarted(terms, state), "met": [None] * len(terms)}
        case AnyOf(terms=terms):
            return {"terms": _restarted(terms, state)}
        case Sequence(terms=terms):
            return {"first": restart(terms[0], state["first"]), "attempts": []}
        case Count(term=term):
            return {"term": restart(term, state["term"]), "met": []}
        case Within(term=term):
            return {"term": restart(term, state["term"])}
        case Absence(term=term):
            return {**state, "term": restart(term, state["term"])}
    return state


def _restarted(terms: tuple[Condition, ...], state: State) -> list[State]:
    return [restart(term, inner) for term, inner in zip(terms, state["terms"], strict=True)]


def _event(condition: EventIs, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    if isinstance(stimulus, Occurred) and condition.matches(stimulus):
        return state, Met(start_ms=stimulus.time_ms, by=(stimulus.offset,))
    return state, None


def _status(condition: StatusIs, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    if not isinstance(stimulus, StatusChanged) or stimulus.node != condition.node:
        return state, None
    holds = stimulus.state in condition.states
    by = () if stimulus.offset is None else (stimulus.offset,)
    met = Met(start_ms=stimulus.time_ms, by=by) if holds and not state["is"] else None
    return {"is": holds, "by": stimulus.offset}, met


def _watermark(condition: WatermarkAt, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    if not isinstance(stimulus, WatermarkMoved) or stimulus.stage != condition.stage:
        return state, None
    met = Met(start_ms=stimulus.time_ms, by=())
    last, value = state["last"], stimulus.value_ms
    if condition.every_ms is None:
        assert condition.at_ms is not None
        reached = value >= condition.at_ms
        return {"last": last or reached, "at": value}, met if reached and not last else None
    multiple = (value - condition.after_ms) // condition.every_ms
    if last is None:
        return {"last": multiple, "at": value}, None
    return {"last": max(last, multiple), "at": value}, met if multiple > last else None


def _schedule(condition: Schedule, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    due, time_ms = state["next"], stimulus.time_ms
    if time_ms < due:
        return state, None
    now_ms = time_ms + (stimulus.late_ms if isinstance(stimulus, Ticked) else 0)
    met = Met(start_ms=time_ms, by=())
    missed = now_ms - due > condition.grace_ms
    if missed and condition.missed == "skip":
        return {"next": condition.after(now_ms - condition.grace_ms - 1)}, None
    if missed and condition.missed == "latest":
        return {"next": condition.after(now_ms)}, met
    return {"next": condition.after(due)}, met


def _absence(condition: Absence, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    time_ms = stimulus.time_ms
    silent = not state["said"] and time_ms >= state["since"] + condition.ms
    term, seen = handle(condition.term, state["term"], stimulus)
    since, said = (time_ms, False) if seen is not None else (state["since"], state["said"] or silent)
    return {"term": term, "since": since, "said": said}, Met(start_ms=time_ms, by=()) if silent else None


def _within(condition: Within, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    mine = stimulus.time_ms - condition.ms
    term, met = handle(condition.term, state["term"], stimulus, oldest_ms=_later(mine, oldest_ms))
    return {"term": term}, met


def _count(condition: Count, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    term, met = handle(condition.term, state["term"], stimulus, oldest_ms=oldest_ms)
    before = [each for each in state["met"] if not _too_old(each[0], oldest_ms)]
    if met is None or _too_old(met.start_ms, oldest_ms):
        return {"term": term, "met": before}, None
    counted = [*before, [met.start_ms, list(met.by)]]
    if len(counted) < condition.n:
        return {"term": term, "met": counted}, None
    return restart(condition, {"term": term}), _union(counted)


def _any(condition: AnyOf, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    terms, meetings = _each(condition.terms, state, stimulus, oldest_ms)
    found = [met for met in meetings if met is not None]
    if not found:
        return {"terms": terms}, None
    return restart(condition, {"terms": terms}), max(found, key=lambda met: met.start_ms)


def _all(condition: AllOf, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    terms, meetings = _each(condition.terms, state, stimulus, oldest_ms)
    kept = [
        _held(term, inner, earlier, met, oldest_ms)
        for term, inner, earlier, met in zip(condition.terms, terms, state["met"], meetings, strict=True)
    ]
    remembered = [None if each is None or each[0] is None else each for each in kept]
    after = {"terms": terms, "met": remembered}
    complete = [each for each in kept if each is not None]
    if len(complete) < len(kept) or not any(met is not None for met in meetings):
        return after, None
    # A state that holds is as old as this stimulus: when it began says nothing about the happenings around it.
    met = _union([[stimulus.time_ms if start is None else start, by] for start, by in complete])
    return restart(condition, after), met


def _held(term: Condition, inner: State, earlier: Any, met: Met | None, oldest_ms: int | None) -> Any:
    """[start, offsets] of a term that counts as met; a state's start is None."""
    if isinstance(term, StatusIs):
        return [None, [] if inner["by"] is None else [inner["by"]]] if inner["is"] else None
    newest = earlier
    if met is not None and (earlier is None or met.start_ms >= earlier[0]):
        newest = [met.start_ms, list(met.by)]
    return None if newest is None or _too_old(newest[0], oldest_ms) else newest


def _each(
    terms: tuple[Condition, ...], state: State, stimulus: Stimulus, oldest_ms: int | None
) -> tuple[list[State], list[Met | None]]:
    pairs = zip(terms, state["terms"], strict=True)
    answers = [handle(term, inner, stimulus, oldest_ms=oldest_ms) for term, inner in pairs]
    return [inner for inner, _ in answers], [met for _, met in answers]


def _sequence(condition: Sequence, state: State, stimulus: Stimulus, oldest_ms: int | None) -> Answer:
    attempts: list[Any] = []
    done: list[Any] = []
    first, met = handle(condition.terms[0], state["first"], stimulus, oldest_ms=oldest_ms)
    moved = [_advance(condition, attempt, stimulus, oldest_ms) for attempt in state["attempts"]]
    if met is not None:
        moved.append([1, met.start_ms, list(met.by), _begin(condition, 1, stimulus)])
    for attempt in moved:
        if not _too_old(attempt[1], oldest_ms):
            (done if attempt[0] == len(condition.terms) else attempts).append(attempt)
    if done:
        latest = max(done, key=lambda attempt: attempt[1])
        return restart(condition, {"first": first}), Met(start_ms=latest[1], by=tuple(latest[2]))
    return {"first": first, "attempts": _distinct(attempts)}, None


def _advance(condition: Sequence, attempt: Any, stimulus: Stimulus, oldest_ms: int | None) -> Any:
    step, start, by, inner = attempt
    inner, met = handle(condition.terms[step], inner, stimulus, oldest_ms=oldest_ms)
    if met is None:
        return [step, start, by, inner]
    offsets = [*by, *met.by][-MOST_OFFSETS:]
    return [step + 1, min(start, met.start_ms), offsets, _begin(condition, step + 1, stimulus)]


def _begin(condition: Sequence, step: int, stimulus: Stimulus) -> State:
    return initial(condition.terms[step], stimulus.time_ms) if step < len(condition.terms) else None


def _distinct(attempts: list[Any]) -> list[Any]:
    """Of attempts that wait for the same, the one that began last: it stays within any time the longest."""
    best: dict[str, Any] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt[1]):
        best[repr((attempt[0], attempt[3]))] = attempt
    return sorted(best.values(), key=lambda attempt: attempt[1])[-MOST_ATTEMPTS:]


def _union(held: list[Any]) -> Met:
    offsets = sorted({offset for _, by in held for offset in by})
    return Met(start_ms=min(start for start, _ in held), by=tuple(offsets[-MOST_OFFSETS:]))


def _too_old(start_ms: int, oldest_ms: int | None) -> bool:
    return oldest_ms is not None and start_ms < oldest_ms


def _later(one_ms: int, other_ms: int | None) -> int:
    return one_ms if other_ms is None else max(one_ms, other_ms)


_HANDLERS: Final[dict[type, Callable[[Any, State, Stimulus, int | None], Answer]]] = {
    EventIs: _event,
    StatusIs: _status,
    WatermarkAt: _watermark,
    Schedule: _schedule,
    Absence: _absence,
    Within: _within,
    Count: _count,
    AnyOf: _any,
    AllOf: _all,
    Sequence: _sequence,
}
