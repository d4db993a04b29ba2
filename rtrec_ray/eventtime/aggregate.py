"""Partial aggregates of tiles and how they add up: each takes partials in any order, many at once, and gives one value.

A partial is plain JSON, so that a row of a table is the state and nothing else has to be kept:

    Total     n                                  count, sum
    Mean      [sum, n]
    Counts    [value, n, value, n, ...]          count_by, top_k
    Newest    [ms after the tile's start, event_id, value, ...]      last_n, distinct

What was taken can be taken back by a partial of its own, in any order too: numbers below zero, or the value null.
A window slides by `drop`: what each partial of a tile added is taken away again, so that moving on costs what comes and
goes, not what stays. `alone` is for a value that is read once and not kept: nothing is built up to be taken from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

_Listed = Sequence[Any] | msgspec.Raw
_decode: Final = msgspec.json.Decoder(list[Any]).decode


class Aggregate(Protocol):
    """The sum of partials so far. Each comes with the start of its tile, ms."""

    def add(self, partials: Sequence[Any], starts_ms: Sequence[int]) -> None:
        """Take partials."""
        ...

    def drop(self, partials: Sequence[Any], starts_ms: Sequence[int]) -> None:
        """Take partials away that were added. All partials of a tile go together."""
        ...

    def value(self) -> Any:
        """What all partials taken so far come to."""
        ...

    def alone(self, partials: Sequence[Any], starts_ms: Sequence[int]) -> Any:
        """What these partials come to without those taken: `add` to an empty one and its `value`, but quicker."""
        ...


class Total:
    """A count or a sum.

    >>> total = Total(); total.add([2, 3], [0, 10]); total.value()
    5
    """

    def __init__(self) -> None:
        self._total = 0

    def add(self, partials: Sequence[int], starts_ms: Sequence[int]) -> None:
        """Take numbers."""
        self._total += sum(partials)

    def drop(self, partials: Sequence[int], starts_ms: Sequence[int]) -> None:
        """Take numbers away."""
        self._total -= sum(partials)

    def value(self) -> int:
        """The total; 0 before anything was taken."""
        return self._total

    def alone(self, partials: Sequence[int], starts_ms: Sequence[int]) -> int:
        """The total of these."""
        return sum(partials)


class Mean:
    """An arithmetic mean.

    >>> mean = Mean(); mean.add([[6, 2], [3, 1]], [0, 10]); mean.value()
    3.0
    """

    def __init__(self) -> None:
        self._sum = 0
        self._count = 0

    def add(self, partials: Sequence[Sequence[int]], starts_ms: Sequence[int]) -> None:
        """Take [sum, n] each."""
        self._sum += sum(total for total, _ in partials)
        self._count += sum(n for _, n in partials)

    def drop(self, partials: Sequence[Sequence[int]], starts_ms: Sequence[int]) -> None:
        """Take [sum, n] each away."""
        self.add([(-total, -n) for total, n in partials], starts_ms)

    def value(self) -> float | None:
        """The mean; None of nothing."""
        return self._sum / self._count if self._count else None

    def alone(self, partials: Sequence[Sequence[int]], starts_ms: Sequence[int]) -> float | None:
        """The mean of these."""
        mean = Mean()
        mean.add(partials, starts_ms)
        return mean.value()


class Counts:
    """How often each value came.

    >>> counts = Counts(); counts.add([["ad", 1], ["video", 2]], [0, 10]); counts.value()
    {'ad': 1, 'video': 2}
    """

    def __init__(self) -> None:
        self._counts: dict[Any, int] = {}

    def add(self, partials: Sequence[Sequence[Any]], starts_ms: Sequence[int]) -> None:
        """Take [value, n, value, n, ...] each."""
        _count(self._counts, partials)

    def drop(self, partials: Sequence[Sequence[Any]], starts_ms: Sequence[int]) -> None:
        """Take [value, n, value, n, ...] each away; a value that comes to nothing takes no memory."""
        counts = self._counts
        for partial in partials:
            pairs = iter(partial)
            for value, n in zip(pairs, pairs, strict=True):
                left = counts.get(value, 0) - n
                if left:
                    counts[value] = left
                else:
                    counts.pop(value, None)

    def value(self) -> Any:
        """Value → count, in ascending order of the values; those that came to nothing are left out."""
        return self._of(self._counts)

    def alone(self, partials: Sequence[Sequence[Any]], starts_ms: Sequence[int]) -> Any:
        """The value of these."""
        return self._of(_count({}, partials))

    def _of(self, counts: Mapping[Any, int]) -> Any:
        return {value: counts[value] for value in sorted(counts) if counts[value] > 0}


class Top(Counts):
    """The `limit` most frequent values, None: all; equal counts by ascending value, text by code point.

    >>> top = Top(limit=2); top.add([[7, 1, 5, 1, 9, 3]], [0]); top.value()
    [[9, 3], [5, 1]]
    """

    def __init__(self, *, limit: int | None) -> None:
        super().__init__()
        self._limit = limit

    def _of(self, counts: Mapping[Any, int]) -> list[list[Any]]:
        """[[value, count], ...], the most frequent first."""
        ranked = sorted(value for value, n in counts.items() if n > 0)
        ranked.sort(key=counts.__getitem__, reverse=True)  # reversed or not, a stable sort leaves ties as they are
        return [[value, counts[value]] for value in ranked[: self._limit]]


class Newest:
    """Values by time, the newest first; equal times by descending event_id. `limit` None keeps all.

    The value None takes one entry of that event back.

    >>> newest = Newest(limit=2, repeats=False)
    >>> newest.add([[5, "a", 10, 7, "b", 11], [1, "c", 10]], [0, 100])
    >>> newest.value()
    [10, 11]
    """

    def __init__(self, *, limit: int | None, repeats: bool) -> None:
        self._limit = limit
        self._repeats = repeats
        # Entries of a tile are looked at when a value goes that far back, which with a limit it seldom does.
        self._tiles: dict[int, list[_Listed]] = {}

    def add(self, partials: Sequence[_Listed], starts_ms: Sequence[int]) -> None:
        """Take [ms after the tile's start, event_id, value, ...] each, or that as JSON."""
        tiles = self._tiles
        for start, partial in zip(starts_ms, partials, strict=True):
            tiles.setdefault(start, []).append(partial)

    def drop(self, partials: Sequence[_Listed], starts_ms: Sequence[int]) -> None:
        """Take the tiles away."""
        for start in starts_ms:
            self._tiles.pop(start, None)

    def value(self) -> list[Any]:
        """The values, newest first."""
        values = self._newest_first()
        return list(islice(values if self._repeats else _distinct(values), self._limit))

    def alone(self, partials: Sequence[_Listed], starts_ms: Sequence[int]) -> list[Any]:
        """The values of these, newest first."""
        # What is undecoded has many entries, of which few are looked at.
        if partials and not isinstance(partials[0], msgspec.Raw):
            values = _newest_first(partials, starts_ms)
            if values is not None:
                return (values if self._repeats else list(dict.fromkeys(values)))[: self._limit]
        newest = Newest(limit=self._limit, repeats=self._repeats)
        newest.add(partials, starts_ms)
        return newest.value()

    def _newest_first(self) -> Iterator[Any]:
        for start in sorted(self._tiles, reverse=True):
            entries = [entry for partial in self._tiles[start] for entry in _entries(partial)]
            if len(entries) == 1 and entries[0][2] is not None:  # as in most tiles of a user
                yield entries[0][2]
            else:
                yield from (value for _, _, value in sorted(_standing(entries), reverse=True))


def _newest_first(partials: Sequence[Sequence[Any]], starts_ms: Sequence[int]) -> list[Any] | None:
    """The values of all entries; None if one takes another back. Few rows, as a user's, are not worth going by tile."""
    entries: list[tuple[int, str, Any]] = []
    for start, partial in zip(starts_ms, partials, strict=True):
        if len(partial) == 3:  # as in most tiles of a user
            ms, event, value = partial
            if value is None:
                return None
            entries.append((start + ms, event, value))
        elif None in partial:  # of its parts only a value can be
            return None
        elif partial:
            times = [start + ms for ms in partial[::3]]
            entries += zip(times, partial[1::3], partial[2::3], strict=True)
    entries.sort(reverse=True)
    return [value for _, _, value in entries]


def _count(counts: dict[Any, int], partials: Sequence[Sequence[Any]]) -> dict[Any, int]:
    """Add [value, n, value, n, ...] each."""
    for partial in partials:
        if len(partial) == 2:  # as in most tiles of a user
            value, n = partial
            counts[value] = counts.get(value, 0) + n
        elif partial:
            pairs = iter(partial)
            for value, n in zip(pairs, pairs, strict=True):
                counts[value] = counts.get(value, 0) + n
    return counts


def _distinct(values: Iterator[Any]) -> Iterator[Any]:
    known: set[Any] = set()
    for value in values:
        if value not in known:
            known.add(value)
            yield value


def _entries(partial: _Listed) -> Iterator[tuple[int, str, Any]]:
    parts: Iterator[Any] = iter(_decode(partial) if isinstance(partial, msgspec.Raw) else partial)
    return zip(parts, parts, parts, strict=True)


def _standing(entries: list[tuple[int, str, Any]]) -> list[tuple[int, str, Any]]:
    """The entries of one tile that were not taken back; what takes one back has its time, and so is in its tile."""
    taken_back = [(ms, event) for ms, event, value in entries if value is None]
    if not taken_back:
        return entries
    gone = Counter(taken_back)
    standing = []
    for ms, event, value in entries:
        # Ids are unique within a partition only: of two events of one id and time, one retraction takes one.
        if value is not None and gone[(ms, event)] > 0:
            gone[(ms, event)] -= 1
        elif value is not None:
            standing.append((ms, event, value))
    return standing
