"""One slot's stream on one connection: transactions as they come, and what is acknowledged."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg2
from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.postgres.connection import Connection, PostgresOptions, translated
from rtrec_ray.stores.changes.pgoutput import Transaction, Transactions

__all__ = ["SlotStream"]

PUBLICATION = "rtrec_samples"
TABLE = "samples.revisions"

_FEEDBACK_S = 5  # well within PostgreSQL's wal_sender_timeout of a minute


@contextmanager
def _ended() -> Iterator[None]:
    """A stream that the server closed in order is to psycopg2 an error without a code."""
    try:
        yield
    except psycopg2.DatabaseError as error:
        if error.pgcode is not None:
            raise
        raise StoreUnavailable(f"PostgreSQL ended the change log's stream: {error}") from error


class SlotStream:
    """Reads one message at a time, so what is not asked for stays with the server: TCP holds it back.

    `from_lsn`: where to begin, or where the slot is acknowledged if that is later.
    """

    def __init__(self, options: PostgresOptions, slot: str, *, from_lsn: int) -> None:
        self._transactions = Transactions(TABLE)
        with translated():
            self._connection = psycopg2.connect(
                options.dsn,
                connect_timeout=options.connect_timeout_s,
                application_name="rtrec-change-log",
                options="-c timezone=UTC -c datestyle=ISO",
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                connection_factory=LogicalReplicationConnection,
            )
            try:
                self._cursor: ReplicationCursor = self._connection.cursor()
                self._cursor.start_replication(
                    slot_name=slot,
                    start_lsn=from_lsn,
                    options={"proto_version": "1", "publication_names": PUBLICATION},
                    status_interval=_FEEDBACK_S,
                )
            except BaseException:
                self.close()
                raise
        self._feedback: Callable[..., None] = self._cursor.send_feedback
        self._passed = from_lsn
        self._acknowledged = 0

    @property
    def lsn(self) -> int:
        """All transactions that end before it were delivered."""
        return self._passed

    def next(self, *, timeout_s: float, session: Connection) -> Transaction | None:
        """The next transaction with rows, None when none came. Raises StoreUnavailable, ChangeRefused.

        `session`: an idle one on the same server. A server that ends waits for its streams until all they sent is
        acknowledged, which may be long; it ends sessions first, and so this one tells that the stream must go.
        """
        deadline_s = monotonic_s() + timeout_s
        with _ended(), translated():
            self._feedback()  # sent when it is time
            while True:
                message = self._cursor.read_message()
                if message is not None:
                    whole = self._transactions.handle(message.payload)
                    if whole is not None:
                        self._passed = max(self._passed, whole.end_lsn)
                    if whole is not None and whole.parts:
                        return whole
                    continue
                self._pass_quiet()
                left_s = deadline_s - monotonic_s()
                if left_s <= 0.0:
                    return None
                sockets = [self._connection.fileno(), session.fileno()]
                if sockets[1] in select.select(sockets, [], [], left_s)[0]:
                    raise StoreUnavailable("PostgreSQL ends its sessions")

    def acknowledge(self, lsn: int) -> None:
        """Tell the server that nothing before `lsn` is needed again. Raises StoreUnavailable."""
        if lsn > self._acknowledged:
            with _ended(), translated():
                self._feedback(flush_lsn=lsn, apply_lsn=lsn, write_lsn=lsn, force=True)
            self._acknowledged = lsn

    def close(self) -> None:
        """End the session; the slot stays."""
        with suppress(psycopg2.Error):
            self._connection.close()

    def _pass_quiet(self) -> None:
        """Log that has nothing for us passes by too: the server says how far it looked when it has nothing to send."""
        # Only between transactions: within one, the server names places before its commit.
        if not self._transactions.open:
            self._passed = max(self._passed, self._cursor.wal_end or 0)
