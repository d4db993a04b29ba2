"""Samples for tests of scans, put into both stores as they stand: revisions with the features of request and item."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Protocol

import polars as pl

from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.copy import copy_frame
from rtrec_ray.samples.columns import REQUEST_SCHEMA, SAMPLE_SCHEMA
from rtrec_ray.stores.samples.store import MemorySampleStore

DAY_MS = 86_400_000
FIRST_MS = 20_000 * DAY_MS
OWN = {
    "event_day": pl.Date,
    "request_id": pl.String,
    "item_id": pl.Int64,
    "revision": pl.Int64,
    "user_id": pl.Int64,
    "event_time_ms": pl.Int64,
    "page_id": pl.Int64,
    "arm": pl.String,
    "label": pl.Int64,
    "labels": pl.String,
    "item_features": pl.String,
    "source_partition": pl.Int64,
}


class Puts(Protocol):
    """Commits samples: one transaction, that of wall time `known_ms` if it is given."""

    def put(self, rows: Sequence[dict[str, Any]], *, known_ms: int | None = None) -> None: ...


def sample(request: str, item: int = 1, *, ts: int = FIRST_MS, asked: int | None = None, **changes: Any) -> dict:
    """A first negative revision, its request asked at `asked` (when it was shown, by default)."""
    asked_ms = ts if asked is None else asked
    row = {
        "request_id": request,
        "item_id": item,
        "revision": 0,
        "user_id": 7,
        "event_time_ms": ts,
        "asked_ms": asked_ms,
        "event_day": dt.datetime.fromtimestamp(asked_ms / 1_000, dt.UTC).date(),
        "page_id": None,
        "arm": None,
        "label": 0,
        "labels": '{"click": 0}',
        "features": '{"a": 1, "b": "x"}',
        "item_features": '{"c": [1, 2]}',
        "model_version": "v1",
        "request_arm": "a",
        "source_partition": 0,
    }
    return row | changes


def clicked(row: dict) -> dict:
    """The next revision, with a click."""
    return row | {"revision": row["revision"] + 1, "label": 1, "labels": '{"click": 1}'}


class PostgresPuts:
    """Into schema samples."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options

    def put(self, rows: Sequence[dict[str, Any]], *, known_ms: int | None = None) -> None:
        """See Puts."""
        with closing(connect(self._options)) as connection, transaction(connection) as cursor:
            cursor.execute(
                "INSERT INTO meta.counters AS c (name, value) VALUES ('samples', %(n)s)"
                " ON CONFLICT (name) DO UPDATE SET value = c.value + %(n)s RETURNING value",
                {"n": len(rows)},
            )
            last = cursor.fetchone()[0]
            cursor.execute("SELECT samples.ensure_days(%s::date[])", ([row["event_day"] for row in rows],))
            revisions = pl.DataFrame([{name: row[name] for name in OWN} for row in rows], schema=OWN)
            numbers = pl.int_range(last - len(rows) + 1, last + 1, eager=True).alias("commit_seq")
            copy_frame(cursor, "samples.revisions", revisions.with_columns(numbers))
            cursor.execute("CREATE TEMP TABLE asked (LIKE samples.requests) ON COMMIT DROP")
            asked = [
                {
                    "event_day": row["event_day"],
                    "request_id": row["request_id"],
                    "user_id": 7,
                    "event_time_ms": row["asked_ms"],
                    "model_version": row["model_version"],
                    "arm": row["request_arm"],
                    "features": row["features"],
                }
                for row in rows
            ]
            schema = {name: dtype for name, dtype in REQUEST_SCHEMA.items() if name in asked[0]}
            copy_frame(cursor, "asked", pl.DataFrame(asked, schema=schema).unique("request_id"))
            cursor.execute("INSERT INTO samples.requests SELECT * FROM asked ON CONFLICT DO NOTHING")
            cursor.execute(
                "UPDATE samples.revisions SET known_at = to_timestamp(%(ms)s / 1000.0)"
                " WHERE commit_seq > %(before)s AND %(ms)s IS NOT NULL",
                {"ms": known_ms, "before": last - len(rows)},
            )


class MemoryPuts:
    """Into the twin."""

    def __init__(self, store: MemorySampleStore) -> None:
        self._store = store

    def put(self, rows: Sequence[dict[str, Any]], *, known_ms: int | None = None) -> None:
        """See Puts."""
        merged = [
            row
            | {
                "known_at_ms": known_ms,
                "features": json.dumps(json.loads(row["features"]) | json.loads(row["item_features"] or "{}")),
                "arm": row["arm"] or row["request_arm"],
            }
            for row in rows
        ]
        known = [{name: row[name] for name in SAMPLE_SCHEMA if name in row} for row in merged]
        schema = {name: SAMPLE_SCHEMA[name] for name in known[0]}
        self._store.append(pl.DataFrame(known, schema=schema))
