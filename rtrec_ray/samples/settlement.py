"""What the stitcher and the store say to each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from rtrec_ray.samples.actions import ActionChanges
from rtrec_ray.samples.columns import (
    ACTION_SCHEMA,
    HELD_SCHEMA,
    IMPRESSION_SCHEMA,
    KEY_SCHEMA,
    KNOWN_SCHEMA,
    OUT_SCHEMA,
    OUTCOME_SCHEMA,
    REQUEST_SCHEMA,
    REVISION_SCHEMA,
    empty,
)

_NO_KEYS = partial(empty, KEY_SCHEMA)
_NO_ACTIONS = partial(empty, ACTION_SCHEMA)
_NO_OUTCOMES = partial(empty, OUTCOME_SCHEMA)
_NO_IMPRESSIONS = partial(empty, IMPRESSION_SCHEMA)


def _offsets() -> pl.Series:
    return pl.Series(dtype=pl.Int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a commit stands. `replay_from`: the oldest offset of an impression without an outcome, or the next to be
    read. `repeated_offsets`: of the impressions from there on, those that repeat an earlier one.
    """

    replay_from: int = 0
    repeated_offsets: pl.Series = field(default_factory=_offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What the store knows of a partition when an owner begins.

    `applied_to`: impressions at smaller offsets were taken before, and those of them at `settled_offsets` or
    `place.repeated_offsets` have an outcome. `held`: actions that wait; `has_spilled`: the store alone has more.
    """

    place: Place = field(default_factory=Place)
    applied_to: int = 0
    settled_offsets: pl.Series = field(default_factory=_offsets)
    held: pl.DataFrame = field(default_factory=partial(empty, HELD_SCHEMA))
    has_spilled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a commit must know of the store.

    `requests`: ids of requests to look up. `acted`: keys (n, KEY_SCHEMA) of actions without an open impression, whose
    newest revisions, stored actions and impressions not drawn are wanted. `missed`: ids of requests whose misses are
    wanted, with the actions on them. `due`: keys of which it matters what is held, where another partition
    may hold it or have taken back what this one holds. `drawn`: keys of which
    it matters whether they were not drawn before.
    """

    requests: pl.Series = field(default_factory=partial(pl.Series, dtype=pl.String))
    acted: pl.DataFrame = field(default_factory=_NO_KEYS)
    missed: pl.Series = field(default_factory=partial(pl.Series, dtype=pl.String))
    due: pl.DataFrame = field(default_factory=_NO_KEYS)
    drawn: pl.DataFrame = field(default_factory=_NO_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the store answered; what is not there is left out. `out`: impressions that were not drawn. `misses`, `out`:
    `source_offset` is null where it is one of another partition.
    """

    requests: pl.DataFrame = field(default_factory=partial(empty, KNOWN_SCHEMA))
    outcomes: pl.DataFrame = field(default_factory=_NO_OUTCOMES)
    misses: pl.DataFrame = field(default_factory=_NO_IMPRESSIONS)
    out: pl.DataFrame = field(default_factory=_NO_IMPRESSIONS)
    actions: pl.DataFrame = field(default_factory=_NO_ACTIONS)
    held: pl.DataFrame = field(default_factory=_NO_ACTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """What a commit did not write, for it was there: newest revisions of samples, keys of impressions not drawn."""

    samples: pl.DataFrame = field(default_factory=_NO_OUTCOMES)
    out: pl.DataFrame = field(default_factory=_NO_KEYS)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return not (self.samples.is_empty() and self.out.is_empty())


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a commit writes.

    `samples`: first revisions. `out`: impressions that were not drawn; `revived`: keys of such that became samples.
    `corrections`: newest revisions (OUTCOME_SCHEMA) with the label and the labels that the next one is to have.
    `misses`: new ones. `completed`: misses that became something else.
    """

    requests: pl.DataFrame = field(default_factory=partial(empty, REQUEST_SCHEMA))
    samples: pl.DataFrame = field(default_factory=partial(empty, REVISION_SCHEMA))
    out: pl.DataFrame = field(default_factory=partial(empty, OUT_SCHEMA))
    revived: pl.DataFrame = field(default_factory=_NO_KEYS)
    corrections: pl.DataFrame = field(default_factory=_NO_OUTCOMES)
    misses: pl.DataFrame = field(default_factory=_NO_IMPRESSIONS)
    completed: pl.DataFrame = field(default_factory=_NO_KEYS)
    actions: ActionChanges = field(default_factory=ActionChanges)
    counts: Counter[str] = field(default_factory=Counter)
