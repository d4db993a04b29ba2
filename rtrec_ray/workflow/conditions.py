"""Conditions: values that say when a rule acts. `evaluate` decides whether they are met; they combine at will.

What a meeting consumes: when a condition is met it starts over, and so does everything inside it. All it has seen up to
and including that stimulus is used up, so an event is acted on once per rule. One stimulus meets a condition once.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final, Literal

import orjson

from rtrec_ray.workflow.cron import Cron
from rtrec_ray.workflow.stimuli import Occurred

EVENT_FIELDS: Final = ("key", "value", "type", "namespace", "sender")

Missed = Literal["skip", "latest", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventIs:
    """An event whose fields match: each is text, or a pattern with `*`, `?`, `[...]`. None is any.

    `context`: names of its context and what their values are like, as text or else as JSON; one that it lacks does not
    match.

    >>> EventIs(type="MODEL_*", key="model", context=(("kind", "base"),)).text
    'event key=model type=MODEL_* context.kind=base'
    """

    key: str | None = None
    value: str | None = None
    type: str | None = None
    namespace: str | None = None
    sender: str | None = None
    context: tuple[tuple[str, str], ...] = ()

    def matches(self, event: Occurred) -> bool:
        """Whether the event is such a one."""
        return all(_like(getattr(event, name), getattr(self, name)) for name in EVENT_FIELDS) and all(
            name in event.context and _like(_text(event.context[name]), pattern) for name, pattern in self.context
        )

    @property
    def text(self) -> str:
        """For people."""
        given = (f"{name}={getattr(self, name)}" for name in EVENT_FIELDS if getattr(self, name) is not None)
        return " ".join(["event", *given, *(f"context.{name}={pattern}" for name, pattern in self.context)])


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOf:
    """Each term was met, in any order; the newest meeting of each counts. Met by the stimulus that completes it.

    A `StatusIs` directly inside is a state, not a happening: it must hold at that moment, and is not remembered.
    """

    terms: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOf:
    """One of the terms is met."""

    terms: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """The terms are met one after the other; whatever comes in between does not matter.

    A term begins to look after the stimulus that met the term before it. A new first term may begin another attempt
    beside an unfinished one, so that 1 (too old), 1, 2 is met within its time; a meeting ends all attempts.
    """

    terms: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The term is met `n` times."""

    n: int
    term: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """The term is met by stimuli that are at most `ms` apart; what is older no longer counts in the term."""

    ms: int
    term: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """The term was not met for `ms`, since it last was or since the condition began to look: once per silence."""

    ms: int
    term: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A time is due: by `cron`, or at each whole multiple of `every_ms` since 1970 UTC; one of the two.

    `missed`: what to do with times more than `grace_ms` ago, when the scheduler was away: let them go (skip), meet once
    for all of them (latest), meet once for each (all).
    """

    cron: Cron | None = None
    every_ms: int | None = None
    missed: Missed = "latest"
    grace_ms: int = 60_000

    def after(self, time_ms: int) -> int:
        """The first due time later than `time_ms`.

        >>> Schedule(every_ms=10).after(20)
        30
        """
        if self.cron is not None:
            return self.cron.after(time_ms)
        assert self.every_ms is not None
        return (time_ms // self.every_ms + 1) * self.every_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkAt:
    """A stage's watermark reached `at_ms` (once), or a further whole multiple of `every_ms` plus `after_ms`.

    A watermark that jumps over several multiples is one meeting, and those before the first look are none: after
    something else in a sequence, the next one is meant.
    """

    stage: str
    at_ms: int | None = None
    every_ms: int | None = None
    after_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusIs:
    """A node came into one of these states. Directly inside `AllOf`: it is in one of them."""

    node: str
    states: tuple[str, ...]


Condition = EventIs | AllOf | AnyOf | Sequence | Count | Within | Absence | Schedule | WatermarkAt | StatusIs


def terms_of(condition: Condition) -> tuple[Condition, ...]:
    """The conditions directly inside."""
    if isinstance(condition, AllOf | AnyOf | Sequence):
        return condition.terms
    if isinstance(condition, Count | Within | Absence):
        return (condition.term,)
    return ()


def leaves(condition: Condition) -> tuple[Condition, ...]:
    """The conditions that look at stimuli themselves."""
    inner = terms_of(condition)
    return tuple(leaf for term in inner for leaf in leaves(term)) if inner else (condition,)


def is_pattern(text: str) -> bool:
    """Whether it is a pattern rather than plain text."""
    return any(mark in text for mark in "*?[")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


@lru_cache(maxsize=4_096)
def _like(text: str, pattern: str | None) -> bool:
    return pattern is None or (fnmatchcase(text, pattern) if is_pattern(pattern) else text == pattern)
