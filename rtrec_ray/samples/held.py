"""Clicks that wait: for their impression, or for its outcome."""

from __future__ import annotations

import polars as pl

from rtrec_ray.samples.columns import CLICK_SCHEMA, HELD_SCHEMA, KEY, empty, within, without


class HeldClicks:
    """The earliest waiting click of each key, and which of them the store has yet to learn of.

    A click that is committed is never read again, so between its commit and the outcome of its impression it is a row.
    """

    def __init__(self, stored: pl.DataFrame) -> None:
        self._frame = stored.select(HELD_SCHEMA.names())
        self._gone = empty(CLICK_SCHEMA)

    @property
    def clicks(self) -> pl.DataFrame:
        """(n, CLICK_SCHEMA)."""
        return self._frame.select(CLICK_SCHEMA.names())

    def hold(self, clicks: pl.DataFrame, *, expires_ms: pl.Expr) -> None:
        """Keep clicks (n, CLICK_SCHEMA); of two on one key the earlier counts."""
        if clicks.is_empty():
            return
        more = clicks.select(*CLICK_SCHEMA.names(), expires_ms.alias("expires_ms"), pl.lit(False).alias("stored"))
        both = pl.concat([self._frame, more.cast(HELD_SCHEMA)])
        # A stored row that is the earliest stays as it is: writing it again would change nothing.
        self._frame = both.sort("click_ms", ~pl.col("stored"), maintain_order=True).unique(
            KEY, keep="first", maintain_order=True
        )

    def release(self, keys: pl.DataFrame) -> None:
        """Their impressions have an outcome that contains the click."""
        self._drop(within(self._frame, keys))

    def expire(self, *, watermark_ms: int, but: pl.DataFrame) -> int:
        """Drop the clicks whose time is over, `but` those of these keys; answers how many."""
        over = without(self._frame.filter(pl.col("expires_ms") <= watermark_ms), but)
        self._drop(over)
        return over.height

    def changes(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows to put (HELD_SCHEMA) and keys to drop (CLICK_SCHEMA) in the store since the last call."""
        put, gone = self._frame.filter(~pl.col("stored")), self._gone
        self._frame = self._frame.with_columns(pl.lit(True).alias("stored"))
        self._gone = empty(CLICK_SCHEMA)
        return put, gone

    def _drop(self, rows: pl.DataFrame) -> None:
        if rows.is_empty():
            return
        self._frame = without(self._frame, rows)
        self._gone = pl.concat([self._gone, rows.filter(pl.col("stored")).select(CLICK_SCHEMA.names())])
