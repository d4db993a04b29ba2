"""The day before: the log that base models are trained on, made by a simple recommender in the same world.

Yesterday's system showed what was clicked most of late in the visitor's segment on the page, with some chance in it so
that everything was shown now and then. Its arms were those of today: the users of the arm without real-time features
have none in their log, so a base model has learnt to do without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl

from rtrec_ray.events import BEHAVIOR, BEHAVIOR_SCHEMA, INFERENCE, INFERENCE_SCHEMA, ITEM, PROFILE, InferenceRecord
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.keys import SEGMENT_PAGE_TOP_ADS
from rtrec_ray.simulate.world.engine import FeatureEngine
from rtrec_ray.simulate.world.play import PLACES, Play, Request, Slate, Step
from rtrec_ray.simulate.world.visits import plan_visits
from rtrec_ray.simulate.world.world import World

VERSION: Final = "yesterday"
_DRAIN_MS: Final = 300_000  # visits end so long before the day does, so that the last clicks are in it


@dataclass(frozen=True, slots=True, kw_only=True)
class DayOptions:
    """[from_ms, to_ms) of event time, `per_s` visits in a second of it, played in steps of `step_ms`.

    `arms`: name → whether its requests are given real-time features; `arm_of`: user id → name. `chance`: of the
    recommender, as the temperature of a softmax over the logarithm of clicks; at 0.6 the most clicked ad of a segment
    is on the page most of the time and every ad some of the time.
    """

    from_ms: int
    to_ms: int
    per_s: float
    step_ms: int
    arms: Mapping[str, bool]
    arm_of: Callable[[int], str]
    chance: float = 0.6


class Popular:
    """Shows what was clicked most of late in the visitor's segment on the page, softened by chance."""

    def __init__(self, engine: FeatureEngine, random: np.random.Generator, *, chance: float) -> None:
        self._engine = engine
        self._random = random
        self._chance = chance

    def __call__(self, requests: list[Request]) -> list[Slate]:
        """Slates of PLACES items each."""
        return [self._slate(request) for request in requests]

    def _slate(self, request: Request) -> Slate:
        counts = self._clicked(request)
        scores = np.array([math.log1p(counts.get(item, 0)) for item in request.items])
        # The largest of scores with Gumbel noise are a draw without replacement by softmax (Vieira, 2014).
        noisy = scores + self._chance * self._random.gumbel(size=len(scores))
        shown = np.argsort(-noisy)[:PLACES].tolist()
        return Slate(shown=shown, scores=scores[shown].tolist(), propensities=None, model_version=VERSION)

    def _clicked(self, request: Request) -> Mapping[int, int]:
        values = self._engine.read(request.user_id, page_id=request.page_id, now_ms=request.ts_ms)
        wide = next((ask for ask in values if ask.view == SEGMENT_PAGE_TOP_ADS and ask.key.count("|") == 2), None)
        return {} if wide is None else dict((values[wide] or {}).get("top", ()))


def play_day(
    world: World, definitions: Definitions, options: DayOptions, random: np.random.Generator
) -> tuple[FeatureEngine, Iterator[Step]]:
    """The engine of the day's features, and the day's steps, played as they are taken."""
    engine = FeatureEngine(
        definitions, disorder_ms=options.step_ms, profiles=world.people.records(ts_ms=options.from_ms)
    )
    engine.add_items(first_items(world, ts_ms=options.from_ms))
    play = Play(
        world=world,
        engine=engine,
        recommend=Popular(engine, random, chance=options.chance),
        arm_of=options.arm_of,
        realtime=options.arms.__getitem__,
        random=random,
        name=f"{VERSION}-{world.options.seed}",
    )
    visits = plan_visits(world, random, from_ms=options.from_ms, to_ms=options.to_ms - _DRAIN_MS, per_s=options.per_s)
    ends = range(options.from_ms + options.step_ms, options.to_ms + options.step_ms, options.step_ms)
    return engine, (play.step(visits.between(end - options.step_ms, end), to_ms=end) for end in ends)


def first_items(world: World, *, ts_ms: int) -> pl.DataFrame:
    """The catalogue before anything new appears, as records of the topic."""
    return world.goods.records(np.flatnonzero(~world.goods.is_new()), ts_ms=ts_ms)


def new_items(world: World, *, ts_ms: int) -> pl.DataFrame:
    """What the drift `new_items` adds to the catalogue."""
    return world.goods.records(np.flatnonzero(world.goods.is_new()), ts_ms=ts_ms)


def records(world: World, steps: Iterator[Step], *, known_ms: int) -> dict[str, pl.DataFrame]:
    """A day as records by topic, profiles and catalogue included, known from `known_ms` on."""
    played = list(steps)
    events = [event for step in played for event in step.events]
    answers = [inference_row(record) for step in played for record in step.records]
    return {
        PROFILE: world.people.records(ts_ms=known_ms),
        ITEM: first_items(world, ts_ms=known_ms),
        BEHAVIOR: pl.DataFrame(events, schema=BEHAVIOR_SCHEMA),
        INFERENCE: pl.DataFrame(answers, schema=INFERENCE_SCHEMA),
    }


def inference_row(record: InferenceRecord) -> dict[str, Any]:
    """A record of the inference log as a row of INFERENCE_SCHEMA."""
    return {
        "request_id": record.request_id,
        "user_id": record.user_id,
        "ts": record.ts,
        "page_id": record.page_id,
        "model_version": record.model_version,
        "arm": record.arm,
        "features": msgspec.json.encode(record.features).decode(),
        "items": msgspec.json.encode(record.items).decode(),
    }
