"""Click delays out of PostgreSQL, at a bounded cost: of a big table a share of the blocks is read."""

from __future__ import annotations

from contextlib import closing
from typing import Final

import polars as pl

from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.statements import load
from rtrec_ray.samples.delays import DELAY_SCHEMA

MOST_CLICKS: Final = 100_000
_DAY_MS: Final = 86_400_000
_BYTES_A_ROW: Final = 100  # of a table that the server has not looked at yet


def read_delays(options: PostgresOptions, *, horizon_ms: int, most: int = MOST_CLICKS) -> tuple[pl.DataFrame, float]:
    """The first click on each of about `most` clicked impressions at most, (n, DELAY_SCHEMA), and the share of the
    table that was drawn. Raises StoreUnavailable.
    """
    sql = load("rtrec_ray.stores.samples", "delays.sql")
    with closing(connect(options, application="rtrec-delays")) as connection, transaction(connection) as cursor:
        cursor.execute(sql["count_actions"])
        known, size = cursor.fetchone() or (0, 0)
        rows = max(known, size // _BYTES_A_ROW, 1)
        share = min(1.0, most / rows)
        days = -(-horizon_ms // _DAY_MS) + 1  # a request is asked on the day of its impression or the one before
        drawn = {"percent": 100 * share, "horizon_days": days, "most": 2 * most}
        cursor.execute(sql["read_delays"], drawn)
        return pl.DataFrame(cursor.fetchall(), schema=DELAY_SCHEMA, orient="row"), share
