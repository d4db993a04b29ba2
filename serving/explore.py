"""Exploration: a logged share of answers in random order, so that what a model never shows can still be learnt.

With probability `share` the whole slate is a uniform draw without replacement from the candidates; else it is the
model's order. The chance that candidate i stands at position p is then exactly

    propensity(i, p) = (1 - share) · [order[p] = i] + share / candidates

which sums to 1 over the candidates at every position (the item-position weights of Li et al., "Offline Evaluation of
Ranking Policies with Click Models", KDD 2018, section 4). It is conditional on the candidates that recall has found.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A candidate on its place: `index` into the candidates, `propensity` in (0, 1] of standing there."""

    index: int
    propensity: float


def propensity(index: int, position: int, *, order: Sequence[int], share: float) -> float:
    """The chance that candidate `index` is shown at `position` (from 0), given the model's `order` of all candidates.

    >>> [propensity(i, 0, order=[1, 0], share=0.5) for i in (0, 1)]
    [0.25, 0.75]
    """
    return (1.0 - share) * (order[position] == index) + share / len(order)


def arrange(order: Sequence[int], *, count: int, share: float, rng: random.Random) -> list[Shown]:
    """The first `count` places of a slate. `order`: a permutation of the candidates' indexes, best first.

    >>> arrange([2, 0, 1], count=2, share=0.0, rng=random.Random(1))
    [Shown(index=2, propensity=1.0), Shown(index=0, propensity=1.0)]
    """
    shown = min(count, len(order))
    drawn = rng.sample(order, shown) if share > 0.0 and rng.random() < share else order[:shown]
    return [
        Shown(index=index, propensity=propensity(index, position, order=order, share=share))
        for position, index in enumerate(drawn)
    ]
