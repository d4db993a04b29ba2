"""The read path: values of many keys and views in one statement, prepared once per connection."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from rtrec_ray.features.definition import FeatureView
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Once, Value
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.prepared import Prepared, numbers, texts
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.store import Ask, ReadPoint

FRESH_MS: Final = 60_000  # wall time; the rebuilder has missed several rounds by then
_MOST_LISTS: Final = 2_000  # of 50 pairs take 10 MB or so
_SQL: Final = load("rtrec_ray.stores.features", "features.sql")
_TYPES: Final = ("bool", "int[]", "text[]", "bigint[]", "bigint[]", "bigint", "bigint", "int[]", "text[]", "int")


# What is not asked for is left out: even an empty part takes a tenth of a short read.
_PARTS: Final = {
    "read_tiles": ("behind", "tiles"),
    "read_lists": ("behind", "rounds", "lists"),
    "read_both": ("behind", "rounds", "lists", "tiles"),
}
_READS: Final = Prepared(
    {name: "\nUNION ALL\n".join(_SQL[f"part_{part}"].rstrip(";") for part in parts) for name, parts in _PARTS.items()},
    types=_TYPES,
)

offsets_of: Final = msgspec.json.Decoder(dict[int, int]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewAsks:
    """What is asked of one view, all of it over one window. `view_id`: what stands for the view in the tables;
    `texts`: the keys as the tables have them.
    """

    view: FeatureView
    view_id: int
    asks: Sequence[Ask]
    texts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one read found. `values`: None for a key without data; `stale`: asks whose lists are too old, without a
    value; `points`: view name → what is behind its values; `change`: the number of what is live; `kept_upto_ms`: event
    time whose retention is kept, None also when nobody wanted to know.
    """

    values: Mapping[ViewKey, Value | None]
    stale: Sequence[Ask]
    points: Mapping[str, ReadPoint]
    change: int | None
    kept_upto_ms: int | None


class KeptLists:
    """Lists that were decoded of late, so that one that did not change is not decoded again. For many threads.

    >>> kept = KeptLists(most=1)
    >>> kept.values([((1, "a"), '{"top":[]}'), ((1, "b"), '{"top":[[7,1]]}')]), len(kept)
    ([{'top': []}, {'top': [[7, 1]]}], 1)
    """

    def __init__(self, *, most: int = _MOST_LISTS) -> None:
        self._most = most
        self._lists: OrderedDict[tuple[int, str], tuple[str, Value]] = OrderedDict()
        self._lock = threading.Lock()

    def values(self, lists: Iterable[tuple[tuple[int, str], str]]) -> list[Value]:
        """The values of lists, (view id, key) and JSON each. They are shared: nobody may change them."""
        with self._lock:
            return [self._value(key, text) for key, text in lists]

    def __len__(self) -> int:
        return len(self._lists)

    def _value(self, key: tuple[int, str], text: str) -> Value:
        kept = self._lists.get(key)
        if kept is not None and kept[0] == text:
            self._lists.move_to_end(key)
            return kept[1]
        value: Value = msgspec.json.decode(text)
        self._lists[key] = (text, value)
        self._lists.move_to_end(key)
        if len(self._lists) > self._most:
            self._lists.popitem(last=False)
        return value


def read_values(
    cursor: Cursor,
    tiled: Sequence[ViewAsks],
    listed: Sequence[ViewAsks],
    *,
    now_ms: int,
    kept_lists: KeptLists,
    retention: bool = False,
) -> Found:
    """Read some values from tiles and others from lists. The cursor is in autocommit: one statement, one moment.

    `retention`: answer `kept_upto_ms` too.
    """
    name = "read_both" if tiled and listed else "read_lists" if listed else "read_tiles"
    _READS.execute(cursor, name, _parameters(tiled, listed, retention=retention))
    parts: defaultdict[str, list[tuple[int, str, str, str]]] = defaultdict(list)
    for part, view_id, key, as_of_ms, text in cursor.fetchall():
        parts[part].append((view_id, key, as_of_ms, text))
    ((_, change, kept_upto, offsets),) = parts["behind"]
    rounds = {view_id: (int(as_of_ms), offsets_of(text)) for view_id, _, as_of_ms, text in parts["round"]}
    behind = ReadPoints(now_ms=now_ms, offsets=offsets_of(offsets or "{}"), rounds=rounds)
    fresh = [each for each in listed if each.view_id in rounds]
    tiles = {(view_id, key): rows for view_id, key, _, rows in parts["tiles"]}
    lists = [((view_id, key), value) for view_id, key, _, value in parts["list"]]
    return Found(
        values=dict([*_of_tiles(tiled, tiles), *_of_lists(fresh, lists, kept_lists)]),
        stale=[ask for each in listed if each.view_id not in rounds for ask in each.asks],
        points=behind.of([*tiled, *listed]),
        change=None if change is None else int(change),
        kept_upto_ms=None if kept_upto is None else int(kept_upto),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPoints:
    """What is behind tiles, and behind the lists of each view (id in the tables → as of, offsets)."""

    now_ms: int
    offsets: Mapping[int, int]
    rounds: Mapping[int, tuple[int, Mapping[int, int]]]

    def of(self, asked: Iterable[ViewAsks]) -> dict[str, ReadPoint]:
        """View name → its point."""
        made = {}
        for each in asked:
            as_of_ms, offsets = self.rounds.get(each.view_id, (self.now_ms, self.offsets))
            made[each.view.name] = ReadPoint(as_of_ms=as_of_ms, offsets=offsets, version=each.view.version)
        return made


def _parameters(tiled: Sequence[ViewAsks], listed: Sequence[ViewAsks], *, retention: bool) -> tuple[object, ...]:
    spans = [ask.span for each in tiled for ask in each.asks]
    from_ms, to_ms = [span.from_ms for span in spans], [span.to_ms for span in spans]
    return (
        retention,
        *_ids_and_keys(tiled),
        numbers(from_ms),
        numbers(to_ms),
        min(from_ms, default=0),
        max(to_ms, default=0),
        *_ids_and_keys(listed),
        FRESH_MS,
    )


def _ids_and_keys(asked: Sequence[ViewAsks]) -> tuple[str, str]:
    ids = numbers([each.view_id for each in asked for _ in each.asks])
    return ids, texts([text for each in asked for text in each.texts])


def _of_tiles(
    tiled: Iterable[ViewAsks], tiles: Mapping[tuple[int, str], str]
) -> Iterator[tuple[ViewKey, Value | None]]:
    for each in tiled:
        once = Once(each.view)
        for ask, text in zip(each.asks, each.texts, strict=True):
            rows = tiles.get((each.view_id, text))
            yield ask.key, None if rows is None else once.value(rows)


def _of_lists(
    listed: Iterable[ViewAsks], lists: Sequence[tuple[tuple[int, str], str]], kept: KeptLists
) -> Iterator[tuple[ViewKey, Value | None]]:
    values = dict(zip([key for key, _ in lists], kept.values(lists), strict=True))
    for each in listed:
        for ask, text in zip(each.asks, each.texts, strict=True):
            yield ask.key, values.get((each.view_id, text))


def stored_text(key: str) -> str:
    """The key as PostgreSQL takes it: neither NUL nor half a surrogate pair, which no stored key has."""
    if key.isalnum() and key.isascii():  # as most
        return key
    return key.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
