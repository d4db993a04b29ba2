"""What the stitcher and the store say to each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from rtrec_ray.samples.columns import (
    CLICK_SCHEMA,
    HELD_SCHEMA,
    KNOWN_SCHEMA,
    MISS_SCHEMA,
    OUTCOME_SCHEMA,
    REQUEST_SCHEMA,
    REVISION_SCHEMA,
    empty,
)


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
    `place.repeated_offsets` have an outcome. `has_misses`: whether some impression still lacks its record.
    """

    place: Place = field(default_factory=Place)
    applied_to: int = 0
    settled_offsets: pl.Series = field(default_factory=_offsets)
    held: pl.DataFrame = field(default_factory=partial(empty, HELD_SCHEMA))
    has_misses: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a commit must know of the store. `requests`: ids of requests to look up; `clicks` (n, CLICK_SCHEMA): whose
    newest revisions to look up; `missed`: ids of requests whose misses to look up.
    """

    requests: pl.Series
    clicks: pl.DataFrame
    missed: pl.Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the store answered; what is not there is left out."""

    requests: pl.DataFrame = field(default_factory=partial(empty, KNOWN_SCHEMA))
    outcomes: pl.DataFrame = field(default_factory=partial(empty, OUTCOME_SCHEMA))
    misses: pl.DataFrame = field(default_factory=partial(empty, MISS_SCHEMA))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a commit writes.

    `samples`: first revisions. `corrections`: samples (as they are) that get a revision with label 1. `misses`: new
    ones, and known ones with an earlier click. `completed`: misses that became samples.
    """

    requests: pl.DataFrame = field(default_factory=partial(empty, REQUEST_SCHEMA))
    samples: pl.DataFrame = field(default_factory=partial(empty, REVISION_SCHEMA))
    corrections: pl.DataFrame = field(default_factory=partial(empty, OUTCOME_SCHEMA))
    misses: pl.DataFrame = field(default_factory=partial(empty, MISS_SCHEMA))
    completed: pl.DataFrame = field(default_factory=partial(empty, CLICK_SCHEMA))
    held_put: pl.DataFrame = field(default_factory=partial(empty, HELD_SCHEMA))
    held_drop: pl.DataFrame = field(default_factory=partial(empty, CLICK_SCHEMA))
    counts: Counter[str] = field(default_factory=Counter)
