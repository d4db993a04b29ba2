"""The read path: values of many keys and views in one statement, prepared once per connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Merged, Value
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.prepared import Prepared, numbers, texts
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features import Ask, ReadPoint

_FRESH_MS: Final = 60_000  # wall time; the rebuilder has missed several rounds by then
_TYPES: Final = (
    *("int[]", "int[]", "text[]", "bigint[]", "bigint[]"),
    *("int[]", "int[]", "text[]"),
    *("int", "bigint", "bigint"),
)
_GET: Final = Prepared("get_values", load("rtrec_ray.stores.queries", "features.sql")["get_values"], types=_TYPES)
_starts_of: Final = msgspec.json.Decoder(list[int]).decode
_offsets_of: Final = msgspec.json.Decoder(dict[int, int]).decode

NumberedAsk = tuple[Ask, int]
"""What is asked for, and what stands for its view in the tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one read found. `merged`: rows by key; `stale`: asks whose lists are too old; `points`: view name → what is
    behind its values; `change`: the number of what is live; `kept_upto_ms`: event time whose retention is kept.
    """

    merged: Mapping[ViewKey, Merged]
    lists: Mapping[ViewKey, Value | None]
    stale: Sequence[NumberedAsk]
    points: Mapping[str, ReadPoint]
    change: int | None
    kept_upto_ms: int | None

    def value(self, key: ViewKey) -> Value | None:
        """Of a list, or of the rows; None without either."""
        if key in self.lists:
            return self.lists[key]
        merged = self.merged.get(key)
        return None if merged is None else merged.value()


def read_values(cursor: Cursor, tiled: Sequence[NumberedAsk], listed: Sequence[NumberedAsk], *, now_ms: int) -> Found:
    """Read some values from tiles and others from lists. The cursor is in autocommit: one statement, one moment."""
    n = len(tiled)
    parameters = (
        numbers(range(n)),
        numbers(view_id for _, view_id in tiled),
        texts(_text(ask.key.key) for ask, _ in tiled),
        numbers(ask.span.from_ms for ask, _ in tiled),
        numbers(ask.span.to_ms for ask, _ in tiled),
        numbers(range(len(listed))),
        numbers(view_id for _, view_id in listed),
        texts(_text(ask.key.key) for ask, _ in listed),
        _FRESH_MS,
        min((ask.span.from_ms for ask, _ in tiled), default=0),
        max((ask.span.to_ms for ask, _ in tiled), default=0),
    )
    _GET.execute(cursor, parameters)
    parts: defaultdict[str, list[tuple[Any, Any, Any]]] = defaultdict(list)
    for part, *row in cursor.fetchall():
        parts[part].append(tuple(row))
    ((_, kept_upto, offsets),) = parts["kept"]
    rounds = {view_id: (int(as_of_ms), _offsets_of(text)) for view_id, as_of_ms, text in parts["round"]}
    behind = ReadPoints(now_ms=now_ms, offsets=_offsets_of(offsets or "{}"), rounds=rounds)
    return Found(
        merged={tiled[ask][0].key: _merged(tiled[ask][0], starts, states) for ask, starts, states in parts["tiles"]},
        lists=_lists(listed, {ask: value for ask, _, value in parts["list"]}, rounds),
        stale=[each for each in listed if each[1] not in rounds],
        points=behind.of(tiled, listed),
        change=int(parts["live"][0][1]) if parts["live"] else None,
        kept_upto_ms=None if kept_upto is None else int(kept_upto),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPoints:
    """What is behind tiles, and behind the lists of each view (id in the tables → as of, offsets)."""

    now_ms: int
    offsets: Mapping[int, int]
    rounds: Mapping[int, tuple[int, Mapping[int, int]]]

    def of(self, tiled: Sequence[NumberedAsk], listed: Sequence[NumberedAsk]) -> dict[str, ReadPoint]:
        """View name → its point."""
        views = {view_id: ask.view for ask, view_id in (*tiled, *listed)}
        made = {}
        for view_id, view in views.items():
            as_of_ms, offsets = self.rounds.get(view_id, (self.now_ms, self.offsets))
            made[view.name] = ReadPoint(as_of_ms=as_of_ms, offsets=offsets, version=view.version)
        return made


def _merged(ask: Ask, starts: str, states: str) -> Merged:
    merged = Merged(ask.view)
    merged.add(_starts_of(f"[{starts}]"), states)
    return merged


def _lists(
    listed: Sequence[NumberedAsk], values: Mapping[int, str], rounds: Mapping[int, object]
) -> dict[ViewKey, Value | None]:
    return {
        ask.key: msgspec.json.decode(values[number]) if number in values else None
        for number, (ask, view_id) in enumerate(listed)
        if view_id in rounds
    }


def _text(key: str) -> str:
    """The key as PostgreSQL takes it: neither NUL nor half a surrogate pair, which no stored key has."""
    return key.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
