"""How much each feature view keeps, counted by who writes and forgotten with the hour."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.store import HOUR_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSize:
    """What a live view keeps. `bytes`: of the keys and states of its tiles; `lists`: keys whose list serving reads.

    `oldest_ms`: event time (UTC) from which on hours are kept, None without tiles.
    """

    rows: int = 0
    bytes: int = 0
    lists: int = 0
    oldest_ms: int | None = None


def add_sizes(cursor: Cursor, tiles: pl.DataFrame, *, partition: int) -> None:
    """Count tiles (n, view_id, key, tile_start_ms, state) that this transaction writes."""
    added = tiles.group_by(pl.col("tile_start_ms") // HOUR_MS, "view_id").agg(
        pl.len().alias("rows"), (pl.col("key").str.len_bytes() + pl.col("state").str.len_bytes()).sum().alias("bytes")
    )
    columns = dict(zip(("hours", "view_ids", "rows", "bytes"), added.get_columns(), strict=True))
    cursor.execute(
        _sql()["add_sizes"], {"partition": partition, **{name: column.to_list() for name, column in columns.items()}}
    )


def forget_hour(cursor: Cursor, hour: int) -> None:
    """The tiles of this hour are dropped."""
    cursor.execute(_sql()["forget_hour"], {"hour": hour})


def read_sizes(cursor: Cursor) -> dict[str, ViewSize]:
    """Live view (NAME@VERSION) → what it keeps."""
    cursor.execute(_sql()["read_sizes"])
    return {
        view: ViewSize(rows=rows, bytes=size, lists=lists, oldest_ms=None if hour is None else hour * HOUR_MS)
        for view, rows, size, hour, lists in cursor.fetchall()
    }


def _sql() -> dict[str, str]:
    return load("rtrec_ray.stores.features", "sizes.sql")
