"""What PostgreSQL has that a follower of the feature store has not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rtrec_ray.features.definition import FeatureView
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.followed import Known, News, RoundNews
from rtrec_ray.stores.features.store import ListRows, ReadPoint
from rtrec_ray.stores.features.tile_log import logged_rows, window_rows
from rtrec_ray.stores.features.values import FRESH_MS, offsets_of


class _Round(msgspec.Struct, frozen=True):
    """A row of features.top_list_rounds, in the statement's words."""

    view_id: int
    as_of_ms: int
    offsets: dict[int, int]
    round: int
    fresh: bool

    def news(self, view: FeatureView, values: Mapping[str, Any] | None) -> RoundNews:
        point = ReadPoint(as_of_ms=self.as_of_ms, offsets=self.offsets, version=view.version)
        return RoundNews(number=self.round, point=point, fresh=self.fresh, values=values)


_ROUNDS: Final = msgspec.json.Decoder(list[_Round])


def read_news(cursor: Cursor, known: Known, *, views: Mapping[int, FeatureView], from_ms: int, most_rows: int) -> News:
    """See Followed; in a transaction that reads all of one moment. `views`: number in the tables → view."""
    sql = load("rtrec_ray.stores.features", "features.sql")
    cursor.execute(sql["news"], {"fresh_ms": FRESH_MS})
    change, upto, rounds = cursor.fetchone() or (None, None, None)
    offsets = {} if upto is None else offsets_of(upto)
    merged = {number: view.id for number, view in views.items() if not view.cached}
    tiles: ListRows | None
    if known.offsets is None:
        tiles = window_rows(cursor, merged, from_ms=from_ms, most_rows=most_rows)
    elif offsets == known.offsets:  # looks are more frequent than commits
        tiles = ListRows(offsets=offsets, rows={}, whole=False)
    else:
        tiles = logged_rows(cursor, merged, cached=False, after=known.offsets, from_ms=from_ms, most_rows=most_rows)
    last = {each.view_id: each for each in _ROUNDS.decode(rounds or "[]") if each.view_id in views}
    risen = {
        number: known.rounds.get(views[number].id, -1)
        for number, each in last.items()
        if each.round != known.rounds.get(views[number].id)
    }
    lists: dict[int, dict[str, Any]] = {number: {} for number in risen}
    if risen:
        cursor.execute(sql["news_of_lists"], {"views": list(risen), "rounds": list(risen.values())})
        for number, key, value in cursor.fetchall():
            lists[number][key] = None if value is None else msgspec.json.decode(value)
    return News(
        change=change or 0,
        offsets=offsets,
        rows={} if tiles is None else tiles.rows,
        lost=tiles is None,
        rounds={views[number].id: each.news(views[number], lists.get(number)) for number, each in last.items()},
    )
