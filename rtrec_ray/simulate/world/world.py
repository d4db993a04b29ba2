"""The world as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtrec_ray.simulate.world.goods import Goods, make_goods
from rtrec_ray.simulate.world.options import WorldOptions
from rtrec_ray.simulate.world.people import People, draw_people
from rtrec_ray.simulate.world.truth import Truth


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Who there is, what there is, and what is true."""

    options: WorldOptions
    people: People
    goods: Goods
    truth: Truth


def make_world(options: WorldOptions) -> World:
    """The world of a seed: the same options make the same world.

    >>> world = make_world(WorldOptions(users=10))
    >>> len(world.people), len(world.goods), world.goods.item_id[:2].tolist()
    (10, 52, [2001, 2002])
    """
    people = draw_people(options, np.random.default_rng([options.seed, 0]))
    goods = make_goods(options)
    return World(options=options, people=people, goods=goods, truth=Truth(options, people, goods))
