"""The sample store in PostgreSQL."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import psycopg2.errors

from rtrec_ray.postgres import counter
from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect, transaction
from rtrec_ray.postgres.copy import copy_frame
from rtrec_ray.postgres.statements import load
from rtrec_ray.samples.columns import (
    HELD_SCHEMA,
    KEY,
    KNOWN_SCHEMA,
    MISS_SCHEMA,
    OUTCOME_SCHEMA,
    SAMPLE_SCHEMA,
    empty,
    without,
)
from rtrec_ray.samples.settlement import Answers, Place, Questions, Restored, Settled
from rtrec_ray.stores.samples import BATCH_ROWS, SampleStats

_COUNTER = "samples"


def _sql(name: str) -> str:
    return load("rtrec_ray.stores.queries", "samples.sql")[name]


class PostgresSampleStore:
    """Reads the ledger. Each call opens a connection of its own and closes it, so the store may be shared and kept."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options

    def high_water(self) -> int:
        """See SampleStore."""
        with self._transaction() as cursor:
            return _high_water(cursor)

    def scan(
        self,
        *,
        from_seq_exclusive: int = 0,
        to_seq: int,
        columns: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pl.DataFrame]:
        """See SampleStore."""
        return self._read("scan", (from_seq_exclusive, to_seq), to_seq, columns=columns, batch_rows=batch_rows)

    def current(
        self,
        *,
        to_seq: int | None = None,
        span: tuple[int, int] | None = None,
        columns: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pl.DataFrame]:
        """See SampleStore."""
        within = (0, to_seq) if span is None else span
        return self._read("scan_current", within, to_seq, columns=columns, batch_rows=batch_rows)

    def _read(
        self,
        statement: str,
        span: tuple[int, int | None],
        to_seq: int | None,
        *,
        columns: Sequence[str] | None,
        batch_rows: int,
    ) -> Iterator[pl.DataFrame]:
        chosen = SAMPLE_SCHEMA.names() if columns is None else columns
        connection = connect(self._options, application="rtrec-samples-scan")
        try:
            with transaction(connection) as cursor:
                known = _high_water(cursor)
            as_of = known if to_seq is None else min(to_seq, known)
            end = as_of if span[1] is None else min(span[1], as_of)
            # Numbers are given out almost without gaps, so a range of them is a batch; and because revisions never
            # change, batches read in transactions of their own fit together.
            for low in range(span[0], end, batch_rows):
                at = {"from_seq": low, "to_seq": min(low + batch_rows, end), "as_of_seq": as_of}
                with transaction(connection) as cursor:
                    frame = _copy_out(cursor, statement, chosen, at)
                if not frame.is_empty():
                    yield frame
        finally:
            connection.close()

    def stats(self) -> SampleStats:
        """See SampleStore."""
        with self._transaction() as cursor:
            rows, corrections, requests = _one(cursor, "count_rows")
            positives = _one(cursor, "count_positives")[0]
            return SampleStats(
                rows=rows,
                positives=positives,
                positive_rate=positives / rows if rows else None,
                requests=requests,
                high_water=_high_water(cursor),
                corrections=corrections,
                held=_one(cursor, "count_held")[0],
                misses=dict(_all(cursor, "count_misses")),
                outcomes=dict(_all(cursor, "count_outcomes")),
            )

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        connection = connect(self._options, application="rtrec-samples-read")
        try:
            with transaction(connection) as cursor:
                yield cursor
        finally:
            connection.close()


class PostgresSampleLedger:
    """Writes one partition's samples, in the transaction of the caller's cursor."""

    def __init__(self, *, partition: int) -> None:
        self._partition = partition
        self._days: set[object] = set()
        # (behaviour read up to, first number taken) of the commits that a replay may meet again.
        self._commits: deque[tuple[int, int]] = deque()
        self._first_seq: int | None = None

    def restore(self, cursor: Cursor, *, applied_to: int) -> Restored:
        """See SampleLedger."""
        key = {"partition": self._partition}
        replay_from, out_from_seq, repeated = (_all(cursor, "read_replay", key) or [(applied_to, None, [])])[0]
        if out_from_seq is not None:
            self._commits.append((applied_to, out_from_seq))
        where = {**key, "replay_from": replay_from, "out_from_seq": out_from_seq}
        settled = [offset for (offset,) in _all(cursor, "read_settled_offsets", where)]
        return Restored(
            place=Place(replay_from=replay_from, repeated_offsets=pl.Series(repeated, dtype=pl.Int64)),
            applied_to=applied_to,
            settled_offsets=pl.Series(settled, dtype=pl.Int64),
            held=_fetch(cursor, "read_held", key, HELD_SCHEMA),
            has_misses=_one(cursor, "has_misses", key)[0],
        )

    def answer(self, cursor: Cursor, questions: Questions) -> Answers:
        """See SampleLedger."""
        requests, missed = questions.requests.to_list(), questions.missed.to_list()
        return Answers(
            requests=_fetch(cursor, "find_requests", {"request_ids": requests}, KNOWN_SCHEMA)
            if requests
            else empty(KNOWN_SCHEMA),
            outcomes=_outcomes(cursor, questions.clicks),
            misses=_fetch(cursor, "find_misses", {"request_ids": missed}, MISS_SCHEMA)
            if missed
            else empty(MISS_SCHEMA),
        )

    def write(self, cursor: Cursor, settled: Settled) -> pl.DataFrame:
        """See SampleLedger."""
        self._put_requests(cursor, settled.requests)
        self._put_misses(cursor, settled)
        self._put_held(cursor, settled)
        existing = self._put_samples(cursor, settled.samples)
        self.correct(cursor, settled.corrections)
        return existing

    def correct(self, cursor: Cursor, corrections: pl.DataFrame) -> None:
        """See SampleLedger."""
        if corrections.is_empty():
            return
        cursor.execute(
            _sql("correct"),
            {
                **_keys(corrections),
                "revisions": corrections["revision"].to_list(),
                "days": corrections["event_day"].to_list(),
                "first_seq": counter.take(cursor, _COUNTER, corrections.height),
            },
        )
        cursor.execute(_sql("notify"))

    def remember(self, cursor: Cursor, place: Place, *, read_to: int) -> None:
        """See SampleLedger."""
        if self._first_seq is not None:
            self._commits.append((read_to, self._first_seq))
            self._first_seq = None
        while self._commits and self._commits[0][0] <= place.replay_from:
            self._commits.popleft()
        at = {
            "partition": self._partition,
            "replay_from": place.replay_from,
            "out_from_seq": self._commits[0][1] if self._commits else None,
            "repeated_offsets": place.repeated_offsets.to_list(),
        }
        cursor.execute(_sql("put_replay"), at)

    def _put_requests(self, cursor: Cursor, requests: pl.DataFrame) -> None:
        if requests.is_empty():
            return
        self._ensure_days(cursor, requests["event_day"].unique())
        ordered = requests.sort("request_id")
        if not _copied(cursor, "samples.requests", ordered):
            cursor.execute(_sql("stage_requests"))
            _stage(cursor, "staged_requests", ordered)
            cursor.execute(_sql("put_staged_requests"))

    def _put_samples(self, cursor: Cursor, samples: pl.DataFrame) -> pl.DataFrame:
        if samples.is_empty():
            return empty(OUTCOME_SCHEMA)
        self._first_seq = counter.take(cursor, _COUNTER, samples.height)
        cursor.execute(_sql("notify"))
        numbered = (
            samples.sort("event_time_ms", *KEY)
            .with_columns(commit_seq=self._first_seq + pl.int_range(pl.len(), dtype=pl.Int64))
            .with_columns(source_partition=pl.lit(self._partition))
            .sort(KEY)
        )
        if _copied(cursor, "samples.revisions", numbered):
            return empty(OUTCOME_SCHEMA)
        existing = _outcomes(cursor, samples)
        copy_frame(cursor, "samples.revisions", without(numbered, existing))
        return existing

    def _put_misses(self, cursor: Cursor, settled: Settled) -> None:
        if not settled.misses.is_empty():
            cursor.execute(_sql("stage_misses"))
            _stage(cursor, "staged_misses", settled.misses.with_columns(source_partition=pl.lit(self._partition)))
            cursor.execute(_sql("put_staged_misses"))
        if not settled.completed.is_empty():
            cursor.execute(_sql("drop_misses"), _keys(settled.completed))

    def _put_held(self, cursor: Cursor, settled: Settled) -> None:
        key = {"partition": self._partition}
        if not settled.held_drop.is_empty():
            cursor.execute(_sql("drop_held"), {**key, **_keys(settled.held_drop)})
        put = settled.held_put
        if not put.is_empty():
            times = {name: put[name].to_list() for name in ("click_ms", "expires_ms")}
            cursor.execute(_sql("put_held"), {**key, **_keys(put), **times})

    def _ensure_days(self, cursor: Cursor, days: pl.Series) -> None:
        new = set(days.to_list()) - self._days
        if new:
            counter.take(cursor, _COUNTER, 0)  # only for its lock, which every writer takes and none holds for long
            cursor.execute(_sql("ensure_days"), {"days": sorted(new)})
            self._days |= new


def _copied(cursor: Cursor, table: str, frame: pl.DataFrame) -> bool:
    """COPY straight into the table, four times as fast as by way of a staging table; False if a row was there."""
    cursor.execute("SAVEPOINT copied")
    try:
        copy_frame(cursor, table, frame)
    except psycopg2.errors.UniqueViolation:
        cursor.execute("ROLLBACK TO SAVEPOINT copied")
        return False
    cursor.execute("RELEASE SAVEPOINT copied")
    return True


def _stage(cursor: Cursor, table: str, frame: pl.DataFrame) -> None:
    cursor.execute(f"TRUNCATE pg_temp.{table}")
    copy_frame(cursor, f"pg_temp.{table}", frame)


def _outcomes(cursor: Cursor, keys: pl.DataFrame) -> pl.DataFrame:
    if keys.is_empty():
        return empty(OUTCOME_SCHEMA)
    return _fetch(cursor, "find_outcomes", _keys(keys), OUTCOME_SCHEMA)


def _keys(frame: pl.DataFrame) -> dict[str, list[object]]:
    return {"request_ids": frame["request_id"].to_list(), "item_ids": frame["item_id"].to_list()}


def _one(cursor: Cursor, name: str, parameters: Mapping[str, object] | None = None) -> tuple[Any, ...]:
    cursor.execute(_sql(name), parameters)
    row = cursor.fetchone()
    assert row is not None
    return row


def _all(cursor: Cursor, name: str, parameters: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
    cursor.execute(_sql(name), parameters)
    return cursor.fetchall()


def _fetch(cursor: Cursor, name: str, parameters: Mapping[str, object], schema: pl.Schema) -> pl.DataFrame:
    return pl.DataFrame(_all(cursor, name, parameters), schema=schema, orient="row")


def _high_water(cursor: Cursor) -> int:
    found = _all(cursor, "high_water")
    return int(found[0][0]) if found else 0


def _copy_out(cursor: Cursor, name: str, columns: Sequence[str], at: Mapping[str, int]) -> pl.DataFrame:
    schema = pl.Schema([(column, SAMPLE_SCHEMA[column]) for column in columns])
    out = io.BytesIO()
    cursor.copy_expert(_sql(name).format(columns=", ".join(f'"{column}"' for column in columns), **at), out)
    if not out.tell():
        return empty(schema)
    out.seek(0)
    return pl.read_csv(out, has_header=False, schema=schema)
