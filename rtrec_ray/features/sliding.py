"""The values of all keys of a view in a window that moves on, for lists that are read far more often than they change.

Reading a window anew costs what is in it; this costs what comes into it and what leaves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.definition import FeatureView
from rtrec_ray.features.merge import Merged, Value

Row = tuple[str, int, str]
"""key, tile_start_ms, state"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a move changed: key → value, None for a key that has no data any more."""

    as_of_ms: int
    values: Mapping[str, Value | None]


class SlidingView:
    """One view. The window only moves forward; rows of a time before it are nobody's any more.

    >>> from rtrec_ray.eventtime.window import Window
    >>> from rtrec_ray.features.definition import Aggregation
    >>> clicks = Aggregation(name="clicks", kind="count")
    >>> view = FeatureView(name="v", version=1, keys=((),), window_ms=10, source=(), aggregations=(clicks,))
    >>> sliding, window = SlidingView(view), Window(length_ms=10, tile_ms=10)
    >>> sliding.take([("all", 0, "[1,1]"), ("all", 10, "[2,2]")])
    >>> [sliding.move(window.at(as_of_ms)).values for as_of_ms in (10, 20, 30)]
    [{'all': {'clicks': 1}}, {'all': {'clicks': 2}}, {'all': None}]
    """

    def __init__(self, view: FeatureView) -> None:
        self._view = view
        self._tiles: dict[int, list[tuple[str, str]]] = {}
        self._keys: dict[str, Merged] = {}
        self._rows_of: dict[str, int] = {}
        self._changed: set[str] = set()
        self._from_ms: int | None = None
        self._to_ms: int | None = None

    def take(self, rows: Iterable[Row]) -> None:
        """Take rows of any time, in any order."""
        for key, start, state in rows:
            if self._from_ms is not None and start < self._from_ms:
                continue
            self._tiles.setdefault(start, []).append((key, state))
            if self._to_ms is not None and start < self._to_ms:
                self._add(key, start, state)

    def move(self, span: Span) -> Changes:
        """Let the window be `span`; answers what changed since the last move."""
        entered_ms = span.from_ms if self._to_ms is None else self._to_ms
        left_ms = span.from_ms if self._from_ms is None else self._from_ms
        from_ms, to_ms = max(span.from_ms, left_ms), max(span.to_ms, entered_ms)
        for start in [start for start in self._tiles if start < from_ms]:
            rows = self._tiles.pop(start)
            if self._to_ms is not None and start < self._to_ms:
                for key, state in rows:
                    self._drop(key, start, state)
        for start in [start for start in self._tiles if entered_ms <= start < to_ms]:
            for key, state in self._tiles[start]:
                self._add(key, start, state)
        self._from_ms, self._to_ms = from_ms, to_ms
        changed, self._changed = self._changed, set()
        values = {key: self._keys[key].value() if key in self._keys else None for key in changed}
        return Changes(as_of_ms=span.as_of_ms, values=values)

    def __len__(self) -> int:
        """The number of keys with rows in the window."""
        return len(self._keys)

    def _add(self, key: str, start: int, state: str) -> None:
        if key not in self._keys:
            self._keys[key] = Merged(self._view)
        self._keys[key].add((start,), state)
        self._rows_of[key] = self._rows_of.get(key, 0) + 1
        self._changed.add(key)

    def _drop(self, key: str, start: int, state: str) -> None:
        self._rows_of[key] -= 1
        self._changed.add(key)
        if self._rows_of[key]:
            self._keys[key].drop((start,), state)
        else:
            del self._keys[key], self._rows_of[key]
