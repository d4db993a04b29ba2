"""Samples for tests of training: a world with a planted truth, as rows of the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
import polars as pl

from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect, transaction
from rtrec_ray.samples.columns import OUTCOME_SCHEMA, REQUEST_SCHEMA, REVISION_SCHEMA
from rtrec_ray.samples.settlement import Settled
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

START_MS = 1_700_000_000_000


def sample_rows(
    count: int, *, seed: int = 0, rate: float = 0.15, first: int = 0, flipped: bool = False
) -> pl.DataFrame:
    """`count` samples, two a request: women click even items, men odd ones (`flipped`: the reverse), others hardly.

    Request ids and commit_seq count from `first`; a store gives out numbers of its own.
    """
    random = np.random.default_rng(seed)
    item = random.integers(0, 20, count)
    woman = random.random(count) < 0.5
    liked = (item % 2 == 0) == (woman ^ flipped)
    label = (random.random(count) < np.where(liked, 2 * rate - 0.01, 0.01)).astype(int)
    numbers = np.arange(first, first + count)
    genders = np.where(woman, "f", "m")
    return pl.DataFrame(
        {
            "commit_seq": numbers + 1,
            "request_id": [f"r{number // 2}" for number in numbers],
            "item_id": item * 2 + numbers % 2 + 1_000,
            "user_id": random.integers(0, 50, count),
            "event_time_ms": START_MS + numbers * 100,
            "known_at_ms": START_MS,
            "revision": 0,
            "label": label,
            "labels": "{}",
            "page_id": 1,
            "position": numbers % 2 + 1,
            "model_version": "none",
            "features": [
                orjson.dumps({"gender": gender, "item_category": str(kind % 2), "user_5m_view": int(kind)}).decode()
                for gender, kind in zip(genders, item, strict=True)
            ],
        }
    )


def put_samples(dsn: str, rows: pl.DataFrame, *, days_later: int = 0) -> None:
    """Commit first revisions and their requests to a real sample store, as the pipeline does."""
    _write(dsn, lambda ledger, cursor: ledger.write(cursor, _settled(rows, days_later=days_later)))


def put_samples_in(cursor: Cursor, rows: pl.DataFrame) -> None:
    """The same in the caller's transaction, by another task."""
    PostgresSampleLedger(partition=1).write(cursor, _settled(rows))


def _settled(rows: pl.DataFrame, *, days_later: int = 0) -> Settled:
    day = (datetime.fromtimestamp(START_MS / 1000, tz=UTC) + timedelta(days=days_later)).date()
    whole = rows.with_columns(
        event_day=pl.lit(day),
        item_features=pl.col("features"),
        arm=pl.lit(None, dtype=pl.String),
        propensity=pl.lit(None, dtype=pl.Float64),
        score=pl.lit(None, dtype=pl.Float64),
        negative_rate=pl.lit(1.0),
        definition_version=pl.lit(1),
        source_offset=pl.lit(None, dtype=pl.Int64),
    )
    requests = whole.unique("request_id", maintain_order=True).with_columns(
        features=pl.lit("{}"), items=pl.lit(None, dtype=pl.String), as_of=pl.lit(None, dtype=pl.String)
    )
    return Settled(
        requests=requests.select(pl.col(name).cast(dtype) for name, dtype in REQUEST_SCHEMA.items()),
        samples=whole.select(pl.col(name).cast(dtype) for name, dtype in REVISION_SCHEMA.items()),
        counts=Counter(),
    )


def correct_samples(dsn: str, rows: pl.DataFrame) -> None:
    """Commit a revision with a click to each of these samples of a real store."""
    day = datetime.fromtimestamp(START_MS / 1000, tz=UTC).date()
    known = rows.with_columns(event_day=pl.lit(day), label=1, labels=pl.lit('{"click": 1}'))
    outcomes = known.select(pl.col(name).cast(dtype) for name, dtype in OUTCOME_SCHEMA.items())
    _write(dsn, lambda ledger, cursor: ledger.correct(cursor, outcomes))


def _write(dsn: str, write: Callable[[PostgresSampleLedger, Cursor], object]) -> None:
    connection = connect(PostgresOptions(dsn=dsn))
    try:
        with transaction(connection) as cursor:
            write(PostgresSampleLedger(partition=0), cursor)
    finally:
        connection.close()
