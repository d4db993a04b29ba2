"""Live views and their values for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.stores.features.store import FeatureReader


def list_views(definitions: Definitions) -> list[dict[str, Any]]:
    """The live views for people and programs: name, version, the forms of the key, window, names of the values.

    `complete_from_ms`: event time from which on the values have all events; None: always.
    """
    return [
        {
            "name": view.name,
            "version": view.version,
            "keys": ["|".join(form) if form else "all" for form in view.keys],
            "window_ms": view.window_ms,
            "tile_ms": definitions.tile_ms,
            "values": [each.name for each in view.aggregations],
            "complete_from_ms": definitions.complete_from_ms.get(view.id),
        }
        for view in definitions.views
    ]


def read_view(
    store: FeatureReader, view: str, keys: Sequence[str], *, as_of_ms: int | None, now_ms: int
) -> dict[str, Any]:
    """`rtrec features get` as JSON: {"view", "as_of_ms", "version", "values": {KEY: {...} or None}}.

    `as_of_ms` of the answer is the time the values hold at: a time asked for is floored to the tile.
    Raises UnknownView, BeyondRetention, HistoryBehind, StoreUnavailable.
    """
    found = store.definitions.view(view, at_ms=now_ms if as_of_ms is None else as_of_ms)
    asks = [ViewKey(view=view, key=key) for key in keys]
    values = store.get(asks, as_of_ms=as_of_ms, now_ms=now_ms)
    window = store.definitions.window(found)
    span = window.now(now_ms) if as_of_ms is None else window.at(as_of_ms)
    return {
        "view": view,
        "as_of_ms": span.as_of_ms,
        "version": found.version,
        "values": {ask.key: values[ask] for ask in asks},
    }
