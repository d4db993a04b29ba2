"""The sample store in PostgreSQL, for readers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import polars as pl

from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect, transaction
from rtrec_ray.samples.columns import LEDGER_SCHEMA, SAMPLE_SCHEMA, empty
from rtrec_ray.stores.samples.place import LogPlace
from rtrec_ray.stores.samples.statements import one, rows, sql
from rtrec_ray.stores.samples.store import BATCH_ROWS, SampleStats


class PostgresSampleStore:
    """Reads the ledger. Each call opens a connection of its own and closes it, so the store may be shared and kept."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options

    def high_water(self) -> int:
        """See SampleStore."""
        with self._transaction() as cursor:
            return _high_water(cursor)

    def end(self) -> LogPlace:
        """See SampleStore."""
        with self._transaction() as cursor:
            ((commit_seq, lsn),) = rows(cursor, "end") or [(0, None)]
        return LogPlace(commit_seq=int(commit_seq), lsn=lsn)

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
            count, corrections, requests = one(cursor, "count_rows")
            positives = one(cursor, "count_positives")[0]
            return SampleStats(
                rows=count,
                positives=positives,
                positive_rate=positives / count if count else None,
                requests=requests,
                high_water=_high_water(cursor),
                corrections=corrections,
                held=one(cursor, "count_held")[0],
                sampled_out=one(cursor, "count_out")[0],
                misses=dict(rows(cursor, "count_misses")),
                outcomes=dict(rows(cursor, "count_outcomes")),
            )

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        connection = connect(self._options, application="rtrec-samples-read")
        try:
            with transaction(connection) as cursor:
                yield cursor
        finally:
            connection.close()


def _high_water(cursor: Cursor) -> int:
    found = rows(cursor, "high_water")
    return int(found[0][0]) if found else 0


def _copy_out(cursor: Cursor, name: str, columns: Sequence[str], at: Mapping[str, int]) -> pl.DataFrame:
    schema = pl.Schema([(column, LEDGER_SCHEMA[column]) for column in columns])
    out = io.BytesIO()
    cursor.copy_expert(sql(name).format(columns=", ".join(f'"{column}"' for column in columns), **at), out)
    if not out.tell():
        return empty(schema)
    out.seek(0)
    return pl.read_csv(out, has_header=False, schema=schema)
