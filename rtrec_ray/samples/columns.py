"""The columns in which samples travel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
        "negative_rate": pl.Float64,  # share in (0, 1] of the negatives that were kept where it comes from
        "definition_version": pl.Int64,  # of the rules of its labels
    }
)
"""One revision of one sample, as readers of the ledger get it."""

LEDGER_SCHEMA: Final = pl.Schema([*SAMPLE_SCHEMA.items(), ("backfilled", pl.String())])
"""The same with what is added later, which a stream of revisions does not have: a JSON object of features computed
afterwards, null for none.
"""

IMPRESSION_SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "item_id": pl.Int64,
        "user_id": pl.Int64,
        "event_time_ms": pl.Int64,
        "page_id": pl.Int64,
        "position": pl.Int64,
        "arm": pl.String,
        "source_offset": pl.Int64,  # of the impression in its Kafka partition
    }
)
"""An impression on its way to its outcome."""

ACTION_SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "item_id": pl.Int64,
        "action_id": pl.Int64,  # hash of event_id
        "kind": pl.String,  # event_type
        "action_ms": pl.Int64,
        "value": pl.Int64,  # dwell_ms
        "taken_back": pl.Boolean,
    }
)
"""What a user did with a shown item, once for each event id, or the retraction of it."""

HELD_SCHEMA: Final = pl.Schema(
    [*ACTION_SCHEMA.items(), ("held", pl.Boolean()), ("expires_ms", pl.Int64()), ("spilled", pl.Boolean())]
)
"""An action as it is stored. `held`: its impression is not known, or has no outcome yet. `spilled`: the store alone has
it, until its impression comes.
"""

KEY_SCHEMA: Final = pl.Schema({"request_id": pl.String, "item_id": pl.Int64})
"""Keys of samples."""

OPEN_SCHEMA: Final = pl.Schema(
    [
        *IMPRESSION_SCHEMA.items(),
        ("over_ms", pl.Int64()),
        ("horizon_ms", pl.Int64()),
        ("on_click", pl.Boolean()),
        ("emitted", pl.Boolean()),
    ]
)
"""An impression whose wait is not over: the watermark at which it is, and its rules. `emitted`: it has its outcome."""

REQUEST_SCHEMA: Final = pl.Schema(
    {
        "event_day": pl.Date,
        "request_id": pl.String,
        "user_id": pl.Int64,
        "event_time_ms": pl.Int64,
        "page_id": pl.Int64,
        "model_version": pl.String,
        "arm": pl.String,
        "features": pl.String,
        "items": pl.String,
        "as_of": pl.String,
    }
)
"""What serving knew when it answered: written once per request. `event_day` of its own time: all samples of a request
lie in one partition, so that the primary key alone finds a repeated impression, whatever day it comes on."""

KNOWN_SCHEMA: Final = pl.Schema(
    {"request_id": pl.String, "event_day": pl.Date, "event_time_ms": pl.Int64, "page_id": pl.Int64, "items": pl.String}
)
"""What a sample needs of its request."""

RANKED_SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "item_id": pl.Int64,
        "ranked_position": pl.Int64,
        "score": pl.Float64,
        "propensity": pl.Float64,
        "item_features": pl.String,
    }
)
"""One item of an answer, with the features of its own as JSON text."""

REVISION_SCHEMA: Final = pl.Schema(
    {
        "event_day": pl.Date,
        "request_id": pl.String,
        "item_id": pl.Int64,
        "user_id": pl.Int64,
        "event_time_ms": pl.Int64,
        "page_id": pl.Int64,
        "position": pl.Int64,
        "arm": pl.String,
        "label": pl.Int64,
        "labels": pl.String,
        "item_features": pl.String,
        "propensity": pl.Float64,
        "score": pl.Float64,
        "negative_rate": pl.Float64,
        "definition_version": pl.Int64,
        "source_offset": pl.Int64,
    }
)
"""A first revision as it is written."""

OUT_SCHEMA: Final = pl.Schema([("event_day", pl.Date()), *IMPRESSION_SCHEMA.items()])
"""An impression without a click that was not drawn into the sample."""

OUTCOME_SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "item_id": pl.Int64,
        "event_day": pl.Date,
        "revision": pl.Int64,
        "label": pl.Int64,
        "labels": pl.String,
        "event_time_ms": pl.Int64,
        "page_id": pl.Int64,
    }
)
"""The newest revision of a sample, as far as correcting it needs; of a correction, with the labels it is to have."""


def empty(schema: pl.Schema) -> pl.DataFrame:
    """A frame without rows."""
    # A commit asks for some twenty, and each takes 0.6 ms to make.
    return _empty(tuple(schema.items())).clone()


@lru_cache(maxsize=64)
def _empty(columns: tuple[tuple[str, pl.DataType], ...]) -> pl.DataFrame:
    return pl.DataFrame(schema=dict(columns))


def gather(frames: list[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
    """The rows of `frames` one after another; the list is emptied."""
    whole = pl.concat(frames) if frames else empty(schema)
    frames.clear()
    return whole


def within(rows: pl.DataFrame, others: pl.DataFrame, on: str | Sequence[str] = KEY) -> pl.DataFrame:
    """The rows whose key is among the keys of `others`, in their order."""
    if rows.is_empty() or others.is_empty():  # most commits touch few of the tables: a join of nothing takes 0.3 ms
        return rows.clear()
    return rows.join(others, on=on, how="semi", maintain_order="left")


def without(rows: pl.DataFrame, others: pl.DataFrame, on: str | Sequence[str] = KEY) -> pl.DataFrame:
    """The rows whose key is not among the keys of `others`, in their order."""
    if rows.is_empty() or others.is_empty():
        return rows
    return rows.join(others, on=on, how="anti", maintain_order="left")
