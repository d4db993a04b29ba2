"""Revisions as the change log has them, to samples as readers of the ledger get them. Columns in, columns out.

The view `samples.ledger` does the same in SQL; the contract of the change log holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
import polars as pl

from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.changes.pgoutput import Rows, Transaction

__all__ = ["REQUEST_SCHEMA", "attached", "revisions", "wants_request"]

REQUEST_SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "event_day": pl.String,
        "model_version": pl.String,
        "request_arm": pl.String,
        "request_features": pl.String,
    }
)
"""What a revision takes from its request, found by the first two."""

_OF_REQUEST: Final = ("model_version", "arm", "features")
_RENAMED: Final = {"features": "item_features"}  # of the row alone; the request's come beside it
_KEYS: Final = ("commit_seq", "request_id", "event_day")


def wants_request(columns: Sequence[str]) -> bool:
    """Whether any of the columns has a part that is kept with the request."""
    return any(name in columns for name in _OF_REQUEST)


def revisions(transaction: Transaction, columns: Sequence[str]) -> pl.DataFrame:
    """Its rows by commit_seq, with what of `columns` the row itself has, as text of the day and typed values."""
    frames = [_frame(part, columns) for part in transaction.parts]
    whole = pl.concat(frames, how="diagonal") if frames else pl.DataFrame(schema={"commit_seq": pl.Int64})
    return whole.sort("commit_seq")


def attached(rows: pl.DataFrame, requests: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Rows of `revisions` with what their requests have, (n, columns). `requests`: (m, REQUEST_SCHEMA), each once."""
    if wants_request(columns):
        rows = rows.join(requests, on=["request_id", "event_day"], how="left", maintain_order="left")
    if "arm" in columns:
        rows = rows.with_columns(pl.coalesce("arm", "request_arm").alias("arm"))
    if "features" in columns:
        rows = rows.with_columns(_merged(rows["request_features"], rows["item_features"]))
    return rows.select(pl.col(name).cast(SAMPLE_SCHEMA[name]) for name in columns)


def _frame(part: Rows, columns: Sequence[str]) -> pl.DataFrame:
    wanted = dict.fromkeys((*_KEYS, *(_RENAMED.get(name, name) for name in columns)))
    place = {name: index for index, name in enumerate(part.columns)}
    by_column = list(zip(*part.values, strict=True))
    if "known_at_ms" in wanted:
        wanted["known_at"] = None
    frame = pl.DataFrame(
        {name: pl.Series(by_column[place[name]], dtype=pl.Binary) for name in wanted if name in place}
    ).cast(pl.String)
    if "known_at" in frame.columns:
        frame = frame.with_columns(_milliseconds(frame["known_at"]).alias("known_at_ms")).drop("known_at")
    typed = [name for name in frame.columns if name in SAMPLE_SCHEMA]
    return frame.with_columns(pl.col(name).cast(SAMPLE_SCHEMA[name]) for name in typed)


def _milliseconds(texts: pl.Series) -> pl.Series:
    """Times in PostgreSQL's text form, UTC, in ms; rounded as its cast to bigint rounds."""
    at = texts.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", time_unit="us", time_zone="UTC")
    return (at.dt.epoch("us") + 500) // 1_000


def _merged(request: pl.Series, own: pl.Series) -> pl.Series:
    """JSON objects: the request's features, overridden by the item's own. Each request's text is read once."""
    parsed: dict[str | None, dict[str, Any]] = {text: orjson.loads(text or "{}") for text in request.unique()}
    merged = [
        (text or "{}") if extra is None else orjson.dumps(parsed[text] | orjson.loads(extra)).decode()
        for text, extra in zip(request, own, strict=True)
    ]
    return pl.Series("features", merged, dtype=pl.String)
