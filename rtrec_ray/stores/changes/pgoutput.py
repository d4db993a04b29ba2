"""What PostgreSQL's plugin `pgoutput` says, from bytes to values and whole transactions.

Protocol version 1 (PostgreSQL manual, "Logical Replication Message Formats"): integers are big-endian, texts end with a
zero byte, values come in their text form. A ledger only grows, so a change of what was written is an error with a name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from rtrec_ray.errors import ChangeRefused

__all__ = ["Begin", "Commit", "Insert", "Message", "Relation", "Rows", "Transaction", "Transactions", "parse"]

Values = tuple[bytes | None, ...]

_BEGIN: Final = struct.Struct(">QqI")
_COMMIT: Final = struct.Struct(">BQQq")
_OID: Final = struct.Struct(">I")
_COUNT: Final = struct.Struct(">H")
_SIZE: Final = struct.Struct(">i")
_OF_COLUMN: Final = 8  # bytes after a column's name: type and modifier

_REFUSED: Final = {b"U": "UPDATE", b"D": "DELETE", b"T": "TRUNCATE"}
_SILENT: Final = (b"O", b"Y", b"M")  # origin, type, message: nothing that a row needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """A transaction begins. `final_lsn`: of its commit record."""

    final_lsn: int
    xid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table as the next inserts have it; comes again when it changed."""

    oid: int
    schema: str
    name: str
    columns: tuple[str, ...]

    @property
    def full_name(self) -> str:
        """With its schema."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """A new row of the table `oid`: each value in its text form, None for NULL."""

    oid: int
    values: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The transaction is whole. `end_lsn`: where the log goes on after it, which is what a reader acknowledges."""

    commit_lsn: int
    end_lsn: int


Message = Begin | Relation | Insert | Commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one shape: `values` by row, in the order of `columns`."""

    columns: tuple[str, ...]
    values: list[Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """All inserts of a transaction in their order; more than one part only where the table changed in between."""

    parts: tuple[Rows, ...]
    end_lsn: int


def parse(payload: bytes) -> Message | None:
    r"""One message; None for one that tells nothing of rows. Raises ChangeRefused for what a ledger never does.

    >>> parse(b"B" + bytes(7) + b"\x09" + bytes(8) + bytes(3) + b"\x05")
    Begin(final_lsn=9, xid=5)
    """
    kind = payload[:1]
    if kind == b"I":
        return _insert(payload)
    if kind == b"B":
        final_lsn, _, xid = _BEGIN.unpack_from(payload, 1)
        return Begin(final_lsn=final_lsn, xid=xid)
    if kind == b"C":
        _, commit_lsn, end_lsn, _ = _COMMIT.unpack_from(payload, 1)
        return Commit(commit_lsn=commit_lsn, end_lsn=end_lsn)
    if kind == b"R":
        return _relation(payload)
    if kind in _SILENT:
        return None
    raise _refusal(kind)


class Transactions:
    """Messages in, whole transactions out. One door: `handle`. `table`: the only one whose rows are expected."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._relations: dict[int, Relation] = {}
        self._parts: list[Rows] = []
        self.open = False  # inside a transaction

    def handle(self, payload: bytes) -> Transaction | None:
        """Take the next message; answers the transaction that it ends, also an empty one. Raises ChangeRefused."""
        message = parse(payload)
        if isinstance(message, Insert):
            self._add(message)
        elif isinstance(message, Relation):
            self._relations[message.oid] = message
        elif isinstance(message, Begin):
            self._parts, self.open = [], True
        elif isinstance(message, Commit):
            whole = Transaction(parts=tuple(self._parts), end_lsn=message.end_lsn)
            self._parts, self.open = [], False
            return whole
        return None

    def _add(self, insert: Insert) -> None:
        relation = self._relations.get(insert.oid)
        if relation is None or relation.full_name != self._table:
            found = f"the unannounced table {insert.oid}" if relation is None else relation.full_name
            raise ChangeRefused(
                f"the change log has a row of {found}, expected is {self._table}",
                mend="the publication must hold that table alone",
            )
        if not self._parts or self._parts[-1].columns != relation.columns:
            self._parts.append(Rows(columns=relation.columns, values=[]))
        self._parts[-1].values.append(insert.values)


def _refusal(kind: bytes) -> ChangeRefused:
    done = _REFUSED.get(kind)
    if done is None:
        return ChangeRefused(f"pgoutput sent a message of unknown kind {kind!r}")
    return ChangeRefused(
        f"somebody did {done} on the ledger, which only grows", mend="publish inserts alone, as the migration does"
    )


def _insert(payload: bytes) -> Insert:
    (oid,) = _OID.unpack_from(payload, 1)
    (count,) = _COUNT.unpack_from(payload, 6)  # after the byte N, "new row"
    values: list[bytes | None] = []
    at = 8
    size_at = _SIZE.unpack_from
    for _ in range(count):
        kind = payload[at]
        if kind == 0x74:  # t: text
            (size,) = size_at(payload, at + 1)
            start = at + 5
            at = start + size
            values.append(payload[start:at])
        elif kind == 0x6E:  # n: NULL
            at += 1
            values.append(None)
        else:
            raise ChangeRefused(f"a value of kind {chr(kind)!r} in an insert: only text and NULL are asked for")
    return Insert(oid=oid, values=tuple(values))


def _relation(payload: bytes) -> Relation:
    (oid,) = _OID.unpack_from(payload, 1)
    schema, at = _text(payload, 5)
    name, at = _text(payload, at)
    (count,) = _COUNT.unpack_from(payload, at + 1)  # after the replica identity
    at += 3
    columns = []
    for _ in range(count):
        column, at = _text(payload, at + 1)  # after its flags
        columns.append(column)
        at += _OF_COLUMN
    return Relation(oid=oid, schema=schema or "pg_catalog", name=name, columns=tuple(columns))


def _text(payload: bytes, at: int) -> tuple[str, int]:
    end = payload.index(0, at)
    return payload[at:end].decode(), end + 1
