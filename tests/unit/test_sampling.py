"""Negatives that were thinned out: the model and its measures are of the world, not of what was kept."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl
import pytest

from tests.sample_rows import sample_rows
from tests.training_desk import small_definition
from training.dataset import SampleBatch, encode
from training.loop import Learner
from training.metrics import auc, evaluate
from training.options import GateOptions
from training.progress import ProgressWindow
from training.sampling import importance, negative_rates
from training.validate import Exam, judge

KEPT = 0.1


def thinned(rows: pl.DataFrame, *, seed: int = 5) -> pl.DataFrame:
    """A tenth of the negatives of even pages, all of odd ones, as a store with down-sampling has them."""
    rate = np.where(rows["page_id"].to_numpy() % 2 == 0, KEPT, 1.0)
    drawn = np.random.default_rng(seed).random(rows.height) < rate
    return rows.with_columns(negative_rate=pl.Series(rate)).filter(pl.Series(drawn) | (pl.col("label") == 1))


@pytest.fixture(scope="module")
def world() -> pl.DataFrame:
    rows = sample_rows(40_000, rate=0.1)
    return rows.with_columns(page_id=pl.Series(np.arange(rows.height) // 2 % 2))


def batch_of(rows: pl.DataFrame) -> SampleBatch:
    return encode(rows, small_definition().model_inputs, held_out_percent=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["logistic", "dcn"])
def test_a_model_of_thinned_negatives_foresees_the_rate_of_the_world(world, family):
    whole, kept = batch_of(world), batch_of(thinned(world))
    assert len(kept) < 0.65 * len(whole)
    for page in (0, 1):
        there = world["page_id"].to_numpy() == page
        true_rate = whole.label[there].mean()
        corrected = _trained(family, kept, kept.negative_rate).score(whole[there].columns).mean()
        # 40,000 rows with 4,000 clicks: a standard error of the rate is 2 to 3 % of it; a fitted model adds its own.
        assert corrected == pytest.approx(true_rate, rel=0.1)
    even = world["page_id"].to_numpy() == 0
    naive = _trained(family, kept, None).score(whole[even].columns).mean()
    assert naive > 3.0 * whole.label[even].mean()


def _trained(family: str, rows: SampleBatch, rate: np.ndarray | None) -> Learner:
    definition = msgspec.structs.replace(small_definition(), family=family, batch_rows=256)
    learner = Learner(definition, base_rate=0.1)
    order = np.random.default_rng(1).permutation(len(rows))
    for _ in range(3):
        for start in range(0, len(rows), learner.share):
            chosen = order[start : start + learner.share]
            part = rows[chosen]
            learner.train(part.columns, part.label, np.ones(len(part)), None if rate is None else rate[chosen])
    return learner


def test_measures_of_thinned_rows_are_those_of_the_world(world):
    truth = np.where(world["label"].to_numpy() == 1, 0.3, 0.05) + np.random.default_rng(3).random(world.height) * 0.2
    rows = thinned(world.with_columns(foreseen=pl.Series(truth)))
    full = evaluate(world["label"].to_numpy(), truth)
    label = rows["label"].to_numpy()
    weight = importance(label, negative_rates(rows))
    found = evaluate(label, rows["foreseen"].to_numpy(), weight)
    for name in ("log_loss", "calibration", "normalised_entropy", "auc"):
        assert getattr(found, name) == pytest.approx(getattr(full, name), rel=0.02), name
    naive = evaluate(label, rows["foreseen"].to_numpy())
    assert naive.calibration < 0.8 * full.calibration


def test_the_window_of_progress_counts_what_a_row_stands_for():
    label, own, base = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.25, 0.25]), np.full(3, 0.5)
    thin, whole = ProgressWindow(rows=100), ProgressWindow(rows=100)
    thin.add(label=label, own=own, base=base, weight=np.array([1.0, 4.0, 1.0]))
    again = [0, 1, 1, 1, 1, 2]
    whole.add(label=label[again], own=own[again], base=base[again], weight=np.ones(6))
    one, other = (w.point(commit_seq=1, event_time_ms=1, lag_rows=0, base_version="1") for w in (thin, whole))
    for name in ("log_loss", "base_log_loss", "auc", "base_auc", "calibration", "base_calibration"):
        assert getattr(one, name) == pytest.approx(getattr(other, name)), name
    assert (one.rows, other.rows) == (3, 6)


def test_the_gate_judges_calibration_of_the_world(world):
    rows = thinned(world.filter(pl.col("page_id") == 0))
    label = rows["label"].to_numpy().astype(float)
    true_rate = float(world.filter(pl.col("page_id") == 0)["label"].mean())
    exam = Exam(
        label=label,
        request=np.arange(len(label)),
        candidate=np.full(len(label), true_rate),
        champion=None,
        base_rate=true_rate,
        weight=importance(label, negative_rates(rows)),
    )
    few = GateOptions(resamples=100)
    assert judge(exam, few).accepted
    kept = Exam(**{name: getattr(exam, name) for name in Exam.__slots__ if name != "weight"})
    assert not judge(kept, few).accepted


def test_ties_count_half_and_weights_count_rows():
    label, probability = np.array([1, 0, 0]), np.array([0.5, 0.5, 0.1])
    assert auc(label, probability) == 0.75
    assert auc(label, probability, np.array([1.0, 3.0, 1.0])) == pytest.approx((3 / 2 + 1) / 4)
    assert auc(np.ones(2), np.ones(2)) is None
