"""The book of model changes in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any, Final

import orjson

from rtrec_ray.clock import REAL, Clock
from rtrec_ray.metadata.base import ModelLineage
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.postgres.connection import Cursor, Pool, PostgresOptions, connect, translated
from rtrec_ray.postgres.statements import load
from rtrec_ray.registry.changes import Change, NewChange, Served, events_of

_LOCK: Final = 0x7274_6D6F  # "rtmo": any number that no other program of the database locks


class PostgresChangeBook:
    """A ChangeBook on meta.model_changes and meta.model_served. `clock`: tells when a change was wanted."""

    def __init__(self, options: PostgresOptions, *, clock: Clock = REAL) -> None:
        self._options = options
        self._clock = clock
        self._sql = load(__package__, "changes.sql")
        self._pool = Pool(options, size=2, application="rtrec-models")
        self._events = PostgresNotificationStore(options, clock=clock)

    def intend(self, *wanted: NewChange) -> None:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            for each in wanted:
                self._write(cur, each)

    def generated(self, made: NewChange, lineage: ModelLineage, /) -> bool:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            change = self._write(cur, made)
            if change is None:
                return False
            PostgresMetadataStore(cur).put_lineage(lineage)
            self._tell(cur, change, previous=None)
        return True

    def deployed(self, made: NewChange, /) -> bool:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["lock_served"])
            cur.execute(self._sql["serving"], {"version": made.version})
            now, now_chosen, chosen = cur.fetchone() or (None, None, None)
            is_late = None not in (now_chosen, chosen) and chosen < now_chosen
            if now == made.version or is_late:
                return False
            change = self._write(cur, made)
            assert change is not None
            at = {"version": made.version, "at_ms": change.made_ms}
            cur.execute(self._sql["end_service"], at)
            cur.execute(self._sql["begin_service"], at)
            self._tell(cur, change, previous=now)
        return True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See ChangeBook."""
        with closing(connect(self._options, application="rtrec-models")) as connection:
            connection.autocommit = True
            with translated(), connection.cursor() as cur:
                cur.execute(self._sql["alone"], {"lock": _LOCK})
            yield

    def next(self) -> Change | None:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["next"])
            row = cur.fetchone()
        return None if row is None else _change(row)

    def finish(self, change: Change, /) -> None:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["claim"], {"change_id": change.change_id})
            if cur.fetchone() is None:
                return
            champion, was_rejected = self._champion(cur)
            replaced = None if was_rejected else champion
            concerns = change.change in ("champion", "withdrawn")
            self._tell(cur, change, previous=champion if concerns else None, replaced=replaced)

    def champion(self) -> str | None:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            return self._champion(cur)[0]

    def changes(self, *, version: str | None = None, limit: int = 100) -> tuple[Change, ...]:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["changes"], {"version": version, "limit": limit})
            return tuple(map(_change, reversed(cur.fetchall())))

    def served(self, *, limit: int = 100) -> tuple[Served, ...]:
        """See ChangeBook."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["served"], {"limit": limit})
            rows = cur.fetchall()
        return tuple(Served(version=version, from_ms=from_ms, to_ms=to_ms) for version, from_ms, to_ms in rows[::-1])

    def close(self) -> None:
        """See ChangeBook."""
        self._pool.close()
        self._events.close()

    def _write(self, cur: Cursor, wanted: NewChange) -> Change | None:
        context = orjson.dumps(dict(wanted.context), option=orjson.OPT_SERIALIZE_NUMPY).decode()
        cur.execute(self._sql["intend"], {**asdict(wanted), "context": context, "made_ms": self._clock.now_ms()})
        row = cur.fetchone()
        return None if row is None else _change(row)

    def _tell(self, cur: Cursor, change: Change, *, previous: str | None, replaced: str | None = None) -> None:
        # Last in the transaction: from here on other senders wait for its end.
        told = self._events.send_many_in(cur, events_of(change, replaced=replaced))
        values = {"change_id": change.change_id, "event_offset": told[-1].offset, "previous": previous}
        cur.execute(self._sql["finish"], values)

    def _champion(self, cur: Cursor) -> tuple[str | None, bool]:
        cur.execute(self._sql["champion"])
        champion, was_rejected = cur.fetchone() or (None, False)
        return champion, was_rejected


def _change(row: tuple[Any, ...]) -> Change:
    names = ("change_id", "change", "version", "reason", "sender", "context", "made_ms", "previous", "done")
    return Change(**dict(zip(names, row, strict=True)))
