"""Sliding windows read from tiles: which tiles make up a window that ends at some time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rtrec_ray.eventtime.tile import tile_start

LONG_AGO_MS: Final = -(1 << 62)
"""Before all that is known; sums with a window's length stay within 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The tiles with start in [from_ms, to_ms), which say what held at `as_of_ms`. Times in ms UTC."""

    from_ms: int
    to_ms: int
    as_of_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A sliding window of `length_ms` over tiles of `tile_ms`; the length is a multiple of the tile."""

    length_ms: int
    tile_ms: int

    def at(self, as_of_ms: int) -> Span:
        """The window that ends at a past time, floored to the tile: [as_of - length, as_of).

        >>> Window(length_ms=300_000, tile_ms=10_000).at(1_000_007)
        Span(from_ms=700000, to_ms=1000000, as_of_ms=1000000)
        """
        end = tile_start(as_of_ms, tile_ms=self.tile_ms)
        return Span(from_ms=end - self.length_ms, to_ms=end, as_of_ms=end)

    def now(self, now_ms: int) -> Span:
        """The window that ends now: every tile that [now - length, now] touches, the open one included.

        >>> Window(length_ms=300_000, tile_ms=10_000).now(1_000_007)
        Span(from_ms=700000, to_ms=1010000, as_of_ms=1000007)
        """
        open_tile = tile_start(now_ms, tile_ms=self.tile_ms)
        return Span(from_ms=open_tile - self.length_ms, to_ms=open_tile + self.tile_ms, as_of_ms=now_ms)
