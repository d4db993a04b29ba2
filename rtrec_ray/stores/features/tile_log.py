"""What each commit added, kept for some seconds for those who follow: the change log of the tiles.

A follower takes up the commits behind the offsets it has. The tiles of a commit become visible together with its
offsets, and a partition's offsets only rise, so "behind offset n of partition p" misses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import msgspec
import polars as pl

from rtrec_ray.features.definition import FeatureView
from rtrec_ray.features.sliding import Row
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.copy import Kind, copy_bytes
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.store import ListRows, TaskOutput

LOGGED_S: Final = 30
"""How long a follower may be away, in wall time, before it has to read its windows anew."""

_Columns = tuple[list[str], list[int], list[str]]
_LOG: Final[Mapping[str, Kind]] = {
    "partition": "int4",
    "cached": "bool",
    "next_offset": "int8",
    "height": "int4",
    "tiles": "bytea",
}
_LOGGED: Final = msgspec.msgpack.Decoder(dict[str, _Columns])


def log_tiles(cursor: Cursor, output: TaskOutput, *, views: Mapping[str, FeatureView]) -> None:
    """Log the tiles of an output, those of cached views apart. `views`: id → view; those of others are nobody's."""
    rows = []
    for cached in (False, True):
        frames = {
            view_id: frame
            for view_id, frame in output.tiles.items()
            if view_id in views and views[view_id].cached == cached and frame.height
        }
        if frames:
            height = sum(frame.height for frame in frames.values())
            tiles = msgspec.msgpack.encode({view_id: _columns(frame) for view_id, frame in frames.items()})
            rows.append((output.partition, cached, output.next_offset, height, tiles))
    if rows:
        copy_bytes(cursor, "features.tile_log", _LOG, rows)


def read_tile_rows(
    cursor: Cursor,
    views: Mapping[int, str],
    *,
    cached: bool,
    after: Mapping[int, int] | None,
    from_ms: int,
    most_rows: int | None = None,
) -> ListRows:
    """Offsets, and the tiles with start ≥ `from_ms` of these views (number in the tables → id), all of them cached or
    none; of one moment.

    Those that came behind `after` (partition → offset); or all, no more than `most_rows`, where that is None, or more
    than so many came, or they were logged too long ago.
    """
    logged = None if after is None else _logged(cursor, cached=cached, after=after, most_rows=most_rows)
    if logged is None:
        return _windows(cursor, views, from_ms=from_ms, most_rows=most_rows)
    offsets, commits = logged
    wanted, rows = set(views.values()), defaultdict[str, list[Row]](list)
    for commit in commits:
        for view_id in commit.keys() & wanted:
            rows[view_id] += [row for row in zip(*commit[view_id], strict=True) if row[1] >= from_ms]
    return ListRows(offsets=offsets, rows=rows, whole=False)


def _logged(
    cursor: Cursor, *, cached: bool, after: Mapping[int, int], most_rows: int | None
) -> tuple[dict[int, int], list[dict[str, _Columns]]] | None:
    """Offsets and the commits behind others; None if the log has not all of them, or they have too many rows."""
    known = {"partitions": list(after), "after": list(after.values())}
    cursor.execute(_sql()["logged_tiles"], {**known, "cached": cached, "most": most_rows})
    offsets: dict[int, int] = {}
    commits: list[dict[str, _Columns]] = []
    for partition, next_offset, lost, height, tiles in cursor.fetchall():
        if lost or (height is not None and tiles is None):
            return None
        offsets[partition] = next_offset
        if tiles is not None:
            commits.append(_LOGGED.decode(tiles))
    return offsets, commits


def _windows(cursor: Cursor, views: Mapping[int, str], *, from_ms: int, most_rows: int | None) -> ListRows:
    cursor.execute(_sql()["window_tiles"], {"views": list(views), "from_ms": from_ms, "most": most_rows})
    offsets: dict[int, int] = {}
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for partition, next_offset, number, key, start, state in cursor.fetchall():
        if key is None:
            offsets[partition] = next_offset
        else:
            rows[views[number]].append((key, start, state))
    return ListRows(offsets=offsets, rows=rows, whole=True)


def _columns(frame: pl.DataFrame) -> _Columns:
    return frame["key"].to_list(), frame["tile_start_ms"].to_list(), frame["state"].to_list()


def _sql() -> dict[str, str]:
    return load("rtrec_ray.stores.features", "features.sql")
