"""From tile rows to the value of a view: the partials of a window's tiles, added up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from types import GenericAlias
from typing import Any, Final

import msgspec

from rtrec_ray.eventtime.aggregate import Aggregate, Counts, Mean, Newest, Top, Total
from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.definition import Aggregation, FeatureView

Value = dict[str, Any]
_decode = msgspec.json.Decoder(list[list[Any]]).decode
_LONG: Final = 1 << 13  # of all rows; a hundred rows with an event each


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

    __slots__ = ("_alone", "_few", "_many", "_names")

    def __init__(self, view: FeatureView) -> None:
        made = [aggregate(each) for each in view.aggregations]
        self._names = [each.name for each in view.aggregations]
        # Most parts are totals, and calling them one by one takes longer than adding up.
        self._alone = [None if isinstance(each, Total) else each.alone for each in made]
        # Of a busy key's lists most entries are never looked at, and while they are decoded nothing else runs.
        self._few = _rows_decoder((False,) * len(made)).decode
        self._many = _rows_decoder(tuple(isinstance(each, Newest) for each in made)).decode

    def value(self, rows: str, *, span: Span | None = None) -> Value | None:
        """What `Merged` comes to after these rows alone; None when no event is behind them.

        `rows`: a `timed_state` each, with commas between them; only those of tiles in `span` count, if there is one.
        """
        decoded = (self._few if len(rows) < _LONG else self._many)(f"[{rows}]")
        if span is not None:
            decoded = [row for row in decoded if span.from_ms <= row[0] < span.to_ms]
            if not decoded:
                return None
        starts_ms, events, *columns = zip(*decoded, strict=True)
        if sum(events) <= 0:
            return None
        parts = zip(self._names, self._alone, columns, strict=True)
        return {name: sum(partials) if alone is None else alone(partials, starts_ms) for name, alone, partials in parts}


def timed_state(tile_start_ms: int, state: str) -> str:
    """A row with its time: a state is a JSON list, and the tile's start goes before its first part.

    >>> timed_state(10, "[2,[8,2]]")
    '[10,2,[8,2]]'
    """
    return f"[{tile_start_ms},{state[1:]}"


@cache
def _rows_decoder(undecoded: tuple[bool, ...]) -> msgspec.json.Decoder[list[tuple[Any, ...]]]:
    """Of rows with their times, whose partials stay JSON where `undecoded` says so.

    Takes longer to make than an ordinary key to add up.
    """
    row = GenericAlias(tuple, (int, int, *(msgspec.Raw if each else Any for each in undecoded)))
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
    timed = [timed_state(*row) for row in rows]
    return Once(view).value(",".join(timed)) if timed else None


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
            return Top(limit=each.limit)
        case "last_n" | "distinct":
            return Newest(limit=each.limit, repeats=each.repeats)
