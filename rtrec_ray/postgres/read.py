"""COPY to columns: the fastest way out of PostgreSQL that the driver has."""

from __future__ import annotations

import io
from typing import Final

import polars as pl

from rtrec_ray.postgres.connection import Cursor

# COPY's text format escapes these; a server's own JSON and most identifiers have none of them.
_ESCAPES: Final = {r"\\": "\\", r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\b": "\b", r"\f": "\f", r"\v": "\v"}


def copy_out(cursor: Cursor, statement: str, schema: pl.Schema) -> pl.DataFrame:
    """Run `COPY ... TO STDOUT` (text format) whose columns are `schema`; answers the rows.

    Text, not CSV: CSV doubles every quote, and rows with JSON consist of quotes.
    """
    out = io.BytesIO()
    cursor.copy_expert(statement, out)
    return parse_copy(out, schema)


def parse_copy(text: io.BytesIO, schema: pl.Schema) -> pl.DataFrame:
    r"""Rows in COPY's text format as columns.

    >>> parse_copy(io.BytesIO(b'1\ta\\tb\\\\n\n2\t\\N\n'), pl.Schema({"n": pl.Int64, "t": pl.String})).rows()
    [(1, 'a\tb\\n'), (2, None)]
    """
    if not text.getbuffer().nbytes:
        return pl.DataFrame(schema=schema)
    text.seek(0)
    raw = pl.read_csv(
        text,
        has_header=False,
        schema=schema,
        separator="\t",
        quote_char=None,
        null_values=r"\N",
        empty_string_is_null=False,
    )
    escaped = [
        name
        for name, dtype in schema.items()
        if dtype == pl.String and raw[name].str.contains("\\", literal=True).any()
    ]
    return raw.with_columns(pl.col(name).str.replace_many(_ESCAPES) for name in escaped) if escaped else raw
