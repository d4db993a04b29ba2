"""The bell that rings when samples are added: LISTEN, for who follows the ledger by number without polling it."""

from __future__ import annotations

import select

from rtrec_ray.postgres.connection import Connection, PostgresOptions, connect, translated
from rtrec_ray.postgres.statements import load

__all__ = ["LedgerBell"]


class LedgerBell:
    """Rings on PostgreSQL's channel rtrec_samples."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self._connection: Connection | None = None

    def wait(self, timeout_s: float) -> None:
        """Return when samples may have been added, at the latest after `timeout_s`. Raises StoreUnavailable."""
        with translated():
            try:
                self._wait(self._open(), timeout_s)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Give back its connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._options, application="rtrec-samples-bell")
            self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute(load("rtrec_ray.stores.changes", "changes.sql")["listen"])
        return self._connection

    @staticmethod
    def _wait(connection: Connection, timeout_s: float) -> None:
        if not connection.notifies:
            select.select([connection.fileno()], [], [], timeout_s)
        connection.poll()
        connection.notifies.clear()
