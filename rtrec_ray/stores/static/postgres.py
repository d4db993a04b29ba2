"""The static features in PostgreSQL."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Final

import polars as pl

from rtrec_ray.features.counted import NAME_SCHEMA
from rtrec_ray.features.daily import (
    COUNT_SCHEMA,
    LONGEST,
    VALUE_SCHEMA,
    VALUES,
    day_of,
    first_minute,
    static_values,
    whole_keys,
    window_of,
)
from rtrec_ray.features.seen import MINUTE_MS
from rtrec_ray.postgres.connection import Connection, Cursor, Pool, PostgresOptions, connect, transaction
from rtrec_ray.postgres.copy import copy_frame
from rtrec_ray.postgres.lease import Lease, fence, kept, release, take
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.static.store import TASK, State, StaticValues, chosen, require_kept

_STATEMENT_MS: Final = 3_600_000  # a day of many keys is replaced by one statement
_READ_SCHEMA: Final = pl.Schema({name: VALUE_SCHEMA[name] for name in ("key", *VALUES)})


class PostgresStaticFeatures:
    """StaticFeatures. A run has a connection of its own, whose end frees its lease, and renews it from another one.

    `portion_rows`: counts in memory while the values are made. `lease_ms` of wall time: so long after a run was stopped
    the next one takes over.
    """

    def __init__(self, options: PostgresOptions, *, portion_rows: int = 100_000, lease_ms: int = 30_000) -> None:
        self._options = options
        self._lease_ms = lease_ms
        self._portion_rows = portion_rows
        self._pool = Pool(options, size=1, application="rtrec-static")
        self._sql = _sql()

    def static(self, entity: str, keys: Sequence[int], *, as_of_day: dt.date | None = None) -> StaticValues:
        """See StaticReader."""
        parameters = {"entity": entity, "keys": list(keys)}
        with self._pool.statement() as cursor:
            cursor.execute(self._sql["read_values"], parameters)
            rows = cursor.fetchall()
            newest: dt.date | None = rows[0][0]
            if as_of_day is not None and newest is not None and as_of_day < newest:
                return self._earlier(cursor, parameters, as_of_day)
        values = pl.DataFrame([row[1:] for row in rows if row[1] is not None], schema=_READ_SCHEMA, orient="row")
        return chosen(values, keys, as_of_day=newest)

    def noted_upto(self) -> Mapping[int, int]:
        """See StaticFeatures."""
        ((offsets, *_),) = self._rows("read_state", {})
        return {int(number): at for number, at in offsets.items()}

    def taken_back(self, *, from_minute: int, to_minute: int) -> pl.DataFrame:
        """See StaticFeatures."""
        rows = self._rows("read_taken_back", {"from_minute": from_minute, "to_minute": to_minute})
        require_kept(day_of(from_minute * MINUTE_MS), kept_from=rows[0][0])
        return pl.DataFrame([row[1:] for row in rows if row[1] is not None], schema=NAME_SCHEMA, orient="row")

    @contextmanager
    def begin(self, owner: str) -> Iterator[PostgresCorrection]:
        """See StaticFeatures."""
        options = replace(self._options, statement_timeout_ms=_STATEMENT_MS)
        with closing(connect(options, application="rtrec-daily")) as connection:
            lease = take(connection, task=TASK, partition=0, owner=owner, ttl_ms=self._lease_ms)
            with kept(lease, self._options, application="rtrec-daily-lease"):
                with transaction(connection) as cursor:
                    cursor.execute(self._sql["make_aside"])
                yield PostgresCorrection(connection, lease, portion_rows=self._portion_rows)
                release(connection, [lease])

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _earlier(self, cursor: Cursor, parameters: dict[str, Any], as_of_day: dt.date) -> StaticValues:
        first, last = window_of(as_of_day)
        days = [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]
        cursor.execute(self._sql["read_counts"], {**parameters, "days": days})
        rows = cursor.fetchall()
        require_kept(first, kept_from=rows[0][0])
        counts = pl.DataFrame([row[1:] for row in rows if row[1] is not None], schema=COUNT_SCHEMA, orient="row")
        return chosen(static_values(counts, as_of_day=as_of_day), parameters["keys"], as_of_day=as_of_day)

    def _rows(self, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        with self._pool.statement() as cursor:
            cursor.execute(self._sql[statement], parameters)
            return cursor.fetchall()


class PostgresCorrection:
    """Correction. Each transaction ends with the lease, so that of two runs only one writes."""

    def __init__(self, connection: Connection, lease: Lease, *, portion_rows: int) -> None:
        self._portion_rows = portion_rows
        self._connection = connection
        self._lease = lease
        self._sql = _sql()

    def state(self) -> State:
        """See Correction."""
        with self._fenced() as cursor:
            cursor.execute(self._sql["read_state"])
            row = cursor.fetchone()
        assert row is not None
        offsets, as_of_day, stale, kept_from = row
        known = {int(number): at for number, at in offsets.items()}
        return State(offsets=known, as_of_day=as_of_day, stale=stale, kept_from=kept_from)

    def note(self, *, taken_back: pl.DataFrame, days: Iterable[dt.date], offsets: Mapping[int, int]) -> None:
        """See Correction."""
        with self._fenced() as cursor:
            copy_frame(cursor, "pg_temp.daily_noted", taken_back)
            cursor.execute(self._sql["note_taken_back"])
            cursor.execute(self._sql["note_days"], {"days": list(days)})
            cursor.execute(self._sql["note_offsets"], {"offsets": json.dumps(offsets)})

    def pending(self, *, upto: dt.date) -> list[dt.date]:
        """See Correction."""
        return self._days("read_pending", {"upto": upto})

    def days(self) -> list[dt.date]:
        """See Correction."""
        return self._days("read_days", {})

    def add(self, counts: pl.DataFrame) -> None:
        """See Correction."""
        with self._fenced() as cursor:
            copy_frame(cursor, "pg_temp.daily_aside", counts)

    def replace(self, days: Iterable[dt.date]) -> None:
        """See Correction."""
        for day in days:
            with self._fenced() as cursor:
                cursor.execute(self._sql["replace_day"], {"day": day, "longest": LONGEST.days})
        with self._fenced() as cursor:
            cursor.execute(self._sql["empty_aside"])

    def publish(self, as_of_day: dt.date, *, kept_from: dt.date | None = None) -> int:
        """See Correction."""
        keys = 0
        with self._fenced() as cursor:
            cursor.execute(self._sql["drop_values"])
            for counts in whole_keys(self._window(as_of_day)):
                values = static_values(counts, as_of_day=as_of_day).with_columns(as_of_day=as_of_day)
                keys += copy_frame(cursor, "features.daily_values", values.sort("entity", "key"))
            cursor.execute(self._sql["put_as_of_day"], {"as_of_day": as_of_day, "kept_from": kept_from})
            if kept_from is not None:
                cursor.execute(self._sql["drop_days"], {"kept_from": kept_from, "minute": first_minute(kept_from)})
        return keys

    def _window(self, as_of_day: dt.date) -> Iterator[pl.DataFrame]:
        first, last = window_of(as_of_day)
        # By a name, or the driver would fetch all rows at once.
        with self._connection.cursor(name="daily_window") as cursor:
            cursor.execute(self._sql["read_window"], {"first": first, "last": last})
            while rows := cursor.fetchmany(self._portion_rows):
                yield pl.DataFrame(rows, schema=COUNT_SCHEMA, orient="row")

    def _days(self, statement: str, parameters: dict[str, Any]) -> list[dt.date]:
        with self._fenced() as cursor:
            cursor.execute(self._sql[statement], parameters)
            return [day for (day,) in cursor.fetchall()]

    @contextmanager
    def _fenced(self) -> Iterator[Cursor]:
        with transaction(self._connection) as cursor:
            yield cursor
            # Not first, as in a stage: replacing a day takes long, and its row would be locked against being renewed.
            fence(cursor, [self._lease])


def _sql() -> dict[str, str]:
    return load("rtrec_ray.stores.static", "static.sql")
