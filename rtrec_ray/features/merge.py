"""From tile rows to the value of a view: the partials of a window's tiles, added up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from rtrec_ray.eventtime.aggregate import Aggregate, Counts, Mean, Newest, Top, Total
from rtrec_ray.features.definition import Aggregation, FeatureView

Value = dict[str, Any]


def merge(view: FeatureView, rows: Iterable[tuple[int, str]]) -> Value | None:
    """The value of one key out of its rows (tile_start_ms, state), in any order; None when no event is behind them.

    >>> from rtrec_ray.features.definition import Aggregation, FeatureView
    >>> clicks = Aggregation(name="top", kind="top_k", field="item_id", limit=1)
    >>> view = FeatureView(name="v", version=1, keys=((),), window_ms=10, source=(), aggregations=(clicks,))
    >>> merge(view, [(0, "[2,[7,1,8,1]]"), (10, "[2,[8,2]]")])
    {'top': [[8, 3]]}
    >>> merge(view, [(0, "[1,[7,1]]"), (0, "[-1,[7,-1]]")]) is None
    True
    """
    aggregates = [aggregate(each) for each in view.aggregations]
    events = 0
    for tile_start_ms, state in rows:
        n, *partials = msgspec.json.decode(state)
        events += n
        for each, partial in zip(aggregates, partials, strict=True):
            each.add(partial, tile_start_ms=tile_start_ms)
    if events <= 0:
        return None
    return {each.name: total.value() for each, total in zip(view.aggregations, aggregates, strict=True)}


def aggregate(each: Aggregation) -> Aggregate:
    """An empty aggregate of that kind."""
    match each.kind:
        case "count" | "sum":
            return Total()
        case "mean":
            return Mean()
        case "count_by":
            return Counts()
        case "top_k":
            return Top(limit=each.limit or 0)
        case "last_n" | "distinct":
            return Newest(limit=each.limit, repeats=each.repeats)
