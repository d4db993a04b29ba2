"""Partial aggregates of tiles and how they add up: each takes partials in any order and gives one value.

A partial is plain JSON, so that a row of a table is the state and nothing else has to be kept:

    Total     n                                  count, sum
    Mean      [sum, n]
    Counts    [value, n, value, n, ...]          count_by, top_k
    Newest    [ms after the tile's start, event_id, value, ...]      last_n, distinct

What was taken can be taken back by a partial of its own, in any order too: numbers below zero, or the value null.
A window slides by `drop`: what each partial of a tile added is taken away again, so that moving on costs what comes and
goes, not what stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Aggregate(Protocol):
    """The sum of partials so far."""

    def add(self, partial: Any, *, tile_start_ms: int) -> None:
        """Take one tile's partial."""
        ...

    def drop(self, partial: Any, *, tile_start_ms: int) -> None:
        """Take away a partial that was added. All partials of a tile go together."""
        ...

    def value(self) -> Any:
        """What all partials taken so far come to."""
        ...


class Total:
    """A count or a sum.

    >>> total = Total(); total.add(2, tile_start_ms=0); total.add(3, tile_start_ms=10); total.value()
    5
    """

    def __init__(self) -> None:
        self._total = 0

    def add(self, partial: int, *, tile_start_ms: int) -> None:
        """Take a number."""
        self._total += partial

    def drop(self, partial: int, *, tile_start_ms: int) -> None:
        """Take a number away."""
        self._total -= partial

    def value(self) -> int:
        """The total; 0 before anything was taken."""
        return self._total


class Mean:
    """An arithmetic mean.

    >>> mean = Mean(); mean.add([6, 2], tile_start_ms=0); mean.add([3, 1], tile_start_ms=10); mean.value()
    3.0
    """

    def __init__(self) -> None:
        self._sum = 0
        self._count = 0

    def add(self, partial: Sequence[int], *, tile_start_ms: int) -> None:
        """Take [sum, n]."""
        self._sum += partial[0]
        self._count += partial[1]

    def drop(self, partial: Sequence[int], *, tile_start_ms: int) -> None:
        """Take [sum, n] away."""
        self._sum -= partial[0]
        self._count -= partial[1]

    def value(self) -> float | None:
        """The mean; None of nothing."""
        return self._sum / self._count if self._count else None


class Counts:
    """How often each value came.

    >>> counts = Counts(); counts.add(["ad", 1, "video", 2], tile_start_ms=0); counts.value()
    {'ad': 1, 'video': 2}
    """

    def __init__(self) -> None:
        self._counts: dict[Any, int] = {}

    def add(self, partial: Sequence[Any], *, tile_start_ms: int) -> None:
        """Take [value, n, value, n, ...]."""
        counts, pairs = self._counts, iter(partial)
        for value, n in zip(pairs, pairs, strict=True):
            counts[value] = counts.get(value, 0) + n

    def drop(self, partial: Sequence[Any], *, tile_start_ms: int) -> None:
        """Take [value, n, value, n, ...] away; a value that comes to nothing takes no memory."""
        counts, pairs = self._counts, iter(partial)
        for value, n in zip(pairs, pairs, strict=True):
            left = counts.get(value, 0) - n
            if left:
                counts[value] = left
            else:
                counts.pop(value, None)

    def value(self) -> dict[Any, int]:
        """Value → count, in ascending order of the values; those that came to nothing are left out."""
        return {value: self._counts[value] for value in sorted(self._counts) if self._counts[value] > 0}


class Top(Counts):
    """The `limit` most frequent values; equal counts by ascending value, text by code point.

    >>> top = Top(limit=2); top.add([7, 1, 5, 1, 9, 3], tile_start_ms=0); top.value()
    [[9, 3], [5, 1]]
    """

    def __init__(self, *, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def value(self) -> list[list[Any]]:  # type: ignore[override]
        """[[value, count], ...], the most frequent first."""
        counts = self._counts
        ranked = sorted(value for value, n in counts.items() if n > 0)
        ranked.sort(key=counts.__getitem__, reverse=True)  # reversed or not, a stable sort leaves ties as they are
        return [[value, counts[value]] for value in ranked[: self._limit]]


class Newest:
    """Values by time, the newest first; equal times by descending event_id. `limit` None keeps all.

    The value None takes one entry of that event back.

    >>> newest = Newest(limit=2, repeats=False)
    >>> newest.add([5, "a", 10, 7, "b", 11], tile_start_ms=0); newest.add([1, "c", 10], tile_start_ms=100)
    >>> newest.value()
    [10, 11]
    """

    def __init__(self, *, limit: int | None, repeats: bool) -> None:
        self._limit = limit
        self._repeats = repeats
        self._tiles: dict[int, list[tuple[int, str, Any]]] = {}

    def add(self, partial: Sequence[Any], *, tile_start_ms: int) -> None:
        """Take [ms after the tile's start, event_id, value, ...]."""
        parts = iter(partial)
        self._tiles.setdefault(tile_start_ms, []).extend(zip(parts, parts, parts, strict=True))

    def drop(self, partial: Sequence[Any], *, tile_start_ms: int) -> None:
        """Take the tile away."""
        self._tiles.pop(tile_start_ms, None)

    def value(self) -> list[Any]:
        """The values, newest first."""
        found: list[Any] = []
        known: set[Any] = set()
        for value in self._newest_first():
            if self._limit is not None and len(found) >= self._limit:
                break
            if self._repeats or value not in known:
                known.add(value)
                found.append(value)
        return found

    def _newest_first(self) -> Iterator[Any]:
        for start in sorted(self._tiles, reverse=True):
            for _, _, value in sorted(_standing(self._tiles[start]), reverse=True):
                yield value


def _standing(entries: list[tuple[int, str, Any]]) -> list[tuple[int, str, Any]]:
    """The entries of one tile that were not taken back; what takes one back has its time, and so is in its tile."""
    gone = Counter((ms, event) for ms, event, value in entries if value is None)
    if not gone:
        return entries
    standing = []
    for ms, event, value in entries:
        # Ids are unique within a partition only: of two events of one id and time, one retraction takes one.
        if value is not None and gone[(ms, event)] > 0:
            gone[(ms, event)] -= 1
        elif value is not None:
            standing.append((ms, event, value))
    return standing
