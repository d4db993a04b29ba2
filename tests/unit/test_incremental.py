"""The run that follows the ledger, on servers in memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import LeaseLost, RegistryUnavailable, StoreUnavailable
from rtrec_ray.notification.base import CHANGE_LOG_FELL_BACK, MODEL, MODEL_GENERATED, EventFilter
from rtrec_ray.registry.base import ModelCenter, rollback
from rtrec_ray.stores.samples.store import MemorySampleStore
from tests.sample_rows import sample_rows
from tests.training_desk import MemoryConnections, put_base, small_definition
from training.dataset import encode, held_out
from training.desk import Desk
from training.follower import Follower
from training.loop import Learner
from training.options import IncrementalOptions
from training.publish import fetch

pytestmark = pytest.mark.slow  # importing TensorFlow takes about 8 s

NEVER_S = 1e9
EAGER = {"check_every_s": 0.0, "progress_every_s": 0.0, "look_every_s": 0.01}
ROWS = 256  # eight batches of increments on the small definition


@pytest.fixture
def connections(tmp_path) -> MemoryConnections:
    return MemoryConnections(tmp_path)


def follow(connections: MemoryConnections, *, publish_every_s: float = NEVER_S, **servers: Any) -> Follower:
    """A new start of the run."""
    desk = {
        "samples": connections.samples(),
        "log": connections.change_log("incremental"),
        "center": connections.center(),
        "events": connections.events(),
        "book": connections.book(),
        "clock": connections.clock,
        "connections": connections,
    }
    options = IncrementalOptions(publish_every_s=publish_every_s, **EAGER)
    return Follower(options, Desk(**{**desk, **servers}), epoch=connections.book().open(options.run))


def drive(follower: Follower, until: Callable[[], bool], *, within_s: float = 60.0) -> None:
    deadline_s = monotonic_s() + within_s
    while monotonic_s() < deadline_s:
        if until():
            return
        follower.turn()
    pytest.fail(f"not within {within_s} s")


def stop(connections: MemoryConnections, follower: Follower) -> None:
    connections.book().request_stop("incremental")
    follower._due["beat"] = 0.0  # it beats once a second
    follower.run()


def position(follower: Follower) -> int:
    return -1 if follower._chain is None else follower._chain.position


def weights(connections: MemoryConnections, version: str) -> dict[str, np.ndarray]:
    return fetch(connections.center(), version)[2]


def learnt_directly(connections: MemoryConnections, rows: int) -> dict[str, np.ndarray]:
    """The weights after one walk through the ledger, without any run around it."""
    definition = small_definition().for_increments()
    learner = Learner(definition, base_rate=0.15)
    for frame in connections.samples().scan(to_seq=rows, batch_rows=definition.batch_rows):
        batch = encode(frame, definition.model_inputs, held_out_percent=10)
        learner.train(batch.columns, batch.label, (~batch.held_out).astype(np.float32))
    return learner.state()


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def put_base_and_follow(connections: MemoryConnections) -> tuple[ModelCenter, Follower]:
    put_base(connections, small_definition())
    return connections.center(), follow(connections, publish_every_s=0.0)


def grow(connections: MemoryConnections, follower: Follower, *, to_seq: int) -> str:
    """Add samples up to `to_seq` to the ledger; answers the first new version that has learnt them all."""
    missing = to_seq - connections.samples().high_water()
    connections.samples().append(sample_rows(missing, seed=to_seq, first=to_seq - missing))
    known = len(connections.center().list())
    drive(follower, lambda: len(connections.center().list()) > known and at_end(connections, to_seq))
    return connections.center().list()[0].version


def at_end(connections: MemoryConnections, to_seq: int) -> bool:
    return connections.center().list()[0].draft.to_seq == to_seq


def lineage(center: ModelCenter, version: str) -> list[str]:
    found = center.get(version)
    assert found is not None
    return [version] if found.draft.parent is None else [version, *lineage(center, found.draft.parent)]


def test_a_run_waits_for_a_first_champion(connections):
    connections.samples().append(sample_rows(ROWS))
    follower = follow(connections)
    for _ in range(3):
        follower.turn()
    run = connections.book().runs()["incremental"]
    assert (run.beat.state, run.beat.message) == ("waiting", "no model version serves yet")
    put_base(connections, small_definition())
    drive(follower, lambda: position(follower) == ROWS)


def test_a_stopped_run_leaves_a_version_with_every_sample_learnt_once(connections):
    base = put_base(connections, small_definition())
    connections.samples().append(sample_rows(ROWS))
    follower = follow(connections)
    drive(follower, lambda: position(follower) == ROWS)
    stop(connections, follower)
    last = connections.center().list()[0]
    assert (last.draft.kind, last.draft.parent, last.draft.base) == ("increment", base.version, base.version)
    assert (last.draft.from_seq, last.draft.to_seq) == (1, ROWS)
    assert same(weights(connections, last.version), learnt_directly(connections, ROWS))
    assert connections.book().runs()["incremental"].beat.state == "stopped"
    announced = connections.events().list(EventFilter(key=MODEL, type=MODEL_GENERATED))
    assert [event.value for event in announced] == [base.version, last.version]
    lineage = connections.metadata().ancestry(last.version)
    assert [(one.version, one.job, one.snapshot) for one in lineage] == [
        (last.version, "train-incremental", connections.snapshot),
        (base.version, "train-base", connections.snapshot),
    ]
    assert (lineage[0].run_id, lineage[0].from_seq, lineage[0].to_seq) == ("incremental-1", 1, ROWS + 1)


def test_a_run_that_dies_and_starts_again_ends_like_one_that_never_did(connections):
    put_base(connections, small_definition())
    connections.samples().append(sample_rows(ROWS))
    first = follow(connections, publish_every_s=0.0)
    drive(first, lambda: connections.center().list()[0].draft.to_seq == ROWS)

    connections.samples().append(sample_rows(ROWS, seed=1, first=ROWS))
    dies = follow(connections)  # it goes on, and nothing of that is stored
    drive(dies, lambda: position(dies) == 2 * ROWS)

    connections.samples().append(sample_rows(ROWS, seed=2, first=2 * ROWS))
    last = follow(connections)
    drive(last, lambda: position(last) == 3 * ROWS)
    stop(connections, last)
    versions = connections.center().list()
    assert (versions[0].draft.from_seq, versions[0].draft.to_seq) == (ROWS + 1, 3 * ROWS)
    assert same(weights(connections, versions[0].version), learnt_directly(connections, 3 * ROWS))


def test_versions_join_without_gap_or_overlap(connections):
    put_base(connections, small_definition())
    follower = follow(connections, publish_every_s=0.0)
    for step in range(1, 4):
        connections.samples().append(sample_rows(ROWS, seed=step, first=step * ROWS))
        drive(follower, lambda wanted=step * ROWS: connections.center().list()[0].draft.to_seq == wanted)
    chain = list(reversed(connections.center().list()))
    for earlier, later in pairwise(chain):
        assert later.draft.parent == earlier.version
        assert later.draft.from_seq == earlier.draft.to_seq + 1


def test_increments_step_in_batches_of_their_own_and_their_version_keeps_the_definition_of_its_base(connections):
    put_base(connections, small_definition())
    connections.samples().append(sample_rows(ROWS))
    follower = follow(connections)
    drive(follower, lambda: position(follower) == ROWS)
    stop(connections, follower)
    definition, _, state = fetch(connections.center(), connections.center().list()[0].version)
    assert definition == small_definition()
    assert state["optimizer/00/iteration"] == ROWS / definition.increment_batch_rows


def test_held_out_requests_are_scored_but_teach_nothing(connections):
    put_base(connections, small_definition())
    rows = sample_rows(4 * ROWS)
    apart = rows.filter(pl.Series(held_out(rows["request_id"].to_list(), percent=10)))
    assert 0 < apart.height < ROWS
    connections.samples().append(apart)
    follower = follow(connections)
    drive(follower, lambda: position(follower) == apart.height)
    stop(connections, follower)
    before, after = (weights(connections, version) for version in ("1", "2"))
    models = {name for name in before if name.startswith("model/")}
    assert all(np.array_equal(before[name], after[name]) for name in models)
    assert sum(point.rows for point in connections.book().progress("incremental")) == apart.height


def test_a_correction_is_learnt_again_but_scored_once(connections):
    put_base(connections, small_definition())
    rows = sample_rows(ROWS)
    late = rows.filter(pl.col("label") == 0).head(64).with_columns(revision=1, label=1, old_label=0)
    connections.samples().append(rows)
    connections.samples().append(late)
    follower = follow(connections)
    total = ROWS + late.height
    drive(follower, lambda: position(follower) == total)
    stop(connections, follower)
    assert sum(point.rows for point in connections.book().progress("incremental")) == ROWS
    last = connections.center().list()[0].version
    assert same(weights(connections, last), learnt_directly(connections, total))


def test_a_new_base_takes_over_from_where_it_was_trained_to(connections):
    put_base(connections, small_definition())
    connections.samples().append(sample_rows(2 * ROWS))
    follower = follow(connections, publish_every_s=0.0)
    drive(follower, lambda: connections.center().list()[0].draft.to_seq == 2 * ROWS)
    fresh = put_base(connections, small_definition(seed=99), to_seq=ROWS)
    drive(follower, lambda: connections.center().list()[0].root == fresh.version
          and connections.center().list()[0].draft.to_seq == 2 * ROWS)  # fmt: skip
    newest = connections.center().list()[0]
    assert connections.center().list()[0].draft.base == fresh.version
    of_base = [v for v in connections.center().list() if v.draft.base == fresh.version]
    assert min(v.draft.from_seq for v in of_base) == ROWS + 1
    assert newest.draft.kind == "increment"


def test_a_start_goes_on_from_a_version_that_waits_for_the_gate_but_not_from_a_rejected_one(connections):
    base = put_base(connections, small_definition())
    connections.samples().append(sample_rows(ROWS))
    first = follow(connections, publish_every_s=0.0)
    drive(first, lambda: connections.center().list()[0].draft.to_seq == ROWS)
    waiting = follow(connections)
    waiting.turn()
    assert position(waiting) == ROWS
    connections.center().reject(connections.center().list()[0].version, reason="worse")
    anew = follow(connections)
    anew.turn()
    assert position(anew) == base.draft.to_seq


def test_a_running_run_leaves_a_rolled_back_version_and_all_that_stands_on_it(connections):
    center, follower = put_base_and_follow(connections)
    good, bad, waiting = (grow(connections, follower, to_seq=ROWS * n) for n in (1, 2, 3))
    for version in (good, bad):
        center.set_champion(version)
    rollback(center, reason="clicks fell")
    forsaken = {version.version for version in center.list() if version.draft.to_seq > ROWS}
    newest = grow(connections, follower, to_seq=4 * ROWS)
    ancestry = lineage(center, newest)
    assert good in ancestry
    assert not forsaken & set(ancestry)
    assert {bad, waiting} <= forsaken
    assert same(weights(connections, newest), learnt_directly(connections, 4 * ROWS))


def test_progress_tells_the_learning_model_from_its_base(connections):
    put_base(connections, small_definition())
    follower = follow(connections)
    for step in range(8):
        connections.samples().append(sample_rows(4 * ROWS, seed=step, first=step * 4 * ROWS))
        drive(follower, lambda wanted=(step + 1) * 4 * ROWS: position(follower) == wanted)
    follower.turn()
    points = connections.book().progress("incremental")
    assert sum(point.rows for point in points) == 32 * ROWS
    assert [point.commit_seq for point in points] == sorted(point.commit_seq for point in points)
    last = points[-1]
    assert last.log_loss < last.base_log_loss
    assert last.auc > 0.6
    assert last.base_auc == pytest.approx(0.5)
    assert last.base_version == "1"


def test_a_follower_that_was_taken_over_ends(connections):
    put_base(connections, small_definition())
    old = follow(connections)
    old.turn()
    follow(connections)
    old._due["beat"] = 0.0
    with pytest.raises(LeaseLost):
        old.run()


class _Away:
    """A server that does not answer `times` times."""

    def __init__(self, server: Any, *, times: int, error: Exception, names: tuple[str, ...]) -> None:
        self._server, self._error, self._names = server, error, names
        self.left = times

    def __getattr__(self, name: str) -> Any:
        if name in self._names and self.left > 0:
            self.left -= 1
            raise self._error
        return getattr(self._server, name)


def test_samples_are_learnt_once_though_the_store_goes_away_in_between(connections):
    put_base(connections, small_definition())
    connections.samples().append(sample_rows(ROWS))
    log = _Away(connections.change_log("incremental"), times=2, error=StoreUnavailable("away"), names=("poll",))
    store = _Away(connections.samples(), times=1, error=StoreUnavailable("away"), names=("high_water",))
    follower = follow(connections, samples=store, log=log)
    drive(follower, lambda: position(follower) == ROWS)
    stop(connections, follower)
    assert (store.left, log.left) == (0, 0)
    last = connections.center().list()[0].version
    assert same(weights(connections, last), learnt_directly(connections, ROWS))


def test_the_slot_is_acknowledged_to_the_last_stored_version_and_no_further(connections):
    put_base(connections, small_definition())
    follower = follow(connections)
    drive(follower, lambda: "incremental" in connections.slots.acknowledged)
    connections.samples().append(sample_rows(ROWS))
    drive(follower, lambda: position(follower) == ROWS)
    follower.turn()
    assert connections.slots.acknowledged["incremental"] == 0
    stop(connections, follower)
    version = connections.center().list()[0]
    assert (version.draft.to_seq, version.draft.to_lsn, version.draft.parameters["lsn"]) == (ROWS, ROWS, "0/100")
    assert connections.slots.acknowledged["incremental"] == ROWS
    assert connections.book().runs()["incremental"].beat.lsn == ROWS


def test_a_lost_slot_costs_no_sample_and_is_told(connections):
    put_base(connections, small_definition())
    follower = follow(connections)
    connections.samples().append(sample_rows(ROWS))
    drive(follower, lambda: position(follower) == ROWS)
    connections.slots.lost.add("incremental")
    connections.samples().append(sample_rows(ROWS, seed=1, first=ROWS))
    drive(follower, lambda: position(follower) == 2 * ROWS)
    stop(connections, follower)
    last = connections.center().list()[0].version
    assert same(weights(connections, last), learnt_directly(connections, 2 * ROWS))
    beat = connections.book().runs()["incremental"].beat
    assert (beat.followed_by, beat.fallbacks, beat.fallback_reason) == ("stream", 1, "slot lost")
    (event,) = connections.events().list(EventFilter(type=CHANGE_LOG_FELL_BACK))
    assert (event.key, event.value, event.context["reason"]) == ("change_log", "incremental", "slot lost")


def test_a_run_without_a_slot_follows_by_number_and_says_so(connections):
    connections.slots.forbidden = "wal_level is replica"
    put_base(connections, small_definition())
    connections.samples().append(sample_rows(ROWS))
    follower = follow(connections)
    drive(follower, lambda: position(follower) == ROWS)
    stop(connections, follower)
    beat = connections.book().runs()["incremental"].beat
    assert (beat.followed_by, beat.fallbacks, beat.fallback_reason) == ("scan", 0, "wal_level is replica")
    assert connections.center().list()[0].draft.to_lsn is None


def test_training_goes_on_while_versions_cannot_be_stored(connections, eventually):
    put_base(connections, small_definition())
    connections.samples().append(sample_rows(ROWS))
    away = _Away(connections.center(), times=2, error=RegistryUnavailable("away"), names=("log_version",))
    follower = follow(connections, publish_every_s=0.0, center=away)
    drive(follower, lambda: position(follower) == ROWS)
    drive(follower, lambda: connections.center().list()[0].draft.to_seq == ROWS)
    assert connections.center().list()[0].draft.from_seq == 1


def test_workers_share_each_batch_and_miss_no_row():
    store = MemorySampleStore()
    store.append(sample_rows(101))
    batch = encode(next(iter(store.scan(to_seq=101))), small_definition().model_inputs, held_out_percent=0)
    shares = [batch[rank::2] for rank in range(2)]
    assert sorted(np.concatenate([share.commit_seq for share in shares]).tolist()) == list(range(1, 102))
