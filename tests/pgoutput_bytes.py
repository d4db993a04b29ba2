"""Messages of pgoutput, written: the other half of what the parser reads, for tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def begin(final_lsn: int, *, xid: int = 1, at_us: int = 0) -> bytes:
    return b"B" + struct.pack(">QqI", final_lsn, at_us, xid)


def commit(commit_lsn: int, end_lsn: int, *, at_us: int = 0) -> bytes:
    return b"C" + struct.pack(">BQQq", 0, commit_lsn, end_lsn, at_us)


def relation(oid: int, schema: str, name: str, columns: Sequence[str]) -> bytes:
    head = b"R" + struct.pack(">I", oid) + _text(schema) + _text(name) + b"d" + struct.pack(">H", len(columns))
    return head + b"".join(b"\0" + _text(column) + struct.pack(">Ii", 25, -1) for column in columns)


def insert(oid: int, values: Sequence[bytes | None]) -> bytes:
    cells = [b"n" if value is None else b"t" + struct.pack(">i", len(value)) + value for value in values]
    return b"I" + struct.pack(">I", oid) + b"N" + struct.pack(">H", len(values)) + b"".join(cells)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"
