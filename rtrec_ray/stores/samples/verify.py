"""What the live side of `rtrec samples verify` knows of itself."""

from __future__ import annotations

from contextlib import closing
from typing import Final

import polars as pl

from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect, transaction
from rtrec_ray.postgres.statements import load
from rtrec_ray.samples.columns import KEY
from rtrec_ray.samples.verify import STITCHED_SCHEMA, Standing
from rtrec_ray.stores.progress import read_positions
from rtrec_ray.stores.samples.retention import read_removed

_KEYS: Final = pl.Schema({name: STITCHED_SCHEMA[name] for name in KEY})
_ORIGIN: Final = pl.Schema({name: STITCHED_SCHEMA[name] for name in (*KEY, "source_partition", "source_offset")})


def read_standing(options: PostgresOptions, *, from_ms: int, to_ms: int, wait_ms: int) -> Standing:
    """How far the sample stage and the history are; misses and negatives not drawn of [from_ms, to_ms).

    Raises StoreUnavailable.
    """
    within = {"from_ms": from_ms, "to_ms": to_ms}
    removed = read_removed(options)
    with closing(connect(options, application="rtrec-verify")) as connection, transaction(connection) as cursor:
        cursor.execute(_sql("watermark"))
        found = cursor.fetchone()
        cursor.execute(_sql("read_mixed"))
        (mixed,) = cursor.fetchone() or (False,)
        return Standing(
            watermark_ms=None if found is None else found[0],
            wait_ms=wait_ms,
            applied=read_positions(cursor, task="samples", topic=BEHAVIOR),
            inferred=read_positions(cursor, task="samples", topic=INFERENCE),
            written=read_positions(cursor, task="history", topic=BEHAVIOR),
            mixed=mixed,
            kept_from_ms=removed.kept_from_ms,
            misses=_keys(cursor, "list_misses", within),
            sampled_out=_keys(cursor, "list_sampled_out", within),
        )


def read_origins(options: PostgresOptions, keys: pl.DataFrame) -> pl.DataFrame:
    """Partition and offset of the impressions of these samples: KEY + source_partition, source_offset."""
    values = {"request_ids": keys["request_id"].to_list(), "item_ids": keys["item_id"].to_list()}
    with closing(connect(options, application="rtrec-verify")) as connection, transaction(connection) as cursor:
        cursor.execute(_sql("find_origins"), values)
        return pl.DataFrame(cursor.fetchall(), schema=_ORIGIN, orient="row")


def _keys(cursor: Cursor, statement: str, within: dict[str, int]) -> pl.DataFrame:
    cursor.execute(_sql(statement), within)
    return pl.DataFrame(cursor.fetchall(), schema=_KEYS, orient="row")


def _sql(name: str) -> str:
    return load("rtrec_ray.stores.samples", "verify.sql")[name]
