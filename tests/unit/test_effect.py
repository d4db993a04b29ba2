"""What an experiment found: rates before and after the drift, and intervals that hold what they promise."""

import numpy as np
import polars as pl
import pytest

from rtrec_ray.simulate.world.effect import OBSERVED, best_possible, effect, interval, mean_interval

DRIFT_MS = 100


def observed(*rows):
    """Rows (ts_ms, user_id, arm, impressions, clicks, regret); a click is as likely as 0.3 less the regret."""
    full = [(*row[:5], 0.3 - row[5], row[5], 0.05) for row in rows]
    return pl.DataFrame(full, schema=OBSERVED, orient="row")


def answers(regret, *, user, ts_ms=DRIFT_MS, arm="a"):
    """A row per answer: the users' and the answers' regrets, (n,) each."""
    return observed(*((ts_ms, int(who), arm, 5, 0, float(lost)) for who, lost in zip(user, regret, strict=True)))


def test_an_answer_at_the_very_time_of_the_drift_is_after_it():
    rows = observed((DRIFT_MS - 1, 1, "a", 5, 1, 0.2), (DRIFT_MS, 1, "a", 5, 3, 0.1))
    found = effect(rows, drift_ms=DRIFT_MS)["a"]
    assert (found.ctr_before, found.ctr_after) == (0.2, 0.6)
    assert found.regret_before == pytest.approx(0.2)
    assert found.regret_after == pytest.approx(0.1)
    assert (found.impressions, found.clicks) == (10, 4)


def test_arms_do_not_count_for_each_other():
    both = observed((DRIFT_MS, 1, "a", 5, 1, 0.2), (DRIFT_MS, 2, "b", 5, 3, 0.1))
    found = effect(both, drift_ms=DRIFT_MS)
    assert list(found) == ["a", "b"]
    for arm in found:
        assert found[arm] == effect(both.filter(pl.col("arm") == arm), drift_ms=DRIFT_MS)[arm]


def test_rates_are_per_impression_and_not_per_answer():
    rows = observed((DRIFT_MS, 1, "a", 1, 1, 0.2), (DRIFT_MS, 2, "a", 9, 0, 0.1))
    found = effect(rows, drift_ms=DRIFT_MS)["a"]
    assert found.ctr_after == 0.1
    assert found.regret_after == pytest.approx(0.11)
    assert found.regret_ci[1] > found.regret_after  # the heavier user does not hide the other


def test_the_interval_is_of_the_rate_per_impression_too():
    heavy, light = ([(DRIFT_MS, user, "a", size, 0, lost)] for user, size, lost in ((1, 99, 0.1), (2, 1, 0.2)))
    rows = observed(*((ts, 2 * index + user, *rest) for index in range(100) for ts, user, *rest in heavy + light))
    low, high = interval(rows)
    assert low < 0.101 < high < 0.11


def test_the_best_possible_rate_is_what_was_won_and_what_was_lost_after_the_drift():
    rows = observed((DRIFT_MS - 1, 1, "a", 5, 0, -0.1), (DRIFT_MS, 1, "a", 5, 0, 0.1), (DRIFT_MS, 2, "b", 5, 0, 0.2))
    assert best_possible(rows, drift_ms=DRIFT_MS) == pytest.approx(0.3)


def test_where_nothing_was_shown_there_is_no_rate():
    rows = observed((DRIFT_MS - 1, 1, "a", 5, 1, 0.2))
    found = effect(rows, drift_ms=DRIFT_MS)["a"]
    assert (found.ctr_after, found.regret_after, found.regret_ci) == (None, None, None)
    assert best_possible(rows, drift_ms=DRIFT_MS) is None
    assert interval(rows.clear()) is None
    assert effect(rows.clear(), drift_ms=DRIFT_MS) == {}


def test_users_who_are_all_alike_leave_no_doubt():
    assert interval(answers([0.25] * 6, user=[1, 1, 2, 2, 3, 3])) == (0.25, 0.25)


def test_the_interval_is_about_the_mean_and_the_same_for_the_same_seed():
    rows = answers(np.random.default_rng(1).normal(0.1, 0.05, 300), user=np.arange(300) // 3)
    low, high = interval(rows)
    assert low < rows["regret"].mean() < high
    assert interval(rows) == (low, high)
    assert interval(rows, seed=1) == pytest.approx((low, high), abs=0.002)
    assert interval(rows, seed=1) != (low, high)


def test_more_answers_of_the_same_users_tell_nothing_new_and_more_users_do():
    regret = np.random.default_rng(2).normal(0.1, 0.05, 400)

    def width(rows):
        low, high = interval(rows)
        return high - low

    some = width(answers(regret[:100], user=np.arange(100)))
    assert width(answers(np.repeat(regret[:100], 4), user=np.repeat(np.arange(100), 4))) == pytest.approx(some)
    assert width(answers(regret, user=np.arange(400))) == pytest.approx(some / 2, rel=0.2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """60 users with a regret of their own, five answers each with noise of theirs."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        regret = np.repeat(rng.normal(0.1, 0.04, 60), 5) + rng.normal(0.0, 0.02, 300)
        low, high = interval(answers(regret, user=np.repeat(np.arange(60), 5)))
        covered += low <= 0.1 <= high
    assert 0.89 * 200 <= covered <= 0.99 * 200


def test_the_mean_over_seeds_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    found = [mean_interval(rng.normal(0.5, 0.1, 20)) for _ in range(1_000)]
    assert all(mean - low == pytest.approx(high - mean) for mean, low, high in found)
    assert np.mean([low <= 0.5 <= high for _, low, high in found]) == pytest.approx(0.94, abs=0.02)


def test_one_seed_alone_says_nothing_for_sure():
    assert mean_interval([0.2]) == (0.2, -np.inf, np.inf)
