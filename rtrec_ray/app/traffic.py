"""Simulated shoppers for a system that runs, as an actor: clients like any other, through HTTP and Kafka."""

from __future__ import annotations

from functools import partial
from typing import Any

from actors.stage import Work
from rtrec_ray.app.cluster import start_actor
from rtrec_ray.app.system import System
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.simulate.world.live import ShopperOptions, Shoppers, open_shop
from rtrec_ray.simulate.world.options import WorldOptions
from rtrec_ray.simulate.world.world import make_world

TRAFFIC = "shoppers"


def start_traffic(system: System, *, per_s: float) -> Any:
    """Start the actor; `per_s`: requests per second of wall time, in the mean. Raises NotRunning."""
    return start_actor(TRAFFIC, partial(_shoppers, system, per_s), cpus=0.5)


def _shoppers(system: System, per_s: float) -> list[Work]:
    world = make_world(WorldOptions())
    producer = connect_producer(system.kafka)
    open_shop(world, producer, ts_ms=system.clock.now_ms())
    producer.close()
    shoppers = Shoppers(
        world,
        ShopperOptions(per_wall_s=per_s),
        url=system.http_url,
        connect=partial(connect_producer, system.kafka),
        clock=system.clock,
    )
    return [shoppers]
