"""COPY: the fastest way into PostgreSQL and out of it that the driver has."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Final, Literal

import polars as pl

from rtrec_ray.postgres.connection import Cursor

Kind = Literal["int4", "int8", "bool", "bytea"]

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_PACK: Final[Mapping[Kind, Callable[[Any], bytes]]] = {
    "int4": Struct(">i").pack,
    "int8": Struct(">q").pack,
    "bool": Struct(">?").pack,
    "bytea": bytes,
}


def copy_frame(cursor: Cursor, table: str, frame: pl.DataFrame) -> int:
    """Append `frame` to `table`; its column names are the table's. Answers the number of rows.

    A null is an unquoted empty field and an empty text a quoted one, which is how COPY's CSV tells them apart.
    Sort the frame by the primary key first: measured at 432 k rows/s against 267 k/s unsorted.
    """
    if frame.is_empty():
        return 0
    buffer = io.BytesIO()
    frame.write_csv(buffer, include_header=False, quote_style="non_numeric", null_value="")
    buffer.seek(0)
    columns = ", ".join(f'"{name}"' for name in frame.columns)
    cursor.copy_expert(f"COPY {table} ({columns}) FROM STDIN (FORMAT csv)", buffer)
    return frame.height


def copy_bytes(cursor: Cursor, table: str, columns: Mapping[str, Kind], rows: Iterable[Sequence[Any]]) -> None:
    """Append rows, of which some fields are long bytes and none is null; `columns`: name → type.

    In binary: in a statement bytes are twice as long, and the server reads them letter by letter three times.
    """
    buffer = io.BytesIO()
    buffer.write(_HEADER)
    for row in rows:
        buffer.write(len(columns).to_bytes(2))
        for kind, value in zip(columns.values(), row, strict=True):
            field = _PACK[kind](value)
            buffer.write(len(field).to_bytes(4))
            buffer.write(field)
    buffer.write(_END)
    buffer.seek(0)
    names = ", ".join(f'"{name}"' for name in columns)
    cursor.copy_expert(f"COPY {table} ({names}) FROM STDIN (FORMAT binary)", buffer)


def copied_bytes(cursor: Cursor, query: str, parameters: Mapping[str, Any]) -> Iterator[bytes]:
    """The values of a query of one column, bytea and not null; all are read at once.

    In binary: as text, which is all that the driver knows otherwise, bytes are twice as long and take six times as much
    of the reader's time.
    """
    buffer = io.BytesIO()
    select = cursor.mogrify(query.rstrip().removesuffix(";"), parameters).decode()
    cursor.copy_expert(f"COPY ({select}) TO STDOUT (FORMAT binary)", buffer)
    buffer.seek(len(_HEADER))
    # Of each row the number of its fields, and of each field its length; -1 fields is the end.
    while int.from_bytes(buffer.read(2), signed=True) > 0:
        yield buffer.read(int.from_bytes(buffer.read(4)))
