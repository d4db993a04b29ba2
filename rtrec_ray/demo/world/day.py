"""Yesterday, played in a process of its own while the servers start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from rtrec_ray.features.file import load_definitions
from rtrec_ray.kafka.base import Producer
from rtrec_ray.simulate.recording import Recording, arrange
from rtrec_ray.simulate.replay import Plan, Progress, ReplaySummary, write
from rtrec_ray.simulate.source import of_frames
from rtrec_ray.simulate.world.experiment import ARMS, MIDNIGHT_MS, Schedule, world_options, yesterday
from rtrec_ray.simulate.world.world import make_world
from rtrec_ray.simulate.world.yesterday import play_day, records
from serving.retrieve import arm_of


@contextmanager
def played_elsewhere(schedule: Schedule, *, seed: int, features: Path) -> Iterator[Future[Recording]]:
    """Yesterday's log, as it will be."""
    # Spawned: a fork would take along the threads of whatever this process has begun.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=_alone) as pool:
        yield pool.submit(play, schedule, seed=seed, features=features)


def play(schedule: Schedule, *, seed: int, features: Path) -> Recording:
    """Yesterday of this seed as records in the order of their time."""
    world = make_world(world_options(schedule, seed=seed))
    options = yesterday(schedule, arm_of=arm_name)
    _, steps = play_day(world, load_definitions(features), options, np.random.default_rng([seed, 3]))
    by_topic = records(world, steps, known_ms=options.from_ms)
    return arrange(list(of_frames(by_topic)), latest_ms=MIDNIGHT_MS)


def arm_name(user_id: int) -> str:
    """The arm of a user, as serving spreads them."""
    return str(arm_of(user_id, ARMS))


def send(recording: Recording, producer: Producer, *, progress: Progress) -> ReplaySummary:
    """Write the log; returns when Kafka has acknowledged all of it. Raises KafkaUnavailable."""
    return write(Plan(recording=recording), producer, progress=progress)


def _alone() -> None:
    os.environ["POLARS_MAX_THREADS"] = "1"  # the servers start on the other cores meanwhile
