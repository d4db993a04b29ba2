"""How the sample store's statements are run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import psycopg2.errors

from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.copy import copy_frame
from rtrec_ray.postgres.statements import load


def sql(name: str) -> str:
    """A statement of samples.sql."""
    return load("rtrec_ray.stores.samples", "samples.sql")[name]


def copied(cursor: Cursor, table: str, frame: pl.DataFrame) -> bool:
    """COPY straight into the table, four times as fast as by way of a staging table; False if a row was there."""
    cursor.execute("SAVEPOINT copied")
    try:
        copy_frame(cursor, table, frame)
    except psycopg2.errors.UniqueViolation:
        cursor.execute("ROLLBACK TO SAVEPOINT copied")
        return False
    cursor.execute("RELEASE SAVEPOINT copied")
    return True


def stage(cursor: Cursor, table: str, frame: pl.DataFrame) -> None:
    """Put the frame into a temporary table, emptied first."""
    cursor.execute(f"TRUNCATE pg_temp.{table}")
    copy_frame(cursor, f"pg_temp.{table}", frame)


def keys_of(frame: pl.DataFrame) -> dict[str, list[object]]:
    """The keys of the rows as parameters of a statement."""
    return {"request_ids": frame["request_id"].to_list(), "item_ids": frame["item_id"].to_list()}


def one(cursor: Cursor, name: str, parameters: Mapping[str, object] | None = None) -> tuple[Any, ...]:
    """The one row that a statement answers."""
    cursor.execute(sql(name), parameters)
    row = cursor.fetchone()
    assert row is not None
    return row


def rows(cursor: Cursor, name: str, parameters: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
    """All rows that a statement answers."""
    cursor.execute(sql(name), parameters)
    return cursor.fetchall()


def fetch(cursor: Cursor, name: str, parameters: Mapping[str, object], schema: pl.Schema) -> pl.DataFrame:
    """The same as columns."""
    return pl.DataFrame(rows(cursor, name, parameters), schema=schema, orient="row")
