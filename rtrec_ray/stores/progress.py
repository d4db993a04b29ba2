"""How far each task has come: positions, watermark and counts, written in the transaction of the outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from rtrec_ray.clock import ScaledClock
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.statements import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What the last commit of a partition left. `next_offset`, `max_ts_ms` by topic; times in ms UTC."""

    next_offset: Mapping[str, int] = field(default_factory=dict)
    max_ts_ms: Mapping[str, int] = field(default_factory=dict)
    watermark_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One task over all its partitions. `lag` in records; `age_ms` since its oldest commit, wall time."""

    up: bool
    lag: int
    watermark_ms: int | None
    age_ms: int
    counts: Mapping[str, int]


def read_committed(cursor: Cursor, *, task: str, partition: int) -> Committed:
    """Where a new owner of the partition goes on."""
    sql, key = _sql(), {"task": task, "partition": partition}
    cursor.execute(sql["read_positions"], key)
    rows = cursor.fetchall()
    cursor.execute(sql["read_watermark"], key)
    mark = cursor.fetchone()
    return Committed(
        next_offset={topic: offset for topic, offset, _ in rows},
        max_ts_ms={topic: ts for topic, _, ts in rows if ts is not None},
        watermark_ms=mark[0] if mark else None,
    )


def read_positions(cursor: Cursor, *, task: str, topic: str) -> dict[int, int]:
    """Partition → the first offset of the topic that the task has not applied."""
    cursor.execute(_sql()["read_topic_positions"], {"task": task, "topic": topic})
    return dict(cursor.fetchall())


def write_committed(
    cursor: Cursor, *, task: str, partition: int, at: Committed, lag: int, counts: Mapping[str, int]
) -> None:
    """Write the partition's new positions, and add `counts` to what it has counted so far."""
    sql, key = _sql(), {"task": task, "partition": partition}
    for topic, offset in at.next_offset.items():
        cursor.execute(
            sql["put_position"], {**key, "topic": topic, "next_offset": offset, "max_ts_ms": at.max_ts_ms.get(topic)}
        )
    nonzero = {name: n for name, n in counts.items() if n}
    cursor.execute(
        sql["put_progress"], {**key, "watermark_ms": at.watermark_ms, "lag": lag, "counts": json.dumps(nonzero)}
    )


def read_stages(cursor: Cursor) -> dict[str, Stage]:
    """Every task's state, its partitions added up: the lowest watermark, the whole lag."""
    cursor.execute(_sql()["read_stages"])
    grouped: dict[str, list[tuple[int | None, int, dict[str, int], int, bool]]] = {}
    for task, _, mark, lag, counts, age_ms, up in cursor.fetchall():
        grouped.setdefault(task, []).append((mark, lag, counts, age_ms, up))
    return {task: _stage(rows) for task, rows in grouped.items()}


def _stage(rows: list[tuple[int | None, int, dict[str, int], int, bool]]) -> Stage:
    totals: dict[str, int] = {}
    for _, _, counts, _, _ in rows:
        for name, n in counts.items():
            totals[name] = totals.get(name, 0) + n
    marks = [mark for mark, *_ in rows if mark is not None]
    return Stage(
        up=all(up for *_, up in rows),
        lag=sum(lag for _, lag, *_ in rows),
        watermark_ms=min(marks) if marks else None,
        age_ms=max(age_ms for *_, age_ms, _ in rows),
        counts=totals,
    )


def read_clock(cursor: Cursor) -> ScaledClock | None:
    """The system's clock of events, None before the first `up` has set one."""
    cursor.execute(_sql()["read_clock"])
    row = cursor.fetchone()
    if row is None:
        return None
    return ScaledClock(origin_event_ms=row[0], origin_wall_ms=row[1], speed=row[2])


def put_clock(cursor: Cursor, clock: ScaledClock) -> ScaledClock:
    """Set the clock unless there is one; answers the one that holds."""
    cursor.execute(
        _sql()["put_clock"],
        {
            "origin_event_ms": clock.origin_event_ms,
            "origin_wall_ms": clock.origin_wall_ms,
            "speed": clock.speed,
        },
    )
    return read_clock(cursor) or clock


def _sql() -> dict[str, str]:
    return load("rtrec_ray.stores", "progress.sql")
