"""The Open Bandit log as our records."""

from __future__ import annotations

import json

import polars as pl
import pytest

from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode, encode
from rtrec_ray.simulate.datasets import open_bandit


@pytest.fixture(scope="module")
def frames() -> dict[str, pl.DataFrame]:
    return open_bandit.records(open_bandit.load())


def of_type(frames: dict[str, pl.DataFrame], event_type: str) -> pl.DataFrame:
    return frames[BEHAVIOR].filter(pl.col("event_type") == event_type)


def test_each_row_is_one_request_with_one_impression(frames) -> None:
    shown = of_type(frames, "impression")
    assert len(shown) == shown["request_id"].n_unique() == 60_000
    assert shown["request_id"].to_list() == frames[INFERENCE]["request_id"].to_list()


def test_each_click_follows_its_impression_by_three_seconds(frames) -> None:
    clicks = of_type(frames, "click").join(of_type(frames, "impression"), on=["request_id", "item_id", "user_id"])
    assert len(clicks) == 287
    assert (clicks["ts"] - clicks["ts_right"]).unique().to_list() == [3_000]


def test_an_item_of_two_campaigns_is_two_items(frames) -> None:
    log = open_bandit.load()
    pairs = log.select("campaign", "item_id").n_unique()
    assert of_type(frames, "impression")["item_id"].n_unique() == pairs
    assert (log["campaign"] == "men").sum() == of_type(frames, "impression")["item_id"].is_between(2000, 2999).sum()


def test_a_user_is_one_combination_of_user_features(frames) -> None:
    features = [f"user_feature_{number}" for number in range(4)]
    assert of_type(frames, "impression")["user_id"].n_unique() == open_bandit.load().select(features).n_unique()
    assert frames[INFERENCE]["user_id"][0] == 40841822657566  # stable from one run to the next
    assert frames[INFERENCE]["user_id"].is_between(0, 2**53).all()  # exact in every language's numbers


def test_the_inference_record_comes_before_the_impression_with_what_the_policy_knew(frames) -> None:
    row = open_bandit.load().row(0, named=True)
    record = frames[INFERENCE].row(0, named=True)
    assert of_type(frames, "impression")["ts"][0] - record["ts"] == 50
    features, (item,) = json.loads(record["features"]), json.loads(record["items"])
    assert features["user_feature_2"] == row["user_feature_2"]
    assert (features["position"], features["propensity"]) == (row["position"], row["propensity_score"])
    assert (item["item_id"], item["propensity"]) == (1000 + row["item_id"], row["propensity_score"])


def test_every_record_is_sound(frames) -> None:
    for topic, frame in frames.items():
        decoded = decode(record_batch(topic, 0, list(encode(topic, frame)[1])), latest_ms=lambda _wall_ms: 2**62)
        assert (len(decoded.frame), decoded.dead) == (len(frame), [])


def test_the_catalogue_has_every_item_that_was_shown(frames) -> None:
    assert set(of_type(frames, "impression")["item_id"]) <= set(frames[ITEM]["item_id"])
    assert frames[ITEM]["ts"].max() < frames[INFERENCE]["ts"].min()


def test_a_shuffled_copy_of_the_table_has_the_same_clicks() -> None:
    shuffled = open_bandit.records(open_bandit.load().sample(fraction=1.0, shuffle=True, seed=7))
    assert len(of_type(shuffled, "click")) == 287
