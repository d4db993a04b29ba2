"""The off-line twin: who is answered by which model, what the learner sees and when what it learnt goes online."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import twin
from benchmarks.effect import observed
from benchmarks.twin import Models, TwinOptions, run
from rtrec_ray.features.file import load_definitions
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.simulate.world.experiment import ARMS, EXPLORATION, Schedule, unskewed, world_options, yesterday
from rtrec_ray.simulate.world.options import HOUR_MS
from rtrec_ray.simulate.world.world import make_world
from serving.retrieve import arm_of
from training.definition import load_definition

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "rtrec_ray" / "simulate" / "world" / "model.yaml"
SCHEDULE = Schedule(minutes=0.5, yesterday_ms=HOUR_MS // 2, per_wall_s=15.0)
STEP_MS, PUBLISH_MS, ONLINE_MS = 60_000, 5 * 60_000, 3 * 60_000


@pytest.fixture(scope="module")
def models():
    return Models(load_definition(MODEL))


def options(**other):
    day = yesterday(SCHEDULE, arm_of=lambda user_id: str(arm_of(user_id, ARMS)))
    given = {"publish_ms": PUBLISH_MS, "online_ms": ONLINE_MS, **other}
    return TwinOptions(day=day, live_to_ms=SCHEDULE.to_ms, exploration=EXPLORATION, **given)


def play(models, **other):
    world = make_world(world_options(SCHEDULE, seed=1))
    definitions = load_definitions(ROOT / "configs" / "features.yaml"), unskewed(SampleDefinition())
    return world, run(world, models, options(**other), definitions)


@pytest.fixture(scope="module")
def played(models):
    return play(models)


def test_a_run_of_the_same_seed_is_the_same(models, played):
    world, outcome = played
    assert observed(*play(models)).equals(observed(world, outcome))


def test_every_arm_is_asked_and_what_it_lost_is_measured(played):
    world, outcome = played
    seen = observed(world, outcome)
    assert set(seen["arm"]) == set(ARMS)
    assert len(seen) == sum(len(step.records) for step in outcome.steps)
    assert seen["regret"].min() >= -1e-12
    assert (seen["probability"] > 0.0).all()
    clicked = Counter(
        event["request_id"] for step in outcome.steps for event in step.events
        if event["event_type"] == "click" and "request_id" in event
    )  # fmt: skip
    assert seen["clicks"].sum() <= clicked.total()


def test_increments_go_online_as_often_and_as_late_as_it_is_told(models, played):
    _, outcome = played
    live_ms = SCHEDULE.to_ms - SCHEDULE.from_ms
    made = [at for at in range(STEP_MS + PUBLISH_MS, live_ms + STEP_MS, PUBLISH_MS) if at + ONLINE_MS <= live_ms]
    assert outcome.increments == len(made) > 2
    never = play(models, online_ms=live_ms + 1)[1]
    assert never.increments == 0


def test_what_goes_online_is_what_the_learner_knew_when_it_published(models, monkeypatch):
    """And from the base on: `static` and `features` are answered by weights that never move."""
    published, online = [], []
    state, restore = models.increments.state, models.serving.restore

    def note(weights):
        online.append(weights)
        restore(weights)

    monkeypatch.setattr(models.increments, "state", lambda: published.append(state()) or published[-1])
    monkeypatch.setattr(models.serving, "restore", note)
    base = models.base.state()
    play(models)
    first, *later = online
    assert all(before is after for before, after in zip(published, later, strict=False))
    assert any(not np.array_equal(first[name], later[-1][name]) for name in first if name.startswith("model/"))
    for name, value in models.base.state().items():
        np.testing.assert_array_equal(value, base[name])


def test_the_learner_takes_what_came_after_the_base_once_and_learns_nothing_that_is_held_out(models, monkeypatch):
    begun, taken, weights = [], [], []
    make, train = twin.Increments.__init__, models.increments.train

    def begin(self, *given, position):
        make(self, *given, position=position)
        begun.append((given[1].store, position))

    def note(columns, label, weight):
        taken.append(len(label))
        weights.extend(weight.tolist())
        return train(columns, label, weight)

    monkeypatch.setattr(twin.Increments, "__init__", begin)
    monkeypatch.setattr(models.increments, "train", note)
    play(models)
    ((store, position),) = begun
    after = [frame.height for frame in store.scan(from_seq_exclusive=position, to_seq=store.high_water())]
    assert sum(taken) == sum(after) > 1_000
    assert 0.85 < np.mean(weights) < 0.95
