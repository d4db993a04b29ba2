"""The columns in which samples travel."""

from __future__ import annotations

from typing import Final

import polars as pl

KEY: Final = ("request_id", "item_id")
"""What identifies a sample: one item shown in the answer to one request."""

SAMPLE_SCHEMA: Final = pl.Schema(
    {
        "commit_seq": pl.Int64,  # place in the ledger: one number per row, in commit order
        "request_id": pl.String,
        "item_id": pl.Int64,
        "user_id": pl.Int64,
        "event_time_ms": pl.Int64,  # of the impression, UTC
        "known_at_ms": pl.Int64,  # when the revision was written, wall time UTC
        "revision": pl.Int64,  # 0 for the first, rising by one
        "label": pl.Int64,  # 1: clicked
        "old_label": pl.Int64,  # of the revision before; null in the first
        "labels": pl.String,  # JSON object: name of the label → value
        "page_id": pl.Int64,
        "position": pl.Int64,
        "propensity": pl.Float64,  # probability in (0, 1] of being shown there
        "score": pl.Float64,  # what the model said
        "model_version": pl.String,
        "arm": pl.String,
        "features": pl.String,  # JSON object: the request's features, overridden by the item's own
    }
)
"""One revision of one sample, as readers of the ledger get it."""
