"""Which events the samples are made of, and which identifiers can be stored."""

from __future__ import annotations

from typing import Final

import polars as pl

from rtrec_ray.samples.columns import CLICK_SCHEMA, IMPRESSION_SCHEMA, REQUEST_SCHEMA

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


def clicks_of(events: pl.DataFrame) -> pl.DataFrame:
    """(n, BEHAVIOR_SCHEMA + offset) of keyed clicks → (n, CLICK_SCHEMA)."""
    return events.select("request_id", "item_id", pl.col("ts").alias("click_ms")).select(CLICK_SCHEMA.names())


def requests_of(records: pl.DataFrame) -> pl.DataFrame:
    """(n, INFERENCE_SCHEMA) → (n, REQUEST_SCHEMA), without those whose identifier cannot be stored."""
    fit = records.filter(pl.col("request_id").str.len_bytes() <= MAX_REQUEST_ID_BYTES)
    event_day = pl.from_epoch("ts", time_unit="ms").dt.date()
    return fit.with_columns(event_day.alias("event_day"), pl.col("ts").alias("event_time_ms")).select(
        REQUEST_SCHEMA.names()
    )
