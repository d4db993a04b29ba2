"""One owner per (task, partition): a lease row with an epoch.

A commit's first statement renews the lease where the epoch still matches, so an owner that was killed, stopped or
doubled can neither lose nor double anything (fencing tokens: Kleppmann, "How to do distributed locking", 2016). A
takeover reads the row without a lock and ends the old owner's backend first, because a stopped owner may be holding the
row's lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from rtrec_ray.errors import LeaseHeld, LeaseLost, StoreUnavailable
from rtrec_ray.postgres.connection import Connection, Cursor, PostgresOptions, connect, transaction, translated
from rtrec_ray.postgres.statements import load

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write for one partition of a task, as long as the row's epoch is this one. `ttl_ms` in wall time."""

    task: str
    partition: int
    epoch: int
    ttl_ms: int


def take(connection: Connection, *, task: str, partition: int, owner: str, ttl_ms: int) -> Lease:
    """Take the lease of a partition whose owner's time is over or whose session is gone.

    Raises LeaseHeld while another owner lives, StoreUnavailable.
    """
    sql = load(__package__, "core.sql")
    key: dict[str, object] = {"task": task, "partition": partition}
    with transaction(connection) as cursor:
        epoch, holder, pid, backend_start, live = _read(cursor, key)
        if live:
            raise LeaseHeld(f"{task}[{partition}] belongs to {holder}")
        cursor.execute(sql["end_backend"], {"pid": pid, "backend_start": backend_start})
        cursor.execute(sql["take_lease"], {**key, "owner": owner, "ttl_ms": ttl_ms, "epoch": epoch})
        row = cursor.fetchone()
    if row is None:
        raise LeaseHeld(f"{task}[{partition}] was taken by another owner at the same moment")
    return Lease(task=task, partition=partition, epoch=int(row[0]), ttl_ms=ttl_ms)


def fence(cursor: Cursor, leases: Iterable[Lease]) -> None:
    """Renew the leases: the first statements of a commit. Raises LeaseLost when one has a newer epoch."""
    for lease in leases:
        _on_row(cursor, "fence_lease", lease)
        if cursor.rowcount != 1:
            raise LeaseLost(f"{lease.task}[{lease.partition}] epoch {lease.epoch} was taken over")


@contextmanager
def kept(lease: Lease, options: PostgresOptions, *, application: str) -> Iterator[None]:
    """Renew the lease from connections of its own for the block, for an owner whose transactions outlast its time.

    Such a transaction must fence itself as its last statement: the first would lock the row against being renewed. An
    owner that hangs in a living process keeps its lease.
    """
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease.ttl_ms / 3_000):
            try:
                _renew_once(lease, options, application)
            except LeaseLost:
                return  # the owner's own next commit says so
            except StoreUnavailable as error:
                log.warning("lease_not_renewed", extra={"task": lease.task, "cause": error.message})

    renewing = threading.Thread(target=renew, name=f"{lease.task}-lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()


def _renew_once(lease: Lease, options: PostgresOptions, application: str) -> None:
    with closing(connect(options, application=application)) as connection, translated():
        # One statement that the server commits itself: stopped in a transaction, this process would hold the row, and a
        # takeover ends the backend of the owner's connection, not of this one.
        connection.autocommit = True
        with connection.cursor() as cursor:
            fence(cursor, [lease])


def release(connection: Connection, leases: Iterable[Lease]) -> None:
    """Give the leases back, so that the next owner need not wait for their end."""
    with transaction(connection) as cursor:
        for lease in leases:
            _on_row(cursor, "release_lease", lease)


def _read(cursor: Cursor, key: dict[str, object]) -> tuple[Any, ...]:
    sql = load(__package__, "core.sql")
    cursor.execute(sql["read_lease"], key)
    row = cursor.fetchone()
    if row is None:  # made only then: even ON CONFLICT DO NOTHING waits for the lock of a stopped owner
        cursor.execute(sql["ensure_lease"], key)
        cursor.execute(sql["read_lease"], key)
        row = cursor.fetchone()
    assert row is not None
    return row


def _on_row(cursor: Cursor, statement: str, lease: Lease) -> None:
    cursor.execute(
        load(__package__, "core.sql")[statement],
        {"task": lease.task, "partition": lease.partition, "epoch": lease.epoch, "ttl_ms": lease.ttl_ms},
    )
