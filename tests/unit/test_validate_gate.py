"""The gate at work, on servers in memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from rtrec_ray.errors import RegistryUnavailable
from rtrec_ray.notification.base import MODEL, MODEL_REJECTED, MODEL_VALIDATED, EventFilter
from rtrec_ray.registry.base import Draft, rollback
from tests.sample_rows import START_MS, sample_rows
from tests.training_desk import MemoryConnections, put_base, small_definition
from training.dataset import encode
from training.gate import ValidationGate
from training.heldout import HeldOutRows
from training.loop import Learner
from training.options import GateOptions
from training.publish import Exporter, announce, publish

pytestmark = pytest.mark.slow  # importing TensorFlow takes about 8 s

RULES = GateOptions(resamples=200)
ROWS = 6_000


@pytest.fixture
def connections(tmp_path) -> MemoryConnections:
    made = MemoryConnections(tmp_path)
    made.samples().append(sample_rows(ROWS))
    return made


def learnt(*, flipped: bool = False) -> Learner:
    """A model that has learnt the world, or its reverse."""
    definition = small_definition()
    learner = Learner(definition, base_rate=0.15)
    batch = encode(sample_rows(ROWS, seed=1, flipped=flipped), definition.model_inputs, held_out_percent=0)
    for start in [*range(0, ROWS, 64)] * 2:
        part = batch[start : start + 64]
        learner.train(part.columns, part.label, np.ones(len(part)))
    return learner


def put_increment(connections: MemoryConnections, learner: Learner, *, base: str, parent: str | None = None):
    draft = Draft(
        kind="increment",
        model="dcn",
        from_seq=1,
        to_seq=ROWS,
        trained_to_ms=START_MS,
        created_ms=START_MS,
        parent=parent or base,
        base=base,
    )
    exporter = Exporter(learner.definition, base_rate=learner.base_rate)
    version = publish(connections.center(), exporter, learner.state(), draft)
    announce(connections, version)
    return version


def outcomes(connections: MemoryConnections) -> list[tuple[str, str]]:
    told = connections.events().list(EventFilter(key=MODEL))
    return [(event.type, event.value) for event in told if event.type in (MODEL_VALIDATED, MODEL_REJECTED)]


def run_until(gate: ValidationGate, done, eventually) -> None:
    thread = threading.Thread(target=gate.run, daemon=True)
    thread.start()
    try:
        eventually(done, what="the gate judged")
    finally:
        gate.stop()
        thread.join(20.0)
    assert not thread.is_alive()


def test_a_first_version_that_says_the_constant_rate_may_serve(connections, eventually):
    version = put_base(connections, small_definition(), champion=False)
    run_until(ValidationGate(RULES, connections), lambda: outcomes(connections), eventually)
    assert outcomes(connections) == [(MODEL_VALIDATED, version.version)]
    champion = connections.center().champion()
    assert champion is not None
    assert champion.version == version.version
    told = connections.events().list(EventFilter(type=MODEL_VALIDATED))[0]
    assert told.context["metrics"]["held_out_requests"] > 200


def test_a_version_that_learnt_the_reverse_is_rejected_and_the_champion_stays(connections):
    put_base(connections, small_definition())
    gate = ValidationGate(RULES, connections)
    better = put_increment(connections, learnt(), base="1")
    worse = put_increment(connections, learnt(flipped=True), base="1")
    accepted, rejected = (gate.judge(version.version) for version in (better, worse))
    assert accepted is not None
    assert rejected is not None
    assert (accepted.status, rejected.status) == ("validated", "rejected")
    assert "above that of the champion" in rejected.reason
    champion = connections.center().champion()
    assert champion is not None
    assert champion.version == better.version
    assert outcomes(connections) == [(MODEL_VALIDATED, "1"), (MODEL_VALIDATED, "2"), (MODEL_REJECTED, "3")]


def test_an_increment_on_a_base_that_no_longer_serves_is_rejected(connections):
    put_base(connections, small_definition())
    fresh = put_base(connections, small_definition(seed=5))
    late = put_increment(connections, learnt(), base="1")
    judged = ValidationGate(RULES, connections).judge(late.version)
    assert judged is not None
    assert judged.reason == f"its base 1 is no longer the champion's, {fresh.version}"


def test_an_increment_that_stands_on_a_rolled_back_version_is_rejected(connections):
    base, center = put_base(connections, small_definition()).version, connections.center()
    fallen = put_increment(connections, learnt(), base=base).version
    between = put_increment(connections, learnt(), base=base, parent=fallen).version
    last = put_increment(connections, learnt(), base=base, parent=between).version
    center.set_champion(fallen)
    rollback(center, reason="clicks fell")
    gate = ValidationGate(RULES, connections)
    reasons = [judged.reason for judged in map(gate.judge, (between, last)) if judged is not None]
    assert reasons == [f"it stands on {fallen}, which was rolled back"] * 2


def test_a_version_without_a_readable_artifact_is_rejected_not_fatal(connections, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    draft = Draft(kind="base", model="dcn", from_seq=1, to_seq=1, trained_to_ms=1, created_ms=1)
    version = connections.center().log_version(empty, draft)
    judged = ValidationGate(RULES, connections).judge(version.version)
    assert judged is not None
    assert (judged.status, "model.json" in judged.reason) == ("rejected", True)


def test_an_event_that_comes_twice_has_one_outcome(connections):
    version = put_base(connections, small_definition(), champion=False)
    gate = ValidationGate(RULES, connections)
    for _ in range(2):
        gate.judge(version.version)
    assert outcomes(connections) == [(MODEL_VALIDATED, version.version)]


def test_an_outcome_that_a_crash_kept_back_is_told_after_it(connections):
    version = put_base(connections, small_definition(), champion=False)
    connections.center().set_champion(version.version)  # and then the gate died, before it could say so
    ValidationGate(RULES, connections).judge(version.version)
    assert outcomes(connections) == [(MODEL_VALIDATED, version.version)]


def test_a_version_that_nobody_announced_is_found_at_the_start(connections, eventually):
    learner = Learner(small_definition(), base_rate=0.15)
    draft = Draft(kind="base", model="dcn", from_seq=1, to_seq=1, trained_to_ms=1, created_ms=1)
    version = publish(connections.center(), Exporter(learner.definition, base_rate=0.15), learner.state(), draft)
    run_until(ValidationGate(RULES, connections), lambda: outcomes(connections), eventually)
    assert outcomes(connections) == [(MODEL_VALIDATED, version.version)]


def test_the_gate_waits_for_a_registry_that_is_away(connections, eventually):
    version = put_base(connections, small_definition(), champion=False)
    center, left = connections.center(), [2]

    def reach():
        if left[0] > 0:
            left[0] -= 1
            raise RegistryUnavailable("away")
        return center

    connections.center = reach
    run_until(ValidationGate(RULES, connections), lambda: outcomes(connections), eventually)
    assert outcomes(connections) == [(MODEL_VALIDATED, version.version)]


def test_an_unknown_version_is_passed_over(connections):
    assert ValidationGate(RULES, connections).judge("77") is None


def test_held_out_rows_read_in_steps_are_those_read_at_once(connections):
    at_once = HeldOutRows(connections.samples(), percent=10, max_rows=300).upto(ROWS)
    in_steps = HeldOutRows(connections.samples(), percent=10, max_rows=300)
    for upto in (100, 101, 2_500, ROWS):
        newest = in_steps.upto(upto)
    assert newest.equals(at_once)
    assert newest.height == 300
    assert newest["commit_seq"].is_sorted()
