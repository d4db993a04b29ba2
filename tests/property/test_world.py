"""Laws of the world that hold for any question, any slate, any drifts and any plan."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.simulate.world.options import Drift, TasteOptions, VisitOptions, WorldOptions
from rtrec_ray.simulate.world.truth import Asked, regret
from rtrec_ray.simulate.world.visits import plan_visits
from rtrec_ray.simulate.world.world import make_world

USERS, ITEMS, NEWCOMERS, KINDS = 64, 52, 4, ("trend", "parting", "new_items")
LAST_MS = 9
EACH = TasteOptions(quality=0.0, age_and_category=0.0, newcomer=0.0, intent=0.0)
"""An item is a favourite or nothing, so that probabilities tell which."""

# Few times and few users: drifts, questions and their repetitions must collide.
times = st.integers(-1, LAST_MS + 1)
drifts = st.lists(
    st.builds(lambda kind, at_ms: Drift(kind=kind, at_ms=at_ms), st.sampled_from(KINDS), st.integers(0, LAST_MS)),
    max_size=5,
    unique_by=lambda drift: drift.at_ms,
)
questions = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, 1), st.integers(1, 8), times), min_size=1, max_size=6
)
slates = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=5, unique=True)


@lru_cache(maxsize=32)
def world_of(seed, drifts=(), tastes=None):
    return make_world(WorldOptions(seed=seed, users=USERS, drifts=drifts, tastes=tastes or TasteOptions()))


def asked_of(rows):
    user, page, intent, ts_ms = np.array(rows).T
    return Asked(user=user, page=page, intent=intent, ts_ms=ts_ms)


def everywhere(ts_ms):
    """Every user on both pages."""
    return asked_of([(user, page, user % 8 + 1, ts_ms) for user in range(USERS) for page in (0, 1)])


def each_item(world, asked):
    """True P(click), (n, items), on the first place."""
    rows, items = np.repeat(np.arange(len(asked)), ITEMS), np.tile(np.arange(ITEMS), len(asked))
    return world.truth.probability(asked[rows], items[:, None]).reshape(-1, ITEMS)


@given(st.integers(0, 3), questions, slates)
def test_no_slate_beats_the_best_and_regret_is_never_negative(seed, rows, slate):
    world, asked = world_of(seed, (Drift(kind="new_items", at_ms=5),)), asked_of(rows)
    shown, best = np.tile(slate, (len(asked), 1)), world.truth.best(asked, places=len(slate))
    lost = regret(world.truth, asked, shown)
    assert (lost >= -1e-12).all()
    assert np.allclose(
        world.truth.probability(asked, best).mean(axis=1) - world.truth.probability(asked, shown).mean(axis=1), lost
    )
    assert (regret(world.truth, asked, best) == 0.0).all()


@given(st.integers(0, 3), drifts, questions, st.randoms(use_true_random=False))
def test_truths_do_not_depend_on_what_was_asked_before(seed, drifts, rows, random):
    options = WorldOptions(seed=seed, users=USERS, drifts=tuple(drifts))
    together, alone = make_world(options), make_world(options)
    want = each_item(together, asked_of(rows))
    together.truth.find(asked_of(rows), np.random.default_rng(1))
    order = list(range(len(rows)))
    random.shuffle(order)
    for index in [*order, *order]:
        assert np.array_equal(each_item(alone, asked_of([rows[index]]))[0], want[index])
        alone.truth.best(asked_of([rows[index]]), places=3)
    assert np.array_equal(each_item(together, asked_of(rows)), want)


@given(st.integers(0, 3), drifts, st.randoms(use_true_random=False))
def test_drifts_given_in_any_order_make_the_same_world(seed, drifts, random):
    shuffled = random.sample(drifts, len(drifts))
    for ts_ms in (-1, 4, LAST_MS):
        asked = everywhere(ts_ms)[::7]
        one, other = world_of(seed, tuple(drifts)), world_of(seed, tuple(shuffled))
        assert np.array_equal(each_item(one, asked), each_item(other, asked))


@given(st.integers(0, 3), drifts)
def test_what_comes_later_changes_nothing_before_it_and_nothing_changes_between(seed, drifts):
    ordered = sorted(drifts, key=lambda drift: drift.at_ms)
    full = world_of(seed, tuple(ordered))
    for count, (start_ms, end_ms) in enumerate(pairwise([-1, *(drift.at_ms for drift in ordered), LAST_MS + 1])):
        without = world_of(seed, tuple(ordered[:count]))
        expected = each_item(without, everywhere(LAST_MS)[::7])
        for ts_ms in {start_ms, end_ms - 1} if start_ms < end_ms else ():
            assert np.array_equal(each_item(full, everywhere(ts_ms)[::7]), expected)


@given(st.integers(0, 3), drifts, times)
def test_every_context_has_its_favourites_each_but_once(seed, drifts, ts_ms):
    world = world_of(seed, tuple(drifts), EACH)
    chance = each_item(world, everywhere(ts_ms))[:, : ITEMS - NEWCOMERS]
    boosts = np.sort(np.log(chance / (1.0 - chance)) - EACH.start, axis=1)[:, ::-1]
    places = len(EACH.favorites)
    assert np.allclose(boosts[:, :places], EACH.favorites)
    assert np.allclose(boosts[:, places:], 0.0)


@given(st.integers(0, 3), drifts, questions)
def test_newcomers_are_there_and_clicked_from_their_drift_on(seed, drifts, rows):
    world, asked = world_of(seed, tuple(drifts)), asked_of(rows)
    begun = [drift.at_ms for drift in drifts if drift.kind == "new_items"]
    there = asked.ts_ms >= min(begun, default=LAST_MS + 2)
    new = world.goods.is_new()
    assert np.array_equal(world.truth.there(asked.ts_ms)[:, new], np.repeat(there[:, None], new.sum(), axis=1))
    assert world.truth.there(asked.ts_ms)[:, ~new].all()
    assert np.array_equal(each_item(world, asked)[:, new].min(axis=1) > 1e-6, there)


# Visits every millisecond or so, so that they fall on the ends of plans and cuts.
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.sampled_from([1, 300, 2_000]), st.integers(0, 99))
def test_a_plan_is_in_order_within_its_time_and_can_be_cut_anywhere(from_ms, length_ms, cut_ms, per_s, seed):
    world, to_ms = make_world(WorldOptions(users=USERS, visits=VisitOptions(pause_ms=(0, 4)))), from_ms + length_ms
    visits = plan_visits(world, np.random.default_rng(seed), from_ms=from_ms, to_ms=to_ms, per_s=per_s)
    times = visits.asked.ts_ms
    assert (np.diff(times) >= 0).all()
    assert ((times >= from_ms) & (times < to_ms)).all()
    first, second = visits.between(from_ms, from_ms + cut_ms), visits.between(from_ms + cut_ms, to_ms)
    assert [*first, *second] == list(visits) if cut_ms <= length_ms else len(second) == 0
    if len(visits):  # [start, end): a cut at the very time of a visit leaves it to what comes after
        at_ms = int(times[len(times) // 2])
        assert all(visit.ts_ms < at_ms for visit in visits.between(from_ms, at_ms))
        assert visits.between(at_ms, to_ms).asked.ts_ms[0] == at_ms
