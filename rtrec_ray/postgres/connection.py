"""Connections to PostgreSQL, and the one place where its errors are translated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, LifoQueue
from typing import Any
from uuid import uuid4

import psycopg2
import psycopg2.extensions
from psycopg2.extensions import connection as Connection  # noqa: N812 - they are classes with lower-case names
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from rtrec_ray.errors import StoreUnavailable

__all__ = ["Connection", "Cursor", "Pool", "PostgresOptions", "connect", "streamed", "transaction", "translated"]

_AWAY = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.AdminShutdown)

_OVER_A_LIMIT = "54"  # a row or an index entry too large: psycopg2 counts it as operational, but no retry mends it


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresOptions:
    """Where PostgreSQL is. `dsn` goes as it is to psycopg2.connect (libpq's words: sslmode, passfile, ...)."""

    dsn: str
    connect_timeout_s: int = 5
    statement_timeout_ms: int = 60_000


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg2's words for "the server is away" into StoreUnavailable."""
    try:
        yield
    except _AWAY as error:
        if (error.pgcode or "").startswith(_OVER_A_LIMIT):
            raise
        raise StoreUnavailable(
            f"PostgreSQL does not answer: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}",
            mend="`rtrec status` shows its address; the caller tries again",
        ) from error


def connect(options: PostgresOptions, *, application: str = "rtrec", pipeline: bool = False) -> Connection:
    """Open a connection. `pipeline`: of a process of the pipeline, whose session ends when it hangs in a transaction.

    Raises StoreUnavailable.
    """
    # A stopped owner must not hold the lease's row, nor its keeper the settings' or the lists'; other sessions may sit
    # on an exported snapshot: only these get this.
    hang = " -c idle_in_transaction_session_timeout=5s" if pipeline else ""
    with translated():
        return psycopg2.connect(
            options.dsn,
            connect_timeout=options.connect_timeout_s,
            application_name=application,
            options=f"-c statement_timeout={options.statement_timeout_ms} -c timezone=UTC{hang}",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )


@contextmanager
def transaction(connection: Connection) -> Iterator[Cursor]:
    """One transaction: committed at the end of the block, rolled back when it raises. Raises StoreUnavailable."""
    with translated(), connection, connection.cursor() as cursor:
        yield cursor


def streamed(
    cursor: Cursor, statement: str, parameters: Mapping[str, Any], *, rows_at_once: int
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a query some at a time, for results that need not fit into memory; in the cursor's transaction."""
    with cursor.connection.cursor(name=f"rows_{uuid4().hex}") as rows:
        rows.execute(statement, parameters)
        while some := rows.fetchmany(rows_at_once):
            yield some


class Pool:
    """At most `size` connections shared by the threads of a process; a broken one is thrown away, not handed on.

    `pipeline`: see `connect`.
    """

    def __init__(
        self, options: PostgresOptions, *, size: int = 4, application: str = "rtrec", pipeline: bool = False
    ) -> None:
        self._options = options
        self._application = application
        self._pipeline = pipeline
        self._free: LifoQueue[Connection | None] = LifoQueue()
        for _ in range(size):
            self._free.put(None)
        self._size = size

    @contextmanager
    def transaction(self, *, wait_s: float = 5.0) -> Iterator[Cursor]:
        """A transaction on a connection of the pool. Raises StoreUnavailable when none is free within `wait_s`."""
        with self._connection(wait_s) as connection, transaction(connection) as cursor:
            yield cursor

    @contextmanager
    def statement(self, *, wait_s: float = 5.0) -> Iterator[Cursor]:
        """For one statement, which is a transaction by itself: one round trip instead of three. Raises as above."""
        with self._connection(wait_s) as connection:
            connection.autocommit = True  # a matter of the client alone
            with translated(), connection.cursor() as cursor:
                yield cursor
            connection.autocommit = False

    @contextmanager
    def _connection(self, wait_s: float) -> Iterator[Connection]:
        try:
            connection = self._free.get(timeout=wait_s)
        except Empty:
            raise StoreUnavailable(f"all {self._size} connections to PostgreSQL are busy") from None
        try:
            if connection is None or connection.closed:
                connection = connect(self._options, application=self._application, pipeline=self._pipeline)
            yield connection
        except BaseException:
            _discard(connection)
            connection = None
            raise
        finally:
            self._free.put(connection)

    def close(self) -> None:
        """Close what is free now; connections in use are closed by their threads' end."""
        taken = []
        with suppress(Empty):
            while True:
                taken.append(self._free.get_nowait())
        for connection in taken:  # put back after all were taken: the queue's last in is its first out
            _discard(connection)
            self._free.put(None)


def _discard(connection: Connection | None) -> None:
    if connection is not None and not connection.closed:
        connection.close()
