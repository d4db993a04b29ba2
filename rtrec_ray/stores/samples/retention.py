"""Samples that are old enough are removed, a day at a time.

Old is measured by the watermark, never by wall time. A day stays while one of its samples can still be corrected, or a
reader of the ledger has not come to its end. Its tables are detached without locking readers out, then dropped; what
a look cannot do (a scan is in the day, the server goes away) the next one does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, takewhile
from typing import Final

from psycopg2 import errors, sql

from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect, transaction, translated
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.samples.scan import day_of

_DAY_MS: Final = 86_400_000
_EPOCH: Final = dt.date(1970, 1, 1).toordinal()
_DELETED_AT_ONCE: Final = 50_000
_BUSY: Final = (errors.LockNotAvailable, errors.QueryCanceled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What retention has removed. `kept_from_ms`: midnight UTC from which all is kept, None before the first removal;
    `partitions` of a day, over all tables; `misses`: rows; `held_by`: why an older day is still there, empty: none is.
    `busy`: only because somebody reads in it.
    """

    kept_from_ms: int | None = None
    partitions: int = 0
    misses: int = 0
    held_by: str = ""
    busy: bool = False

    def as_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayTable:
    """A table of one day. `state`: attached to its parent, pending (being detached), detached."""

    parent: str
    name: str
    day: dt.date
    state: str


def bound_of(watermark_ms: int, *, keep_ms: int) -> int:
    """The midnight UTC before which samples are old, ms.

    >>> bound_of(10 * 86_400_000 + 5, keep_ms=86_400_000) // 86_400_000
    9
    """
    return (watermark_ms - keep_ms) // _DAY_MS * _DAY_MS


class PostgresSampleRetention:
    """Removes from schema samples what is older than `keep_ms` of event time. Each call opens its own connection."""

    def __init__(self, options: PostgresOptions, *, keep_ms: int) -> None:
        self._options = options
        self._keep_ms = keep_ms

    def remove_expired(self) -> Removed:
        """One look; answers what it removed. Raises StoreUnavailable."""
        with self._statements() as cursor:
            cursor.execute(_sql("watermark"))
            found = cursor.fetchone()
            if found is None or found[0] is None:
                return Removed()
            bound_ms = bound_of(found[0], keep_ms=self._keep_ms)
            removed, held_by, busy = 0, "", False
            for tables in _old_days(cursor, bound_ms):
                held_by = _held_by(cursor, tables, bound_ms=bound_ms)
                done = 0 if held_by else _remove_day(cursor, tables)
                removed += done
                if not held_by and done < len(tables):
                    held_by, busy = f"readers of {tables[0].day}", True
                if held_by:  # of a later day nothing goes before it: what is kept has no hole
                    break
            misses = 0 if held_by else _remove_rows(cursor, bound_ms)
            made = Removed(
                kept_from_ms=bound_ms if removed or misses else None,
                partitions=removed,
                misses=misses,
                held_by=held_by,
                busy=busy,
            )
            cursor.execute(_sql("put_retention"), made.as_dict())
            return made

    @contextmanager
    def _statements(self) -> Iterator[Cursor]:
        """Each statement is a transaction: a partition is not detached concurrently within one."""
        with closing(connect(self._options, application="rtrec-retention")) as connection:
            connection.autocommit = True
            with translated(), connection.cursor() as cursor:
                cursor.execute(_sql("patience"))
                yield cursor


def read_removed(options: PostgresOptions) -> Removed:
    """All that retention has removed so far. Raises StoreUnavailable."""
    with (
        closing(connect(options, application="rtrec-retention-read")) as connection,
        transaction(connection) as cursor,
    ):
        cursor.execute(_sql("read_retention"))
        row = cursor.fetchone()
    if row is None:
        return Removed()
    return Removed(kept_from_ms=row[0], partitions=row[1], misses=row[2], held_by=row[3])


def _old_days(cursor: Cursor, bound_ms: int) -> list[list[DayTable]]:
    cursor.execute(_sql("list_tables"))
    tables = [DayTable(parent=row[0], name=row[1], day=row[2], state=row[3]) for row in cursor.fetchall()]
    old = [table for table in tables if table.day < day_of(bound_ms)]
    return [list(of_day) for _, of_day in groupby(old, key=lambda table: table.day)]


def _held_by(cursor: Cursor, tables: list[DayTable], *, bound_ms: int) -> str:
    if any(table.state != "attached" for table in tables):
        return ""  # it was decided at an earlier look
    for table in tables:
        cursor.execute(_named("shown_later", table), {"bound_ms": bound_ms})
        if _first(cursor):
            return f"items of requests of {table.day} that were shown later"
    for table in tables:
        if table.parent == "revisions":
            cursor.execute(_named("still_needed", table))
            name = _first(cursor)
            if name is not None:
                return f"training run {name}, which has not read {table.day} yet"
    return ""


def _remove_day(cursor: Cursor, tables: list[DayTable]) -> int:
    """How many went, up to the first that somebody reads in: a sample is never there without its request."""
    # Said before it is done: new readers do not see a day any more from the moment at which it is being detached.
    after_ms = (tables[0].day.toordinal() - _EPOCH + 1) * _DAY_MS
    cursor.execute(_sql("put_retention"), Removed(kept_from_ms=after_ms).as_dict())
    return sum(1 for _ in takewhile(partial(_remove, cursor), tables))


def _remove(cursor: Cursor, table: DayTable) -> bool:
    steps = {"attached": ("detach", "drop"), "pending": ("finalize", "drop"), "detached": ("drop",)}[table.state]
    try:
        for step in steps:
            cursor.execute(_named(step, table))
    except _BUSY:
        return False
    return True


def _remove_rows(cursor: Cursor, bound_ms: int) -> int:
    for statement in ("drop_actions", "drop_backfilled"):
        _remove_portions(cursor, statement, bound_ms)
    return _remove_portions(cursor, "drop_misses", bound_ms)


def _remove_portions(cursor: Cursor, statement: str, bound_ms: int) -> int:
    total = 0
    while True:
        cursor.execute(_sql(statement), {"bound_ms": bound_ms, "most": _DELETED_AT_ONCE})
        total += cursor.rowcount
        if cursor.rowcount < _DELETED_AT_ONCE:
            return total


def _first(cursor: Cursor) -> object:
    row = cursor.fetchone()
    return None if row is None else row[0]


def _named(statement: str, table: DayTable) -> sql.Composed:
    return sql.SQL(_sql(statement)).format(parent=sql.Identifier(table.parent), table=sql.Identifier(table.name))


def _sql(name: str) -> str:
    return load("rtrec_ray.stores.samples", "retention.sql")[name]
