"""From tile rows to the value of a view: the partials of a window's tiles, added up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from types import GenericAlias
from typing import Any, Final

import msgspec

from rtrec_ray.eventtime.aggregate import Aggregate, Counts, Mean, Newest, Top, Total
from rtrec_ray.features.definition import Aggregation, FeatureView

Value = dict[str, Any]
_decode = msgspec.json.Decoder(list[list[Any]]).decode
_LONG: Final = 1 << 16  # of all rows' states; hundreds of rows with an event each


class Merged:
    """The sum of one key's rows. Rows come in any order; a window moves on by dropping all rows of a tile."""

    __slots__ = ("_aggregates", "_events", "_view")

    def __init__(self, view: FeatureView) -> None:
        self._view = view
        self._aggregates = [aggregate(each) for each in view.aggregations]
        self._events = 0

    def add(self, starts_ms: Sequence[int], states: str) -> None:
        """Take rows. `starts_ms`: of their tiles; `states`: theirs, with commas between them."""
        events, *columns = zip(*_decode(f"[{states}]"), strict=True)
        self._events += sum(events)
        for each, partials in zip(self._aggregates, columns, strict=True):
            each.add(partials, starts_ms)

    def drop(self, starts_ms: Sequence[int], states: str) -> None:
        """Take rows away that were added."""
        events, *columns = zip(*_decode(f"[{states}]"), strict=True)
        self._events -= sum(events)
        for each, partials in zip(self._aggregates, columns, strict=True):
            each.drop(partials, starts_ms)

    def value(self) -> Value | None:
        """The value; None when no event is behind the rows."""
        if self._events <= 0:
            return None
        parts = zip(self._view.aggregations, self._aggregates, strict=True)
        return {each.name: total.value() for each, total in parts}


class Once:
    """Values of a view that are read and not kept, each out of all rows of its key."""

    __slots__ = ("_listed", "_parts")

    def __init__(self, view: FeatureView) -> None:
        # Most parts are totals, and calling them one by one takes longer than adding up.
        made = [(each.name, aggregate(each)) for each in view.aggregations]
        self._parts = [(name, None if isinstance(each, Total) else each) for name, each in made]
        self._listed = tuple(isinstance(each, Newest) for _, each in made)

    def value(self, starts_ms: Sequence[int], states: str) -> Value | None:
        """What `Merged` comes to after these rows alone; None when no event is behind them."""
        # Of a busy key's lists most entries are never looked at, and while they are decoded nothing else runs.
        decode = _decode if len(states) < _LONG else _lists_undecoded(self._listed).decode
        events, *columns = zip(*decode(f"[{states}]"), strict=True)
        if sum(events) <= 0:
            return None
        parts = zip(self._parts, columns, strict=True)
        return {
            name: sum(partials) if each is None else each.alone(partials, starts_ms) for (name, each), partials in parts
        }


@cache
def _lists_undecoded(listed: tuple[bool, ...]) -> msgspec.json.Decoder[list[tuple[Any, ...]]]:
    """Of rows whose partials are lists of entries where `listed` says so, which stay JSON. Takes longer to make than an
    ordinary key to add up.
    """
    row = GenericAlias(tuple, (int, *(msgspec.Raw if each else Any for each in listed)))
    return msgspec.json.Decoder(GenericAlias(list, (row,)))


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
    starts_ms, states = [], []
    for tile_start_ms, state in rows:
        starts_ms.append(tile_start_ms)
        states.append(state)
    return Once(view).value(starts_ms, ",".join(states)) if states else None


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
