"""Scans of the sample store in PostgreSQL: one exported snapshot, blocks of day partitions, COPY into columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

import polars as pl
from psycopg2 import errors

from rtrec_ray.postgres.connection import Cursor, PostgresOptions, connect, transaction
from rtrec_ray.postgres.prepared import texts
from rtrec_ray.postgres.read import copy_out
from rtrec_ray.postgres.statements import load
from rtrec_ray.samples.overlay import overlay
from rtrec_ray.stores.samples.scan import ScanAsk, ScanPart, ScanPlan, blocks_of, ended, refuse_unknown, select_schema

PART_BLOCKS: Final = 2_048  # 16 MiB: some 60,000 samples

# A writer's transaction lasts less than that, so known_at is this near to the order of the numbers.
_WOBBLE_MS: Final = 120_000

_GONE: Final = (
    errors.UndefinedObject,  # no such snapshot
    errors.InvalidParameterValue,  # a name that no snapshot has
    errors.ObjectNotInPrerequisiteState,  # its session ended at this moment
    errors.UndefinedTable,
)
_OWN_WORDS: Final = {
    "known_at_ms": "(extract(epoch FROM r.known_at) * 1000)::bigint",
    "arm": "r.arm",
    "features": "r.item_features::text",
}
_REQUESTS: Final = {"model_version": pl.String(), "arm": pl.String(), "features": pl.String()}


class PostgresSampleScan:
    """SampleScan on schema samples. Each call opens connections of its own; the object pickles.

    `part_blocks`: blocks of 8 KiB of a part.
    """

    def __init__(self, options: PostgresOptions, *, part_blocks: int = PART_BLOCKS) -> None:
        self._options = options
        self._part_blocks = part_blocks

    @contextmanager
    def open(self, ask: ScanAsk, /) -> Iterator[ScanPlan]:
        """See SampleScan."""
        with self._session("rtrec-scan") as cursor:
            cursor.execute(_sql("lock"))
            cursor.execute(_sql("export"))
            snapshot = str(_value(cursor))
            parts = self._parts(cursor, ask)
            yield ScanPlan(snapshot=snapshot, to_seq=_to_seq(cursor, ask), ask=ask, parts=tuple(parts))

    def read(self, plan: ScanPlan, part: ScanPart, /) -> pl.DataFrame:
        """See SampleScan."""
        wanted = [name for name in plan.ask.columns if name in _REQUESTS]
        own = ["model_version"]
        columns = [name for name in plan.ask.columns if name not in own]
        needed = ["commit_seq", *["request_id"] * bool(wanted)]
        columns += [name for name in needed if name not in columns]
        with self._session("rtrec-scan-part") as cursor:
            try:
                cursor.execute(_sql("import"), {"snapshot": plan.snapshot})
            except _GONE as error:
                raise ended(plan) from error
            rows = _read_rows(cursor, plan, part, columns)
            if wanted and not rows.is_empty():
                asked = _read_requests(cursor, part, rows["request_id"].unique(), wanted)
                rows = _joined(rows, asked, wanted)
        if rows.is_empty():
            return pl.DataFrame(schema=select_schema(plan.ask.columns))
        # The server's order is that of its plan, which may be another one at the next reading.
        return rows.sort("commit_seq").select(plan.ask.columns)

    def _parts(self, cursor: Cursor, ask: ScanAsk) -> list[ScanPart]:
        first, last = ask.days
        cursor.execute(_sql("list_days"))
        days = [(day, blocks) for day, blocks in cursor.fetchall() if first <= day <= last]
        whole = {"days": [day for day, _ in days], "from_ms": ask.from_ms, "to_ms": ask.to_ms}
        cursor.execute(_sql("list_other_days"), whole)
        others = [ScanPart(day=day) for (day,) in cursor.fetchall()]
        blocks = [part for day, blocks in days for part in blocks_of(day, blocks, part_blocks=self._part_blocks)]
        return [*blocks, *others]

    @contextmanager
    def _session(self, application: str) -> Iterator[Cursor]:
        with closing(connect(self._options, application=application)) as connection:
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            with transaction(connection) as cursor:
                yield cursor


def _to_seq(cursor: Cursor, ask: ScanAsk) -> int:
    high = int(_first(cursor, "high_water") or 0)
    refuse_unknown(ask, high=high, kept_from_ms=_first(cursor, "kept_from"))
    if ask.as_of_ms is not None:
        return _known_to(cursor, high, as_of_ms=ask.as_of_ms)
    return high if ask.as_of_seq is None else ask.as_of_seq


def _known_to(cursor: Cursor, high: int, *, as_of_ms: int) -> int:
    """The last number before the first revision that was written after `as_of_ms`."""
    low, end = 0, high
    while low < end:  # numbers follow known_at but for the wobble: look by halves for where it begins
        middle = (low + end) // 2
        cursor.execute(_sql("known_at_or_after"), {"seq": middle + 1})
        found = cursor.fetchone()
        if found is None or found[1] > as_of_ms - _WOBBLE_MS:
            end = middle
        else:
            low = int(found[0])
    cursor.execute(_sql("first_known_after"), {"seq": low, "as_of_ms": as_of_ms})
    later = cursor.fetchone()
    return high if later is None else int(later[0]) - 1


def _read_rows(cursor: Cursor, plan: ScanPlan, part: ScanPart, columns: Sequence[str]) -> pl.DataFrame:
    where: Mapping[str, Any] = {
        "day": part.day.isoformat(),
        "first_block": part.first_block,
        "end_block": part.end_block,
        "from_ms": plan.ask.from_ms,
        "to_ms": plan.ask.to_ms,
        "to_seq": plan.to_seq,
    }
    words = ", ".join(_OWN_WORDS.get(name, f'r."{name}"') for name in columns)
    statement = _sql("read_others" if part.end_block is None else "read_blocks")
    return copy_out(cursor, statement.format(columns=words, **where), select_schema(columns))


def _read_requests(cursor: Cursor, part: ScanPart, ids: pl.Series, wanted: Sequence[str]) -> pl.DataFrame:
    """What the part's requests have in common is sent once a request: as text it is most of what a scan costs."""
    schema = pl.Schema([("request_id", pl.String()), *((name, _REQUESTS[name]) for name in wanted)])
    literal = cursor.mogrify("%s", (texts(ids.to_list()),)).decode()
    words = ", ".join(f'q."{name}"' for name in schema)
    statement = _sql("read_requests").format(columns=words, day=part.day.isoformat(), ids=literal)
    return copy_out(cursor, statement, schema)


def _joined(rows: pl.DataFrame, asked: pl.DataFrame, wanted: Sequence[str]) -> pl.DataFrame:
    both = rows.join(asked, on="request_id", how="left", suffix="_asked", maintain_order="left")
    if "arm" in wanted:
        both = both.with_columns(pl.coalesce("arm", "arm_asked"))
    if "features" in wanted:
        both = both.with_columns(overlay(both["features_asked"], both["features"]).alias("features"))
    return both


def _first(cursor: Cursor, name: str) -> Any:
    """The value that a statement answers; None without a row."""
    cursor.execute(_sql(name))
    row = cursor.fetchone()
    return None if row is None else row[0]


def _value(cursor: Cursor) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]


def _sql(name: str) -> str:
    return load("rtrec_ray.stores.samples", "scan.sql")[name]
