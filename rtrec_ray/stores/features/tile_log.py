"""What each commit added, kept for a minute for those who follow: the change log of the tiles.

A follower takes up the commits behind the offsets it has. The tiles of a commit become visible together with its
offsets, and a partition's offsets only rise, so "behind offset n of partition p" misses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Final

import msgspec
import polars as pl

from rtrec_ray.features.sliding import Row
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.copy import Kind, copy_bytes
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.store import ListRows, TaskOutput

# What is longer is not logged: nobody could read a value of hundreds of megabytes.
_MOST_BYTES: Final = 64 << 20
_LOG: Final[Mapping[str, Kind]] = {
    "partition": "int4",
    "cached": "bool",
    "next_offset": "int8",
    "newest_tile_ms": "int8",
    "height": "int4",
    "tiles": "bytea",
}

_Columns = tuple[list[str], list[int], list[str]]
_decode: Final = msgspec.msgpack.Decoder(dict[int, _Columns]).decode


def log_tiles(cursor: Cursor, output: TaskOutput, *, cached: Collection[str]) -> bool:
    """Log the tiles of an output, those of the `cached` views (their ids) apart; answers whether they are logged, as
    they may be too long. The output has its `numbers`; tiles of views without one are nobody's.
    """
    rows, numbers = [], output.numbers or {}
    for of_cached in (False, True):
        frames = {
            numbers[view_id]: frame
            for view_id, frame in output.tiles.items()
            if view_id in numbers and (view_id in cached) == of_cached and frame.height
        }
        if frames:
            newest_ms = max(_newest_ms(frame) for frame in frames.values())
            height = sum(frame.height for frame in frames.values())
            tiles = msgspec.msgpack.encode({number: _columns(frame) for number, frame in frames.items()})
            rows.append((output.partition, of_cached, output.next_offset, newest_ms, height, tiles))
    if any(len(row[-1]) > _MOST_BYTES for row in rows):
        return False
    if rows:
        copy_bytes(cursor, "features.tile_log", _LOG, rows)
    return True


def logged_rows(
    cursor: Cursor,
    views: Mapping[int, str],
    *,
    cached: bool,
    after: Mapping[int, int],
    from_ms: int,
    most_rows: int | None = None,
) -> ListRows | None:
    """Offsets, and the tiles with start ≥ `from_ms` that came behind others (`after`: partition → offset), of these
    views (number in the tables → id), all of them cached or none; of one moment.

    None if they were logged too long ago, or too much was, or commits have more than `most_rows`.
    """
    known = {"partitions": list(after), "after": list(after.values()), "from_ms": from_ms, "most": most_rows}
    cursor.execute(_sql()["logged_tiles"], {**known, "cached": cached})
    offsets: dict[int, int] = {}
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for partition, next_offset, lost, height, tiles in cursor.fetchall():
        if lost or (height is not None and tiles is None):
            return None
        offsets[partition] = next_offset
        commit = {} if tiles is None else _decode(tiles)
        for number in commit.keys() & views.keys():
            rows[views[number]] += [row for row in zip(*commit[number], strict=True) if row[1] >= from_ms]
    return ListRows(offsets=offsets, rows=rows, whole=False)


def window_rows(cursor: Cursor, views: Mapping[int, str], *, from_ms: int, most_rows: int | None = None) -> ListRows:
    """Offsets, and all tiles with start ≥ `from_ms` of these views, at most so many; of one moment."""
    cursor.execute(_sql()["window_tiles"], {"views": list(views), "from_ms": from_ms, "most": most_rows})
    offsets: dict[int, int] = {}
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for partition, next_offset, number, key, start, state in cursor.fetchall():
        if key is None:
            offsets[partition] = next_offset
        else:
            rows[views[number]].append((key, start, state))
    return ListRows(offsets=offsets, rows=rows, whole=True)


def _newest_ms(frame: pl.DataFrame) -> int:
    return int(frame["tile_start_ms"].to_numpy().max())


def _columns(frame: pl.DataFrame) -> _Columns:
    return frame["key"].to_list(), frame["tile_start_ms"].to_list(), frame["state"].to_list()


def _sql() -> dict[str, str]:
    return load("rtrec_ray.stores.features", "features.sql")
