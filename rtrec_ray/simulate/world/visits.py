"""Who comes when, and what a visitor does beside being shown recommendations: planned ahead, by event time.

A plan does not depend on what is recommended, so the same one drives the simulation and live clients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from rtrec_ray.simulate.world.people import Indexes
from rtrec_ray.simulate.world.truth import Asked
from rtrec_ray.simulate.world.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One visit of a page. `user_id`, `page_id` as in the records; `intent`: the category the visitor came for.

    `views`: how many items the visitor looks at on the way; `searches`: whether he searches first; `finds`: whether he
    clicks an ad that nobody recommended.
    """

    user_id: int
    page_id: int
    intent: int
    ts_ms: int
    views: int
    searches: bool
    finds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """n page visits in the order of their time; all (n,). See Visit."""

    asked: Asked
    page_id: Indexes
    views: Indexes
    searches: npt.NDArray[np.bool_]
    finds: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.asked)

    def __iter__(self) -> Iterator[Visit]:
        """One by one."""
        asked = self.asked
        columns = (asked.user + 1, self.page_id, asked.intent, asked.ts_ms, self.views, self.searches, self.finds)
        for row in zip(*(column.tolist() for column in columns), strict=True):
            yield Visit(**dict(zip(_FIELDS, row, strict=True)))

    def between(self, from_ms: int, to_ms: int) -> Visits:
        """Those of [from_ms, to_ms)."""
        start, end = np.searchsorted(self.asked.ts_ms, [from_ms, to_ms])
        rows = slice(int(start), int(end))
        return Visits(
            asked=self.asked[rows],
            page_id=self.page_id[rows],
            views=self.views[rows],
            searches=self.searches[rows],
            finds=self.finds[rows],
        )


_FIELDS: Final = tuple(field.name for field in fields(Visit))


def plan_visits(
    world: World, random: np.random.Generator, *, from_ms: int, to_ms: int, per_s: float, users: Indexes | None = None
) -> Visits:
    """Visits in [from_ms, to_ms), `per_s` of them in a second of event time in the mean; `users`: who may come.

    Sessions begin at random (a Poisson process) and have a geometric number of pages; those that began before
    `from_ms` are in it with what is left of them.
    """
    rules = world.options.visits
    longest_ms = 40 * rules.pause_ms[1]
    begun_ms = from_ms - longest_ms
    sessions = random.poisson(per_s / rules.pages_per_session * (to_ms - begun_ms) / 1_000.0)
    start = random.uniform(begun_ms, to_ms, sessions)
    pages = np.minimum(random.geometric(1.0 / rules.pages_per_session, sessions), 40)
    session = np.repeat(np.arange(sessions), pages)
    pause = random.integers(*rules.pause_ms, len(session))
    ts_ms = (start[session] + _running_sum(pause, pages)).astype(np.int64)
    who = random.choice(np.arange(len(world.people)) if users is None else users, sessions)
    came_for = random.integers(1, world.options.categories + 1, sessions)
    order = np.argsort(ts_ms, kind="stable")
    order = order[(ts_ms[order] >= from_ms) & (ts_ms[order] < to_ms)]
    count, page = len(order), random.integers(0, len(world.options.pages), len(order))
    return Visits(
        asked=Asked(
            user=who[session][order],
            page=page,
            intent=came_for[session][order],
            ts_ms=ts_ms[order],
        ),
        page_id=np.array(world.options.pages)[page],
        views=random.integers(rules.views[0], rules.views[1] + 1, count),
        searches=random.random(count) < rules.search,
        finds=random.random(count) < rules.finds,
    )


def _running_sum(values: Indexes, groups: Indexes) -> Indexes:
    """The sum of the values before each within its group: groups (g,) sizes from 1 on, values (sum of sizes,).

    >>> _running_sum(np.array([5, 7, 1, 2]), np.array([3, 1])).tolist()
    [0, 5, 12, 0]
    """
    before, first = np.cumsum(values) - values, np.cumsum(groups) - groups
    within: Indexes = before - np.repeat(before[first], groups)
    return within
