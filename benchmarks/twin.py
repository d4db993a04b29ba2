"""The off-line twin of the live demonstration: the same world, operators, models and arms, without servers and time.

Event time passes in steps; features take effect at the end of a step, samples when the stitcher settles them, models
some time after they were made, as measured live.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA, INFERENCE_SCHEMA
from rtrec_ray.features.definition import Definitions
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.keys import actions_of, impressions_of, keyed, requests_of
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.simulate.world.engine import FeatureEngine
from rtrec_ray.simulate.world.experiment import MODEL_OF
from rtrec_ray.simulate.world.play import PLACES, Play, Request, Slate, Step
from rtrec_ray.simulate.world.visits import plan_visits
from rtrec_ray.simulate.world.world import World
from rtrec_ray.simulate.world.yesterday import DayOptions, inference_row, new_items, play_day
from rtrec_ray.stores.samples.ledger import MemorySampleLedger, MemorySamples, settle
from rtrec_ray.stores.samples.store import MemorySampleStore
from serving.explore import arrange
from serving.rank import best_first, columns_of
from training.dataset import SampleBatch, encode
from training.definition import ModelDefinition
from training.loop import Learner

HELD_OUT_PERCENT: Final = 10
State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinOptions:
    """Times in event ms. `publish_ms`: between two increments; `online_ms`: from an increment's last sample to its
    first answer; `exploration`: share of random slates.
    """

    day: DayOptions
    live_to_ms: int
    publish_ms: int
    online_ms: int
    exploration: float


class Samples:
    """The sample stage of one partition in memory; what it wrote is read from `store`."""

    def __init__(self, definition: SampleDefinition, *, disorder_ms: int) -> None:
        kept = MemorySamples()
        self.store: MemorySampleStore = kept.store
        self._ledger = MemorySampleLedger(kept, partition=0)
        self._stitcher = Stitcher(definition)
        self._disorder_ms = disorder_ms
        self._offset = 0
        self._mark_ms = -(1 << 62)

    def take(self, step: Step) -> None:
        """Take what one step reported, and commit."""
        events = pl.DataFrame(step.events, schema=BEHAVIOR_SCHEMA).with_row_index("offset", offset=self._offset)
        events = events.with_columns(pl.col("offset").cast(pl.Int64)).filter(keyed())
        self._offset += len(step.events)
        answers = pl.DataFrame([inference_row(record) for record in step.records], schema=INFERENCE_SCHEMA)
        self._stitcher.on_requests(requests_of(answers))
        self._stitcher.on_impressions(impressions_of(events.filter(pl.col("event_type") == "impression")))
        self._stitcher.on_actions(actions_of(events))
        self._stitcher.read_to(self._offset)
        if events.height:
            self._mark_ms = max(self._mark_ms, int(events["ts"].max()) - self._disorder_ms)  # type: ignore[arg-type]
        self._stitcher.advance(watermark_ms=self._mark_ms)
        settle(self._ledger, None, self._stitcher, read_to=self._offset)


class Models:
    """Learners by role, made once and given other weights for each run: tracing them takes longer than a run."""

    def __init__(self, definition: ModelDefinition) -> None:
        self.definition = definition
        self.base = Learner(definition, base_rate=0.1)
        self.increments = Learner(definition.for_increments(), base_rate=0.1)
        self.serving = Learner(definition, base_rate=0.1)
        self._initial = self.base.state()

    def train_base(self, store: MemorySampleStore) -> State:
        """Train on everything in the store, some times over, as the base job does."""
        self.base.restore(self._initial)
        batch = _encoded(store, self.definition, after=0, upto=store.high_water())
        kept = batch[~batch.held_out]
        for number in range(self.definition.epochs):
            order = np.random.default_rng(self.definition.seed + number).permutation(len(kept))
            shuffled = kept[order]
            for start in range(0, len(kept), self.base.share):
                part = shuffled[start : start + self.base.share]
                self.base.train(part.columns, part.label, np.ones(len(part)))
        return self.base.state()


@dataclass(slots=True, kw_only=True)
class Arms:
    """The recommender: each arm's requests scored by its own model, and some of them explored."""

    scorers: dict[str, Learner]
    versions: dict[str, str]
    exploration: float
    rng: random.Random

    def __call__(self, requests: list[Request]) -> list[Slate]:
        """Slates in the order of the requests."""
        found: dict[int, Slate] = {}
        for learner in {id(learner): learner for learner in self.scorers.values()}.values():
            rows = [index for index, request in enumerate(requests) if self.scorers[request.arm] is learner]
            if rows:
                found |= zip(rows, self._scored(learner, [requests[index] for index in rows]), strict=True)
        return [found[index] for index in range(len(requests))]

    def _scored(self, learner: Learner, requests: list[Request]) -> Iterator[Slate]:
        parts = [_columns(learner.definition, request) for request in requests]
        scores = learner.score({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        ends = np.cumsum([len(request.items) for request in requests])
        for request, own in zip(requests, np.split(scores, ends[:-1]), strict=True):
            shown = arrange(best_first(own), count=PLACES, share=self.exploration, rng=self.rng)
            yield Slate(
                shown=[each.index for each in shown],
                scores=[float(own[each.index]) for each in shown],
                propensities=[each.propensity for each in shown],
                model_version=self.versions[request.arm],
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The live part of a run: its steps in order, and how many increments went online."""

    steps: list[Step]
    increments: int


def run(
    world: World, models: Models, options: TwinOptions, definitions: tuple[Definitions, SampleDefinition]
) -> Outcome:
    """Play the day before, train the base on it, then play the live part with increments."""
    rng = np.random.default_rng([world.options.seed, 3])
    engine, steps = play_day(world, definitions[0], options.day, rng)
    samples = Samples(definitions[1], disorder_ms=options.day.step_ms)
    for step in steps:
        samples.take(step)
    base = models.train_base(samples.store)
    for learner in (models.serving, models.increments):
        learner.restore(base)
    return _live(world, models, options, engine, samples)


def _live(world: World, models: Models, options: TwinOptions, engine: FeatureEngine, samples: Samples) -> Outcome:
    day, rng = options.day, np.random.default_rng([world.options.seed, 4])
    arms = Arms(
        scorers={arm: models.serving if MODEL_OF[arm] == "champion" else models.base for arm in day.arms},
        versions=dict.fromkeys(day.arms, "base"),
        exploration=options.exploration,
        rng=random.Random(world.options.seed),
    )
    play = Play(
        world=world,
        engine=engine,
        recommend=arms,
        arm_of=day.arm_of,
        realtime=day.arms.__getitem__,
        random=rng,
        name=f"live-{world.options.seed}",
    )
    visits = plan_visits(world, rng, from_ms=day.to_ms, to_ms=options.live_to_ms, per_s=day.per_s)
    increments = Increments(models, samples, options, position=samples.store.high_water())
    appears = [drift.at_ms for drift in world.options.drifts if drift.kind == "new_items"]
    steps = []
    for end in range(day.to_ms + day.step_ms, options.live_to_ms + day.step_ms, day.step_ms):
        if appears and end > appears[0]:
            engine.add_items(new_items(world, ts_ms=appears.pop(0)))
        steps.append(play.step(visits.between(end - day.step_ms, end), to_ms=end))
        samples.take(steps[-1])
        increments.turn(end)
    return Outcome(steps=steps, increments=increments.online)


class Increments:
    """The incremental run: learns what is new in the ledger, publishes now and then, goes online a while later."""

    def __init__(self, models: Models, samples: Samples, options: TwinOptions, *, position: int) -> None:
        self._models, self._samples, self._options = models, samples, options
        self._position = position
        self._due_ms: int | None = None
        self._waiting: list[tuple[int, State]] = []
        self.online = 0

    def turn(self, now_ms: int) -> None:
        """Learn, publish and deploy what is due at `now_ms`."""
        self._learn()
        if self._due_ms is None:
            self._due_ms = now_ms + self._options.publish_ms
        if now_ms >= self._due_ms:
            self._waiting.append((now_ms + self._options.online_ms, self._models.increments.state()))
            self._due_ms = now_ms + self._options.publish_ms
        while self._waiting and self._waiting[0][0] <= now_ms:
            self._models.serving.restore(self._waiting.pop(0)[1])
            self.online += 1

    def _learn(self) -> None:
        store, learner = self._samples.store, self._models.increments
        batch = _encoded(store, self._models.definition, after=self._position, upto=store.high_water())
        self._position = store.high_water()
        for start in range(0, len(batch), learner.share):
            part = batch[start : start + learner.share]
            learner.train(part.columns, part.label, (~part.held_out).astype(np.float32))


def _encoded(store: MemorySampleStore, definition: ModelDefinition, *, after: int, upto: int) -> SampleBatch:
    frames = list(store.scan(from_seq_exclusive=after, to_seq=upto))
    frame = pl.concat(frames) if frames else next(iter(store.scan(from_seq_exclusive=0, to_seq=1))).clear()
    return encode(frame, definition.model_inputs, held_out_percent=HELD_OUT_PERCENT)


def _columns(definition: ModelDefinition, request: Request) -> dict[str, Any]:
    shared = {**request.shared, "user_id": request.user_id, "page_id": request.page_id}
    rows = [{**row, "item_id": item} for item, row in zip(request.items, request.rows, strict=True)]
    return columns_of(definition.model_inputs, shared=shared, rows=rows)
