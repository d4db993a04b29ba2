"""The rules of the gate."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from training.metrics import auc, evaluate, log_losses
from training.options import GateOptions
from training.validate import Exam, difference, judge

RULES = GateOptions(resamples=300)
ROWS = 4_000


def _world(rate=0.05, seed=0):
    """Labels of rows, two a request, and the true probabilities behind them."""
    random = np.random.default_rng(seed)
    truth = np.clip(random.beta(0.5, 0.5 / rate, ROWS), 1e-4, 0.9)
    return (random.random(ROWS) < truth).astype(int), truth, np.arange(ROWS) // 2


def _exam(candidate, *, champion=None, seed=0):
    label, truth, request = _world(seed=seed)
    say = {"truth": truth, "rate": np.full(ROWS, truth.mean()), "half": np.full(ROWS, 0.5), "wrong": truth[::-1]}
    return Exam(
        label=label,
        request=request,
        candidate=say[candidate] if isinstance(candidate, str) else candidate,
        champion=None if champion is None else say[champion],
        base_rate=float(truth.mean()),
    )


@pytest.mark.parametrize("candidate", ["truth", "rate"])
def test_a_first_version_passes_when_it_is_not_worse_than_the_constant_rate(candidate):
    assert judge(_exam(candidate), RULES).accepted


def test_a_first_version_worse_than_the_constant_rate_is_rejected_with_figures():
    verdict = judge(_exam("wrong"), RULES)
    assert not verdict.accepted
    assert "its log loss is above that of the constant by" in verdict.reasons[-1]
    assert verdict.metrics["over_constant_low"] > 0.0


def test_a_version_as_good_as_the_champion_passes_and_a_worse_one_does_not():
    assert judge(_exam("truth", champion="truth"), RULES).accepted
    verdict = judge(_exam("rate", champion="truth"), RULES)
    assert "champion" in verdict.reasons[0]


def test_a_difference_within_the_noise_is_no_reason():
    label, truth, request = _world()
    label[:], label[:3] = 0, 1  # three clicks prove nothing
    noisy = Exam(
        label=label, request=request, candidate=truth * 0 + 0.0009, champion=truth * 0 + 0.0008, base_rate=0.001
    )
    assert judge(noisy, RULES).accepted


def test_bad_calibration_is_a_reason_of_its_own():
    _, truth, _ = _world()
    verdict = judge(_exam(np.clip(truth * 4, 0, 0.99), champion="half"), RULES)
    assert len(verdict.reasons) == 1
    assert "times those predicted" in verdict.reasons[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_what_is_no_probability_is_rejected(bad):
    _, truth, _ = _world()
    truth[7] = bad
    verdict = judge(_exam(truth), RULES)
    assert verdict.reasons == ("its probabilities are not all numbers from 0 to 1",)


def test_too_few_requests_are_no_proof():
    few = Exam(
        label=np.array([0, 1]), request=np.array([1, 1]), candidate=np.array([0.1, 0.9]), champion=None, base_rate=0.5
    )
    verdict = judge(few, RULES)
    assert verdict.reasons == ("only 1 held-out requests, 10 are needed to judge",)


def test_rows_without_a_click_are_judged_by_log_loss_alone():
    none = Exam(label=np.zeros(40), request=np.arange(40), candidate=np.full(40, 0.01), champion=None, base_rate=0.02)
    assert judge(none, RULES).accepted
    worse = Exam(label=np.zeros(40), request=np.arange(40), candidate=np.full(40, 0.03), champion=None, base_rate=0.02)
    assert not judge(worse, RULES).accepted


def _nearly(label, truth, request, *, worse):
    """An exam whose candidate loses `worse` nats more than the champion, the truth, on every row."""
    candidate = np.where(label > 0, truth * np.exp(-worse), 1.0 - (1.0 - truth) * np.exp(-worse))
    return Exam(label=label, request=request, candidate=candidate, champion=truth, base_rate=float(truth.mean()))


def test_a_loss_that_is_certain_but_negligible_keeps_no_version_back():
    label, truth, request = _world()
    loss = float(log_losses(label, truth).mean())
    exams = [
        _nearly(label, truth, request, worse=share * loss) for share in (0.5 * RULES.negligible, 5 * RULES.negligible)
    ]
    verdicts = [judge(exam, RULES) for exam in exams]
    assert [verdict.metrics["over_champion_low"] > 0.0 for verdict in verdicts] == [True, True]
    assert [verdict.accepted for verdict in verdicts] == [True, False]


def test_the_same_exam_has_the_same_verdict():
    assert judge(_exam("truth", champion="rate"), RULES) == judge(_exam("truth", champion="rate"), RULES)


def test_resampling_whole_requests_widens_the_interval_where_rows_of_a_request_agree():
    gain = np.repeat(np.random.default_rng(1).normal(size=200), 10)
    apart = difference(gain, gain * 0, np.arange(2_000), RULES)
    together = difference(gain, gain * 0, np.arange(2_000) // 10, RULES)
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_the_interval_holds_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    options = GateOptions(resamples=200)
    hits = [
        interval.low <= 0.0 <= interval.high
        for interval in (difference(random.normal(size=60), np.zeros(60), np.arange(60), options) for _ in range(100))
    ]
    assert 85 <= sum(hits) <= 100


def test_measures_agree_with_an_independent_implementation():
    label, truth, _ = _world()
    rounded = truth.round(2)  # with ties
    found = evaluate(label, rounded)
    assert found.auc == pytest.approx(roc_auc_score(label, rounded))
    assert found.log_loss == pytest.approx(log_loss(label, np.clip(rounded, 1e-7, 1 - 1e-7)))
    assert found.calibration == pytest.approx(rounded.sum() / label.sum())


def test_measures_without_clicks_or_rows_are_absent_not_wrong():
    assert auc(np.zeros(3), np.full(3, 0.1)) is None
    none = evaluate(np.zeros(3), np.full(3, 0.1))
    assert (none.auc, none.calibration, none.normalised_entropy) == (None, None, None)
    assert none.log_loss == pytest.approx(-np.log(0.9))
    assert evaluate(np.zeros(0), np.zeros(0)).log_loss is None
    assert np.isfinite(log_losses(np.array([0, 1]), np.array([1.0, 0.0]))).all()
