"""Retractions: each carries the whole event that it takes back, so nothing has to be looked up to undo it."""

from __future__ import annotations

from typing import Final

import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA

# An original in a retraction has no retraction of its own.
_CARRIED: Final = pl.Struct({name: kind for name, kind in BEHAVIOR_SCHEMA.items() if name != "retracts"})


def originals(retractions: pl.DataFrame) -> pl.DataFrame:
    """The events that retractions carry, (n, BEHAVIOR_SCHEMA), a row for each in their order."""
    carried = retractions.select(pl.col("retracts").str.json_decode(_CARRIED)).unnest("retracts")
    return carried.with_columns(retracts=pl.lit(None, dtype=pl.String)).select(BEHAVIOR_SCHEMA.names())
