"""Which events the samples are made of, and which identifiers can be stored."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from rtrec_ray.eventtime.identity import hash_ids
from rtrec_ray.samples.columns import ACTION_SCHEMA, IMPRESSION_SCHEMA, REQUEST_SCHEMA
from rtrec_ray.samples.definition import ACTIONS

# A b-tree entry of PostgreSQL takes 2,704 bytes; no request id that anybody means is longer than this.
MAX_REQUEST_ID_BYTES: Final = 512


def keyed() -> pl.Expr:
    """Which events name the request and the item that they belong to."""
    return (
        pl.col("request_id").is_not_null()
        & pl.col("item_id").is_not_null()
        & (pl.col("request_id").str.len_bytes() <= MAX_REQUEST_ID_BYTES)
    )


def impressions_of(events: pl.DataFrame) -> pl.DataFrame:
    """(n, BEHAVIOR_SCHEMA + offset) of keyed impressions → (n, IMPRESSION_SCHEMA)."""
    return events.select(
        "request_id",
        "item_id",
        "user_id",
        pl.col("ts").alias("event_time_ms"),
        "page_id",
        "position",
        "arm",
        pl.col("offset").alias("source_offset"),
    ).select(IMPRESSION_SCHEMA.names())


def actions_of(events: pl.DataFrame, *, taken_back: bool = False) -> pl.DataFrame:
    """(n, BEHAVIOR_SCHEMA) → (m, ACTION_SCHEMA) of those that are keyed actions."""
    acted = events.filter(pl.col("event_type").is_in(ACTIONS) & keyed().fill_null(False))
    return acted.select(
        "request_id",
        "item_id",
        pl.Series("action_id", hash_ids(acted["event_id"]).view(np.int64)),
        pl.col("event_type").alias("kind"),
        pl.col("ts").alias("action_ms"),
        pl.col("dwell_ms").alias("value"),
        pl.lit(taken_back).alias("taken_back"),
    ).select(ACTION_SCHEMA.names())


def requests_of(records: pl.DataFrame) -> pl.DataFrame:
    """(n, INFERENCE_SCHEMA) → (n, REQUEST_SCHEMA), without those whose identifier cannot be stored."""
    fit = records.filter(pl.col("request_id").str.len_bytes() <= MAX_REQUEST_ID_BYTES)
    event_day = pl.from_epoch("ts", time_unit="ms").dt.date()
    return fit.with_columns(event_day.alias("event_day"), pl.col("ts").alias("event_time_ms")).select(
        REQUEST_SCHEMA.names()
    )
