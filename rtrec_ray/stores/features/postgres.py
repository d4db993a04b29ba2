"""The feature store in PostgreSQL: tiles appended by COPY, added up by the reader, dropped by the hour."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import polars as pl
from psycopg2 import errors, sql

from rtrec_ray.errors import HistoryBehind, StoreUnavailable
from rtrec_ray.events import PROFILE_SCHEMA, CatalogItem, ProfileVersion
from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.definition import Definitions, FeatureView
from rtrec_ray.features.json_text import json_bytes
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Value
from rtrec_ray.features.past import minutes_around, recompute
from rtrec_ray.postgres.connection import Cursor, Pool, streamed
from rtrec_ray.postgres.copy import Kind, copied_bytes, copy_bytes, copy_frame
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.followed import LOGGED_S, Known, News
from rtrec_ray.stores.features.lists import overtaken
from rtrec_ray.stores.features.live import LiveViews, apply_live, begin_views, drop_live, read_live
from rtrec_ray.stores.features.news import read_news
from rtrec_ray.stores.features.plan import beyond_retention, kept_rows, plan, refuse
from rtrec_ray.stores.features.sizes import ViewSize, add_sizes, forget_hour, read_sizes
from rtrec_ray.stores.features.store import (
    HOUR_MS,
    Appended,
    Ask,
    CatalogueRead,
    ListRound,
    ListRows,
    Live,
    Past,
    ProfilesRead,
    Reading,
    TaskOutput,
    TaskState,
    VersionPoint,
    profiles_of,
)
from rtrec_ray.stores.features.tile_log import log_tiles, logged_rows, window_rows
from rtrec_ray.stores.features.values import Found, KeptLists, ViewAsks, offsets_of, read_values, stored_text

_NO_PROFILES: Final = PROFILE_SCHEMA.to_frame()
_PROFILES_AT_ONCE: Final = 20_000
_LAST_PARTITION: Final = (1 << 31) - 1
_ONE_MOMENT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SEEN: Final[Mapping[str, Kind]] = {"partition": "int4", "minute_ms": "int8", "hashes": "bytea"}
_HOUR_TABLE: Final = re.compile(r"tiles_(m?)(\d+)")


class PostgresFeatureStore:
    """FeatureStore. A read of values is one statement, everything else a transaction on a connection of the pool.

    `past` gives the events of times whose tiles are dropped; without it such reads raise BeyondRetention.
    """

    def __init__(self, definitions: Definitions, *, pool: Pool, past: Past | None = None) -> None:
        self._given = definitions
        self._live: LiveViews | None = None
        self._past = past
        self._pool = pool
        self._lists = KeptLists()
        self._sql = load("rtrec_ray.stores.features", "features.sql")

    @property
    def definitions(self) -> Definitions:
        return self._given if self._live is None else self._live.definitions

    def refresh(self) -> bool:
        with self._pool.transaction() as cursor:
            live = read_live(cursor)
        changed = live is not None and (self._live is None or live.change != self._live.change)
        if changed:
            self._adopt(live)
        return changed

    def apply(self, cursor: Cursor) -> tuple[str, ...]:
        return apply_live(cursor, self._given)

    def begin(self, cursor: Cursor, *, partition: int, next_offset: int, complete_from_ms: int | None) -> Live:
        self._live = begin_views(
            cursor, partition=partition, next_offset=next_offset, complete_from_ms=complete_from_ms
        )
        return Live(definitions=self._live.definitions, change=self._live.change, numbers=self._live.view_ids)

    def changed(self, cursor: Cursor, *, since: int) -> bool:
        cursor.execute(self._sql["read_change"])
        row = cursor.fetchone()
        return row is not None and row[0] != since

    def drop_view(self, view_id: str) -> None:
        with self._pool.transaction() as cursor:
            drop_live(cursor, view_id)

    def load(self, cursor: Cursor, *, partition: int) -> TaskState:
        cursor.execute(self._sql["load_partition"], {"partition": partition})
        watermark_ms, seen_from_ms, moving = cursor.fetchone() or (None, None, False)
        # What waited when partitions were added is of users whose profiles are where their events come now.
        first, last = (0, _LAST_PARTITION) if moving else (partition, partition)
        asked = {"first": first, "last": last, "asked_from_ms": seen_from_ms}
        rows = streamed(cursor, self._sql["load_profiles"], asked, rows_at_once=_PROFILES_AT_ONCE)
        frames = [pl.DataFrame(some, schema=PROFILE_SCHEMA, orient="row") for some in rows]
        return TaskState(
            watermark_ms=watermark_ms,
            seen=self._seen(cursor, partition=partition),
            profiles=pl.concat([_NO_PROFILES, *frames], rechunk=True),
            seen_from_ms=seen_from_ms,
        )

    def append(self, cursor: Cursor, output: TaskOutput) -> Appended:
        kept = self._kept(cursor, replace(output, numbers=self._numbers(cursor, output)))
        written = self.append_tiles(cursor, kept)
        logged = log_tiles(cursor, kept, cached={view.id for view in self.definitions.views if view.cached})
        key = {"partition": output.partition}
        if output.seen_to_ms is not None:
            cursor.execute(self._sql["forget_seen"], {**key, "to_minute_ms": output.seen_to_ms})
        if output.seen:
            copy_bytes(cursor, "features.seen", _SEEN, [(output.partition, *row) for row in output.seen])
        if output.profiles is not None:
            cursor.execute(self._sql["put_profiles"], {**key, **output.profiles.to_dict(as_series=False)})
        if output.items is not None:
            cursor.execute(self._sql["put_items"], output.items.to_dict(as_series=False))
        mark = {"watermark_ms": output.watermark_ms, "seen_from_ms": output.seen_from_ms}
        upto = {name: getattr(output, name) for name in ("next_offset", "profile_offset", "item_offset")}
        cursor.execute(self._sql["put_partition"], {**key, **mark, **upto, "logged": logged, "logged_s": LOGGED_S})
        row = cursor.fetchone()
        return Appended(rows=written, change=row[0] if row and row[0] is not None else 0)

    def read(self, asks: Sequence[ViewKey], *, now_ms: int, cached: bool) -> Reading:
        planned = plan(self.definitions, asks, as_of_ms=None, now_ms=now_ms)
        found = self._read(
            [ask for ask in planned if not (cached and ask.view.cached)],
            [ask for ask in planned if cached and ask.view.cached],
            now_ms=now_ms,
        )
        values, points = found.values, found.points
        if found.stale:
            # The rebuilder was away: the tiles know as well.
            again = self._read(found.stale, (), now_ms=now_ms)
            values, points = {**values, **again.values}, {**points, **again.points}
        return Reading(values={ask.key: values[ask.key] for ask in planned}, points=points)

    def get(
        self, asks: Sequence[ViewKey], *, as_of_ms: int | None, now_ms: int, cached: bool = False
    ) -> dict[ViewKey, Value | None]:
        if as_of_ms is None:
            return dict(self.read(asks, now_ms=now_ms, cached=cached).values)
        planned = plan(self.definitions, asks, as_of_ms=as_of_ms, now_ms=now_ms)
        found = self._read(planned, (), now_ms=now_ms, retention=True)
        gone = beyond_retention(planned, self.definitions, watermark_ms=found.kept_upto_ms)
        of_past = self._from_past(gone)
        return {ask.key: of_past[ask.key] if ask.key in of_past else found.values[ask.key] for ask in planned}

    def profiles(self, user_ids: Iterable[int], *, as_of_ms: int) -> ProfilesRead:
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["get_profiles"], {"user_ids": list(user_ids), "as_of_ms": as_of_ms})
            found = cursor.fetchall()
        return ProfilesRead(
            profiles={row[1]: _profile(row[1:]) for row in found if row[1] is not None},
            point=_point(found[0][0], as_of_ms=as_of_ms),
        )

    def items(self, item_ids: Iterable[int]) -> dict[int, CatalogItem]:
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["get_items"], {"item_ids": list(item_ids)})
            return {row[0]: _item(row) for row in cursor.fetchall()}

    def catalogue(self) -> CatalogueRead:
        with self._pool.transaction() as cursor:
            cursor.execute(_ONE_MOMENT)
            cursor.execute(self._sql["item_offsets"])
            (offsets,) = cursor.fetchone() or (None,)
            cursor.execute(self._sql["list_items"])
            items = [_item(row) for row in cursor.fetchall()]
        return CatalogueRead(items=items, point=_point(offsets))

    def list_rows(self, *, after: Mapping[int, int] | None, from_ms: int) -> ListRows:
        with self._pool.statement() as cursor:
            views = {self._view_id(cursor, view): view.id for view in self.definitions.views if view.cached}
            logged = None if after is None else logged_rows(cursor, views, cached=True, after=after, from_ms=from_ms)
            return logged or window_rows(cursor, views, from_ms=from_ms)

    def change(self) -> int:
        with self._pool.statement() as cursor:
            cursor.execute(self._sql["read_change"])
            row = cursor.fetchone()
        return 0 if row is None else int(row[0])

    def news(self, known: Known, *, from_ms: int, most_rows: int) -> News:
        live = self._live  # other threads may take up another one meanwhile
        views = {} if live is None else {live.view_ids[view.id]: view for view in live.definitions.views}
        with self._pool.transaction() as cursor:
            cursor.execute(_ONE_MOMENT)
            news = read_news(cursor, known, views=views, from_ms=from_ms, most_rows=most_rows)
        return news if live is not None and live.change == news.change else replace(news, lost=True)

    def list_rounds(self) -> Mapping[str, int]:
        with self._pool.statement() as cursor:
            cursor.execute(self._sql["list_rounds"])
            numbers = dict(cursor.fetchall())
            rounds = {view.id: numbers.get(self._view_id(cursor, view), 0) for view in self.definitions.views}
        return rounds

    def put_lists(self, rounds: Sequence[ListRound]) -> None:
        with self._pool.transaction() as cursor:
            for view_id in dict.fromkeys(each.view.id for each in rounds):
                self._put_rounds(cursor, [each for each in rounds if each.view.id == view_id])

    def drop_expired(self) -> int:
        with self._pool.transaction() as cursor:
            mark = self._mark(cursor, "raise_kept_upto")
            cursor.execute(self._sql["list_tile_partitions"])
            names = [name for (name,) in cursor.fetchall()]
        if mark is None:
            return 0
        last_hour = (mark - self.definitions.retention_ms) // HOUR_MS
        return sum(self._drop(name) for name in names if _hour(name) < last_hour)

    def append_tiles(self, cursor: Cursor, output: TaskOutput) -> int:
        """Add the tiles of an output and nothing else of it; answers the number of rows."""
        if not any(frame.height for frame in output.tiles.values()):
            return 0
        numbers = self._numbers(cursor, output)
        frames = [
            frame.with_columns(
                view_id=pl.lit(numbers[view_id], dtype=pl.Int32),
                partition=pl.lit(output.partition),
                next_offset=pl.lit(output.next_offset, dtype=pl.Int64),
            )
            for view_id, frame in output.tiles.items()
            if view_id in numbers
        ]
        if not frames:
            return 0
        rows = pl.concat(frames).sort("view_id", "key", "tile_start_ms")
        hours = (rows["tile_start_ms"] // HOUR_MS).unique().sort().to_list()
        cursor.execute(self._sql["ensure_tiles"], {"hours": hours})
        add_sizes(cursor, rows, partition=output.partition)
        try:
            return copy_frame(cursor, "features.tiles", rows)
        except errors.CheckViolation as error:
            # The keeper dropped an hour that was there a moment ago: what is older than kept is left out the next time.
            raise StoreUnavailable("an hour of tiles was dropped while it was written to") from error

    def _seen(self, cursor: Cursor, *, partition: int) -> Iterator[tuple[int, bytes]]:
        """A minute at a time, for they may be as long as all else that their reader keeps."""
        cursor.execute(self._sql["list_seen"], {"partition": partition})
        for minute, partitions in cursor.fetchall():
            of_minute = {"minute_ms": minute, "partitions": partitions}
            for hashes in copied_bytes(cursor, self._sql["load_seen"], of_minute):
                yield minute, hashes

    def _numbers(self, cursor: Cursor, output: TaskOutput) -> Mapping[str, int]:
        """What stands for the views of an output. One that was dropped while its tiles were computed has nobody to
        read them, also if it was applied again.
        """
        if output.numbers is not None:
            return output.numbers
        return {view.id: self._view_id(cursor, view) for view in self.definitions.views}

    def _kept(self, cursor: Cursor, output: TaskOutput) -> TaskOutput:
        mark = self._mark(cursor, "kept_upto")
        return replace(output, tiles=kept_rows(output.tiles, self.definitions, watermark_ms=mark))

    def _mark(self, cursor: Cursor, name: str) -> int | None:
        cursor.execute(self._sql[name])
        row = cursor.fetchone()
        return row[0] if row else None

    def _read(self, tiled: Sequence[Ask], listed: Sequence[Ask], *, now_ms: int, retention: bool = False) -> Found:
        with self._pool.statement() as cursor:
            found = read_values(
                cursor,
                self._by_view(cursor, tiled),
                self._by_view(cursor, listed),
                now_ms=now_ms,
                kept_lists=self._lists,
                retention=retention,
            )
            if self._live is not None and found.change not in (None, self._live.change):
                self._adopt(read_live(cursor))  # this answer is of what was live; the next one is not
        return found

    def _by_view(self, cursor: Cursor, asks: Sequence[Ask]) -> list[ViewAsks]:
        by_name: defaultdict[str, list[Ask]] = defaultdict(list)
        for ask in asks:
            by_name[ask.key.view].append(ask)
        return [
            ViewAsks(
                view=of_view[0].view,
                view_id=self._view_id(cursor, of_view[0].view),
                asks=of_view,
                texts=[stored_text(ask.key.key) for ask in of_view],
            )
            for of_view in by_name.values()
        ]

    def _from_past(self, asks: Sequence[Ask]) -> dict[ViewKey, Value | None]:
        """Values recomputed from the history, a view at a time. Raises BeyondRetention when there is none, and
        HistoryBehind.
        """
        if self._past is None:
            refuse(asks)
            return {}
        values: dict[ViewKey, Value | None] = {}
        for view in {ask.view.id: ask.view for ask in asks}.values():
            of_view = [ask for ask in asks if ask.view is view]
            values |= self._recompute(self._past, of_view)
        return values

    def _recompute(self, past: Past, asks: Sequence[Ask]) -> dict[ViewKey, Value | None]:
        view, span = asks[0].view, asks[0].span
        self._check_history(view, asks, span=span)
        from_ms, to_ms = minutes_around(span)
        portions = ((events, profiles_of(self, view, events)) for events in past.behavior(from_ms=from_ms, to_ms=to_ms))
        values = recompute(self.definitions, view.id, [ask.key.key for ask in asks], portions, span=span)
        return {ask.key: values[ask.key.key] for ask in asks}

    def _check_history(self, view: FeatureView, asks: Sequence[Ask], *, span: Span) -> None:
        """Raise HistoryBehind if the history may lack events of these values; to be asked before it is read."""
        with self._pool.statement() as cursor:
            view_id, keys = self._view_id(cursor, view), [stored_text(ask.key.key) for ask in asks]
            of_span = {"from_ms": span.from_ms, "to_ms": span.to_ms}
            cursor.execute(self._sql["history_lacks"], {"view_id": view_id, "keys": keys, **of_span})
            (lacks,) = cursor.fetchone() or (False,)
        if lacks:
            raise HistoryBehind(
                f"{view.name} as of {span.as_of_ms} needs events that the history does not have yet",
                mend="ask again in some seconds: it takes events up each pipeline.history_commit_s",
            )

    def sizes(self) -> dict[str, ViewSize]:
        """Live view (NAME@VERSION) → what it keeps. Raises StoreUnavailable."""
        with self._pool.transaction() as cursor:
            return read_sizes(cursor)

    def profile_versions(self, user_ids: Sequence[int]) -> pl.DataFrame:
        """See ProfileSource."""
        if not user_ids:
            return _NO_PROFILES
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["get_profile_versions"], {"user_ids": list(user_ids)})
            return pl.DataFrame(cursor.fetchall(), schema=PROFILE_SCHEMA, orient="row")

    def _put_rounds(self, cursor: Cursor, rounds: Sequence[ListRound]) -> None:
        """Those of one view are written as one: nobody can see a list that the same transaction replaces."""
        first, last = rounds[0], rounds[-1]
        whole = max((index for index, each in enumerate(rounds) if each.whole), default=None)
        changes = {key: value for each in rounds[whole:] for key, value in each.changes.values.items()}
        # Before the first statement: a session of the pipeline ends when it is idle in a transaction for seconds.
        values = {key: json_bytes(value).decode() for key, value in changes.items() if value is not None}
        view = {"view_id": self._view_id(cursor, last.view), "before": first.number - 1, "round": last.number}
        at = {"as_of_ms": last.changes.as_of_ms, "offsets": json.dumps(last.offsets)}
        cursor.execute(self._sql["put_round"], {**view, **at})
        if not cursor.rowcount:
            raise overtaken(first)
        if values:
            cursor.execute(self._sql["put_lists"], {**view, "keys": list(values), "values": list(values.values())})
        if whole is not None:
            cursor.execute(self._sql["drop_other_lists"], {**view, "keys": list(values)})
        elif gone := [key for key, value in changes.items() if value is None]:
            cursor.execute(self._sql["drop_lists"], {**view, "keys": gone})

    def _drop(self, name: str) -> int:
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["patience"])
            try:
                cursor.execute(sql.SQL(self._sql["drop_partition"]).format(partition=sql.Identifier(name)))
            except errors.LockNotAvailable:
                return 0
            forget_hour(cursor, _hour(name))
        return 1

    def _adopt(self, live: LiveViews | None) -> None:
        """Take up what was read, unless another thread read something newer meanwhile."""
        if live is not None and (self._live is None or live.change >= self._live.change):
            self._live = live

    def _view_id(self, cursor: Cursor, view: FeatureView) -> int:
        """What stands for a version of a view in the tables; 0, which no tile has, as long as it is not live."""
        if self._live is None or view.id not in self._live.view_ids:
            self._adopt(read_live(cursor))
        return 0 if self._live is None else self._live.view_ids.get(view.id, 0)


def _hour(name: str) -> int:
    match = _HOUR_TABLE.fullmatch(name)
    if match is None:
        raise ValueError(f"features.{name} is no partition by the hour")
    return -int(match[2]) if match[1] else int(match[2])


def _point(offsets: str | None, *, as_of_ms: int | None = None) -> VersionPoint | None:
    return None if offsets is None else VersionPoint(offsets=offsets_of(offsets), as_of_ms=as_of_ms)


def _profile(row: tuple[Any, ...]) -> ProfileVersion:
    return ProfileVersion(**dict(zip(PROFILE_SCHEMA.names(), row, strict=True)))


def _item(row: tuple[Any, ...]) -> CatalogItem:
    item_id, ts, item_type, category_id, title = row
    return CatalogItem(item_id=item_id, ts=ts, item_type=item_type, category_id=category_id, title=title)
