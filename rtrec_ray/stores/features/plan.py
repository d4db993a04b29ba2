"""What a read needs: windows of views, and whether the tiles still have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import polars as pl

from rtrec_ray.errors import BeyondRetention
from rtrec_ray.eventtime.window import LONG_AGO_MS, Span
from rtrec_ray.features.definition import Definitions, FeatureView
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.stores.features.store import Ask


def plan(definitions: Definitions, keys: Iterable[ViewKey], *, as_of_ms: int | None, now_ms: int) -> list[Ask]:
    """What to read for each distinct key. Raises UnknownView."""

    @cache
    def of_view(name: str) -> tuple[FeatureView, Span]:
        view = definitions.view(name, at_ms=now_ms if as_of_ms is None else as_of_ms)
        window = definitions.window(view)
        return view, window.now(now_ms) if as_of_ms is None else window.at(as_of_ms)

    planned = ((key, *of_view(key.view)) for key in dict.fromkeys(keys))
    return [Ask(view=view, key=key, span=span) for key, view, span in planned]


def beyond_retention(asks: Iterable[Ask], definitions: Definitions, *, watermark_ms: int | None) -> list[Ask]:
    """Those whose windows begin before the tiles do, or before the tiles of their view have all events."""
    tiles_from_ms = LONG_AGO_MS if definitions.tiles_from_ms is None else definitions.tiles_from_ms
    kept_from_ms = max(_kept_from_ms(definitions, watermark_ms), tiles_from_ms)
    complete = definitions.complete_from_ms
    return [ask for ask in asks if ask.span.from_ms < max(kept_from_ms, complete.get(ask.view.id, LONG_AGO_MS))]


def kept_rows(
    tiles: Mapping[str, pl.DataFrame], definitions: Definitions, *, watermark_ms: int | None
) -> dict[str, pl.DataFrame]:
    """Tiles (view id → TILE_SCHEMA) without those that retention would drop again.

    By the mark that readers go by, not by the writer's own: as long as the history has not come so far, a reader takes
    the tiles for whole, however far ahead one partition is.
    """
    kept = pl.col("tile_start_ms") >= _kept_from_ms(definitions, watermark_ms)
    return {view_id: frame.filter(kept) for view_id, frame in tiles.items()}


def _kept_from_ms(definitions: Definitions, watermark_ms: int | None) -> int:
    return LONG_AGO_MS if watermark_ms is None else watermark_ms - definitions.retention_ms


def refuse(asks: Sequence[Ask]) -> None:
    """Raise BeyondRetention for the first of these, if there is any."""
    for ask in asks:
        raise BeyondRetention(
            f"{ask.view.name} as of {ask.span.as_of_ms} needs tiles from {ask.span.from_ms} on, which are not there",
            mend="raise retention in features.yaml, or read that time from the history",
        )
