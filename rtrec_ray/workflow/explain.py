"""Why a node does or does not run: each term of its rules, met or missing, with the events that met it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

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
)
from rtrec_ray.workflow.state import Saved, going, hold_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A condition as it stands: `by` are offsets of the events that met it, so far as it remembers them."""

    text: str
    met: bool
    by: tuple[int, ...] = ()
    terms: tuple[Term, ...] = ()


def explain(condition: Condition, state: Any) -> Term:
    """What the condition has and what it lacks.

    >>> from rtrec_ray.workflow.evaluate import initial
    >>> both = AllOf(terms=(EventIs(key="a"), EventIs(key="b")))
    >>> [(term.text, term.met) for term in explain(both, initial(both, 0)).terms]
    [('event key=a', False), ('event key=b', False)]
    """
    match condition:
        case AllOf(terms=terms):
            pairs = zip(terms, state["terms"], state["met"], strict=True)
            return _around("all of", tuple(_remembered(term, inner, met) for term, inner, met in pairs))
        case AnyOf(terms=terms):
            return _around("any of", tuple(explain(t, s) for t, s in zip(terms, state["terms"], strict=True)))
        case Sequence():
            return _sequence(condition, state)
        case Count(n=n, term=term):
            by = tuple(offset for _, offsets in state["met"] for offset in offsets)
            text = f"{len(state['met'])} of {n} times"
            return Term(text=text, met=False, by=by, terms=(explain(term, state["term"]),))
        case Within(ms=ms, term=term):
            return _around(f"within {span(ms)}", (explain(term, state["term"]),))
    return _leaf(condition, state)


def waits_for(saved: Saved, node: str) -> str | None:
    """What holds up a start of the node that was asked for; None if none was."""
    flow, state = saved.definition, saved.nodes[node]
    if state.retry_wall_ms is not None:
        return f"its retry {state.attempt} is due at {time(state.retry_wall_ms)} by the machine's clock"
    if not state.waiting:
        return None
    if state.run is not None:
        return f"its run {state.run} has to end first"
    match hold_of(saved, node):
        case "paused":
            return f"workflow {flow.name} is paused; `rtrec workflow resume {flow.name}` goes on"
        case "concurrency":
            return f"concurrency is {flow.concurrency}, and one of {', '.join(going(saved))} has to end first"
    return "the scheduler gives it next"


def describe(condition: Condition) -> str:
    """The condition in a line.

    >>> describe(Within(ms=60_000, term=Sequence(terms=(EventIs(key="a"), EventIs(key="b")))))
    'event key=a, then event key=b, within 1m'
    """
    match condition:
        case AllOf(terms=terms):
            return " and ".join(map(_nested, terms))
        case AnyOf(terms=terms):
            return " or ".join(map(_nested, terms))
        case Sequence(terms=terms):
            return ", then ".join(map(_nested, terms))
        case Count(n=n, term=term):
            return f"{n} times {_nested(term)}"
        case Within(ms=ms, term=term):
            return f"{describe(term)}, within {span(ms)}"
        case Absence(ms=ms, term=term):
            return f"no {_nested(term)} for {span(ms)}"
    return _simple(condition)


def span(ms: int) -> str:
    """A duration in its largest whole unit.

    >>> [span(each) for each in (90_000, 7_200_000, 5)]
    ['90s', '2h', '5ms']
    """
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms % length == 0:
            return f"{ms // length}{unit}"
    return f"{ms}ms"


def _nested(condition: Condition) -> str:
    text = describe(condition)
    return f"({text})" if isinstance(condition, AllOf | AnyOf | Sequence) else text


def _simple(condition: Condition) -> str:
    match condition:
        case EventIs():
            return condition.text
        case StatusIs(node=node, states=states):
            return f"{node} is {' or '.join(states)}"
        case WatermarkAt(stage=stage, at_ms=at_ms, every_ms=every_ms, after_ms=after_ms):
            each = f"each {span(every_ms or 0)}" + (f" and {span(after_ms)}" if after_ms else "")
            return f"watermark of {stage} " + (f"at {time(at_ms)}" if at_ms is not None else each)
        case Schedule(cron=cron, every_ms=every_ms):
            return f"cron {cron.text}" if cron is not None else f"every {span(every_ms or 0)}"
    raise TypeError(condition)


def time(ms: int) -> str:
    """A time for people.

    >>> time(0)
    '1970-01-01 00:00:00'
    """
    return datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _leaf(condition: Condition, state: Any) -> Term:
    text = describe(condition)
    match condition:
        case StatusIs():
            return Term(text=text, met=bool(state["is"]), by=() if state["by"] is None else (state["by"],))
        case WatermarkAt():
            at = "unknown" if state["at"] is None else time(state["at"])
            return Term(text=f"{text}; now {at}", met=condition.every_ms is None and bool(state["last"]))
        case Schedule():
            return Term(text=f"{text}; next {time(state['next'])}", met=False)
        case Absence(ms=ms, term=term):
            text = f"{text}; silent since {time(state['since'])}, over at {time(state['since'] + ms)}"
            return Term(text=text, met=bool(state["said"]), terms=(explain(term, state["term"]),))
    return Term(text=text, met=False)


def _around(text: str, terms: tuple[Term, ...]) -> Term:
    return Term(text=text, met=False, by=tuple(offset for term in terms for offset in term.by), terms=terms)


def _remembered(term: Condition, inner: Any, met: Any) -> Term:
    if met is None:
        return explain(term, inner)
    return Term(text=describe(term), met=True, by=tuple(met[1]))


def _sequence(condition: Sequence, state: Any) -> Term:
    """The attempt that has come farthest."""
    step, by, inner = 0, (), state["first"]
    if state["attempts"]:
        step, _, offsets, inner = max(state["attempts"], key=lambda attempt: (attempt[0], attempt[1]))
        by = tuple(offsets)
    done = tuple(Term(text=describe(term), met=True) for term in condition.terms[:step])
    ahead = tuple(Term(text=describe(term), met=False) for term in condition.terms[step + 1 :])
    current = explain(condition.terms[step], inner)
    return Term(text=f"{step} of {len(condition.terms)} in order", met=False, by=by, terms=(*done, current, *ahead))
