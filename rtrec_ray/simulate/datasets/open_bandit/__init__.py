"""The Open Bandit log as records of our topics (source and licence: NOTICE.md beside this file).

The log has neither users, requests nor click times. One row becomes one request with one impression; `request_id` is
policy, campaign and row number, so that a second replay gives the same events; `user_id` is a hash of the four user
features; item ids are 1000 × campaign + item_id; a click comes 3 s after its impression, and the inference record 50 ms
before it, with the features and the propensity that the policy had.
"""

from __future__ import annotations

import hashlib
from importlib.resources import as_file, files
from typing import Final

import polars as pl

from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM

COLUMNS: Final = frozenset(
    {"policy", "campaign", "timestamp", "item_id", "position", "click", "propensity_score"}
    | {f"user_feature_{number}" for number in range(4)}
)
"""What an Open Bandit table is recognised by."""

CLICK_AFTER_MS: Final = 3_000
INFERENCE_BEFORE_MS: Final = 50

_CAMPAIGNS: Final = {"all": 1, "men": 2, "women": 3}
_USER: Final = [f"user_feature_{number}" for number in range(4)]
_ITEM: Final = [f"item_feature_{number}" for number in range(4)]


def load() -> pl.DataFrame:
    """The log as it was published: 60,000 rows in time order.

    >>> load().select(pl.len(), pl.col("click").sum()).row(0)
    (60000, 287)
    """
    return _read("open_bandit_small.parquet")


def records(log: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Topic → frame with the topic's columns. `log`: a table with COLUMNS, in any order of rows."""
    catalogue = _catalogue()
    shown = _shown(log).join(catalogue, on="item_id", how="left")
    return {
        ITEM: _items(catalogue, since_ms=_first_ms(shown)),
        INFERENCE: _inference(shown),
        BEHAVIOR: pl.concat([_behavior(shown, "impression"), _behavior(shown.filter(pl.col("click") == 1), "click")]),
    }


def _read(name: str) -> pl.DataFrame:
    with as_file(files(__name__) / name) as path:
        return pl.read_parquet(path)


def _first_ms(shown: pl.DataFrame) -> int:
    first = shown["ts"].min()
    return first - 1_000 if isinstance(first, int) else 0


def _identity() -> pl.Expr:
    """The item's ID over all campaigns."""
    return 1000 * pl.col("campaign").replace_strict(_CAMPAIGNS, return_dtype=pl.Int64) + pl.col("item_id")


def _catalogue() -> pl.DataFrame:
    """The 160 items; the most telling of their hashed features (1) stands for the category."""
    return (
        _read("open_bandit_items.parquet")
        .with_columns(
            category_id=pl.col("item_feature_1").rank("dense").cast(pl.Int64),
            title=pl.format("{} {}", "campaign", "item_id"),
            item_id=_identity(),
            item_type=pl.lit("product"),
        )
        .drop("campaign")
    )


def _shown(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_row_index("row").select(
        request_id=pl.format("{}-{}-{}", "policy", "campaign", "row"),
        ts=pl.col("timestamp").dt.epoch("ms"),
        user_id=pl.concat_str(_USER, separator="|").map_batches(_user_ids, return_dtype=pl.Int64),
        item_id=_identity(),
        page_id=pl.col("campaign").replace_strict(_CAMPAIGNS, return_dtype=pl.Int64),
        position=pl.col("position").cast(pl.Int64),
        propensity=pl.col("propensity_score"),
        model_version=pl.format("open-bandit-{}", "policy"),
        arm=pl.col("policy"),
        click=pl.col("click"),
        **{name: pl.col(name) for name in _USER},
    )


def _user_ids(texts: pl.Series) -> pl.Series:
    # 48 bits: exact in every language's numbers, and no two of the log's 337 users collide.
    known = {
        text: int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())
        for text in texts.unique().to_list()
    }
    return texts.replace_strict(known, return_dtype=pl.Int64)


def _items(catalogue: pl.DataFrame, *, since_ms: int) -> pl.DataFrame:
    return catalogue.select("item_id", pl.lit(since_ms).alias("ts"), "item_type", "category_id", "title", *_ITEM)


def _inference(shown: pl.DataFrame) -> pl.DataFrame:
    item = pl.struct(
        "item_id",
        "position",
        pl.col("propensity").alias("score"),  # the policy's own score was not published
        "propensity",
        pl.struct(pl.col("category_id").alias("item_category"), "item_type", *_ITEM).alias("features"),
    )
    return shown.select(
        "request_id",
        "user_id",
        pl.col("ts") - INFERENCE_BEFORE_MS,
        "page_id",
        "model_version",
        "arm",
        features=pl.struct(*_USER, "position", "propensity").struct.json_encode(),
        items=pl.format("[{}]", item.struct.json_encode()),
    )


def _behavior(shown: pl.DataFrame, event_type: str) -> pl.DataFrame:
    return shown.select(
        event_id=pl.format("{}-{}", "request_id", pl.lit(event_type)),
        event_type=pl.lit(event_type),
        ts=pl.col("ts") + (CLICK_AFTER_MS if event_type == "click" else 0),
        user_id="user_id",
        item_id="item_id",
        item_type="item_type",
        category_id="category_id",
        page_id="page_id",
        request_id="request_id",
        position="position",
        arm="arm",
    )
