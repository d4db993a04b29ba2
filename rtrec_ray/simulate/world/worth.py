"""What answers were worth by the true probabilities, in one pass over all of them when they are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtrec_ray.simulate.world.truth import Asked, regret
from rtrec_ray.simulate.world.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Slate:
    """What one visitor was shown: the visitor and the page, what was wanted, and item ids in their order."""

    user_id: int
    page_id: int
    intent: int
    ts_ms: int
    items: tuple[int, ...]


class Worth(NamedTuple):
    """Means per impression: the true P(click), what the best slate has more, and what a random order has."""

    probability: float
    regret: float
    random: float


def worth(world: World, slates: Sequence[Slate | None]) -> list[Worth | None]:
    """One for each slate, in their order; None for who was shown nothing."""
    found: list[Worth | None] = [None] * len(slates)
    by_length: dict[int, list[tuple[int, Slate]]] = defaultdict(list)
    for row, slate in enumerate(slates):
        if slate is not None and slate.items:
            by_length[len(slate.items)].append((row, slate))
    for places, numbered in by_length.items():
        rows, alike = zip(*numbered, strict=True)
        for row, each in zip(rows, _of_length(world, alike, places), strict=True):
            found[row] = each
    return found


def asked_by(world: World, slates: Iterable[Slate]) -> Asked:
    """The requests behind slates, (n,)."""
    columns = [(s.user_id - 1, world.options.pages.index(s.page_id), s.intent, s.ts_ms) for s in slates]
    user, page, intent, ts_ms = np.array(columns, dtype=np.int64).T
    return Asked(user=user, page=page, intent=intent, ts_ms=ts_ms)


def _of_length(world: World, slates: Sequence[Slate], places: int) -> Iterable[Worth]:
    asked, shown = asked_by(world, slates), world.goods.index_of([slate.items for slate in slates])
    truth = world.truth
    probability = truth.probability(asked, shown).mean(axis=1)
    columns = (probability, regret(truth, asked, shown), truth.random(asked, places=places))
    return map(Worth._make, zip(*(column.tolist() for column in columns), strict=True))
