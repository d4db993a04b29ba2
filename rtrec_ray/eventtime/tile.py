"""Tiles: short stretches of event time of equal length, aligned to 1970, whose partial aggregates add up to windows."""

from __future__ import annotations


def tile_start(ts_ms: int, *, tile_ms: int) -> int:
    """The start of the tile [start, start + tile_ms) that holds `ts_ms`.

    >>> tile_start(19_999, tile_ms=10_000), tile_start(20_000, tile_ms=10_000), tile_start(-1, tile_ms=10_000)
    (10000, 20000, -10000)
    """
    return ts_ms // tile_ms * tile_ms
