"""Replication slots: what keeps the write-ahead log for a consumer while it is away, and the disk that this takes."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import psycopg2.errors

from rtrec_ray.errors import RtrecError, StoreUnavailable, UnknownSlot
from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect, transaction
from rtrec_ray.postgres.statements import load

__all__ = ["Means", "Reached", "Refusal", "Slot", "drop_slot", "list_slots", "reach_slot", "read_means", "slot_name"]

# What a server that cannot or may not stream answers; the first line of its words is the reason.
_REFUSALS = (
    psycopg2.errors.InsufficientPrivilege,
    psycopg2.errors.ObjectNotInPrerequisiteState,  # wal_level is not logical
    psycopg2.errors.ConfigurationLimitExceeded,  # all slots are taken
    psycopg2.errors.UndefinedFunction,
    psycopg2.errors.UndefinedTable,
    psycopg2.errors.FeatureNotSupported,
    psycopg2.errors.QueryCanceled,  # an open transaction holds the creation up
)
_CREATION_MS = 5_000  # it waits for open transactions, and training must not wait with it
_NAME = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot. `lsn`: acknowledged up to there; `lost`: the server gave its log up, for `reason`.

    `kept_bytes`: of the write-ahead log kept for it, None when nothing is; `state`: PostgreSQL's wal_status.
    """

    name: str
    active_pid: int | None
    lsn: int
    lost: bool
    reason: str
    kept_bytes: int | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why this server gives no stream."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A slot that is ours to use. `missing`: there was none before, or one whose log was gone, for `reason`."""

    slot: Slot
    missing: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a server has for consumers. `no_stream`: what keeps them from streaming, empty when nothing does.

    `bound`: log kept at most for a slot, None when an abandoned one may fill the disk.
    """

    no_stream: str
    bound: str | None


def slot_name(cursor: Cursor, consumer: str) -> str:
    """The slot of a consumer of this database. Raises RtrecError for a name that slots cannot have."""
    if not _NAME.fullmatch(consumer):
        raise RtrecError(f"a consumer's name is 1 to 40 of a-z, 0-9 and _, not {consumer!r}")
    cursor.execute(_sql("slot_name"), {"name": consumer})
    return str(_first(cursor)[0])


def reach_slot(options: PostgresOptions, name: str) -> Reached | Refusal:
    """Take the slot over from whoever uses it, make it anew if it is missing or lost. Raises StoreUnavailable."""
    patience = replace(options, statement_timeout_ms=_CREATION_MS)
    try:
        with closing(connect(patience, application="rtrec-slot")) as connection, transaction(connection) as cursor:
            cursor.execute(_sql("has_publication"))
            if not _first(cursor)[0]:
                return Refusal(reason="the publication rtrec_samples is missing")
            return _reach(cursor, name)
    except _REFUSALS as error:
        return Refusal(reason=_words(error))
    except StoreUnavailable as error:
        if isinstance(error.__cause__, _REFUSALS):
            return Refusal(reason=_words(error.__cause__))
        raise


def list_slots(options: PostgresOptions) -> list[Slot]:
    """All slots of this system in this database. Raises StoreUnavailable."""
    with closing(connect(options, application="rtrec-slot")) as connection, transaction(connection) as cursor:
        cursor.execute(_sql("list_slots"))
        return [_slot(row) for row in cursor.fetchall()]


def drop_slot(options: PostgresOptions, name: str) -> None:
    """End the consumer that uses it, and drop it. Raises UnknownSlot, StoreUnavailable."""
    if name not in {slot.name for slot in list_slots(options)}:
        raise UnknownSlot(f"there is no slot {name}", mend="`rtrec samples slots` names them")
    with closing(connect(options, application="rtrec-slot")) as connection, transaction(connection) as cursor:
        cursor.execute(_sql("end_holder"), {"slot": name})
        cursor.execute(_sql("drop_slot"), {"slot": name})


def read_means(options: PostgresOptions) -> Means:
    """What this server has for consumers. Raises StoreUnavailable."""
    with closing(connect(options, application="rtrec-slot")) as connection, transaction(connection) as cursor:
        cursor.execute(_sql("read_means"))
        wal_level, allowed, free, bound = _first(cursor)
        cursor.execute(_sql("has_publication"))
        published = _first(cursor)[0]
    obstacles = {
        f"wal_level is {wal_level}, not logical": wal_level != "logical",
        "the user has no right to replicate (ALTER ROLE ... REPLICATION)": not allowed,
        "the publication rtrec_samples is missing": not published,
        "all replication slots are taken (max_replication_slots)": free < 1 and not list_slots(options),
    }
    no_stream = "; ".join(what for what, is_so in obstacles.items() if is_so)
    return Means(no_stream=no_stream, bound=None if bound == "-1" else bound)


def _reach(cursor: Cursor, name: str) -> Reached:
    found = _find(cursor, name)
    if found is not None and not found.lost:
        cursor.execute(_sql("end_holder"), {"slot": name})
        return Reached(slot=found, missing=False)
    if found is not None:
        cursor.execute(_sql("end_holder"), {"slot": name})
        cursor.execute(_sql("drop_slot"), {"slot": name})
    cursor.execute(_sql("create_slot"), {"slot": name})
    made = _find(cursor, name)
    assert made is not None
    return Reached(slot=made, missing=True, reason="slot gone" if found is None else f"slot lost: {found.reason}")


def _find(cursor: Cursor, name: str) -> Slot | None:
    cursor.execute(_sql("find_slot"), {"slot": name})
    row = cursor.fetchone()
    return None if row is None else _slot(row)


def _slot(row: tuple[Any, ...]) -> Slot:
    name, pid, lsn, lost, reason, kept, state = row
    return Slot(name=name, active_pid=pid, lsn=lsn or 0, lost=lost, reason=reason, kept_bytes=kept, state=state)


def _words(error: psycopg2.Error) -> str:
    if isinstance(error, psycopg2.errors.QueryCanceled):
        return "a transaction that stays open holds up the making of a slot"
    return str(error).strip().splitlines()[0]


def _first(cursor: Cursor) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None
    return row


def _sql(name: str) -> str:
    return load("rtrec_ray.stores.changes", "changes.sql")[name]
