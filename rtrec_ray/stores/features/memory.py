"""The feature store in memory: for tests, and to try a definition without a server."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import polars as pl

from rtrec_ray.errors import UnknownView
from rtrec_ray.events import PROFILE_SCHEMA, CatalogItem, ProfileVersion
from rtrec_ray.eventtime.window import LONG_AGO_MS
from rtrec_ray.features.definition import NOT_BEGUN_MS, Definitions, FeatureView
from rtrec_ray.features.evolve import evolve
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Value, merge
from rtrec_ray.features.sliding import Row
from rtrec_ray.stores.features.followed import Known, News, RoundNews
from rtrec_ray.stores.features.lists import overtaken
from rtrec_ray.stores.features.plan import beyond_retention, kept_rows, plan, refuse
from rtrec_ray.stores.features.store import (
    HOUR_MS,
    Appended,
    Ask,
    CatalogueRead,
    ListRound,
    ListRows,
    Live,
    ProfilesRead,
    Reading,
    ReadPoint,
    TaskOutput,
    TaskState,
    VersionPoint,
)

_Versioned = tuple[str, int]


class MemoryFeatureTables:
    """What the PostgreSQL adapter keeps in tables; shared by stores with different definitions."""

    def __init__(self) -> None:
        self.live: Definitions | None = None
        self.change = 0
        self.dropped: dict[str, str] = {}
        self.starts: dict[str, dict[int, int | None]] = defaultdict(dict)
        self.seen_from_ms: dict[int, int | None] = {}
        self.tiles: dict[_Versioned, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
        self.seen: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self.written: dict[_Versioned, list[tuple[int, int, Row]]] = defaultdict(list)
        self.watermarks: dict[int, int | None] = {}
        self.offsets: dict[int, int] = {}
        self.kept_upto_ms: int | None = None
        self.profile_offsets: dict[int, int] = {}
        self.item_offsets: dict[int, int] = {}
        self.profiles: dict[int, dict[tuple[int, int], ProfileVersion]] = defaultdict(dict)
        self.items: dict[int, CatalogItem] = {}
        self.lists: dict[_Versioned, dict[str, Value]] = {}
        self.rounds: dict[_Versioned, ReadPoint] = {}
        self.round_numbers: Counter[_Versioned] = Counter()


class MemoryFeatureStore:
    """FeatureStore over `tables`. A write takes effect at once: there is no transaction to roll back."""

    def __init__(self, definitions: Definitions, *, tables: MemoryFeatureTables | None = None) -> None:
        self._given = definitions
        self.tables: Final = tables if tables is not None else MemoryFeatureTables()
        self._known = -1

    @property
    def definitions(self) -> Definitions:
        live = self.tables.live
        return self._given if live is None else replace(live, complete_from_ms=self._complete_from_ms(live))

    def refresh(self) -> bool:
        known, self._known = self._known, self.tables.change
        return known != self._known

    def apply(self, cursor: object) -> tuple[str, ...]:
        live, mark_ms = self.tables.live, self.tables.kept_upto_ms
        both = evolve(live, self._given, defined=self.tables.dropped)
        if live is not None and mark_ms is not None and both.retention_ms > live.retention_ms:
            known_ms = LONG_AGO_MS if both.tiles_from_ms is None else both.tiles_from_ms
            both = replace(both, tiles_from_ms=max(known_ms, mark_ms - live.retention_ms))
        if both != live:
            self.tables.live = both
            self.tables.change += 1
        known = () if live is None else {view.id for view in live.views}
        return tuple(view.id for view in both.views if view.id not in known)

    def begin(self, cursor: object, *, partition: int, next_offset: int, complete_from_ms: int | None) -> Live:
        before = self.definitions
        for view in before.views:
            self.tables.starts[view.id].setdefault(partition, complete_from_ms)
        if self.definitions != before:
            self.tables.change += 1
        return Live(definitions=self.definitions, change=self.tables.change)

    def changed(self, cursor: object, *, since: int) -> bool:
        return self.tables.change != since

    def drop_view(self, view_id: str) -> None:
        live = self.definitions
        if view_id not in [view.id for view in live.views]:
            raise UnknownView(f'no view "{view_id}" is live')
        self.tables.live = replace(live, views=tuple(view for view in live.views if view.id != view_id))
        self.tables.dropped[view_id] = live.text(live.view(view_id))
        self.tables.change += 1
        name, _, version = view_id.partition("@")
        for kept in (self.tables.tiles, self.tables.written, self.tables.lists, self.tables.rounds):
            kept.pop((name, int(version)), None)
        self.tables.starts.pop(view_id, None)

    def load(self, cursor: object, *, partition: int) -> TaskState:
        return TaskState(
            watermark_ms=self.tables.watermarks.get(partition),
            seen=sorted(self.tables.seen[partition]),
            profiles=_profile_frame(self.tables.profiles[partition].values()),
            seen_from_ms=self.tables.seen_from_ms.get(partition),
        )

    def append(self, cursor: object, output: TaskOutput) -> Appended:
        tiles = kept_rows(output.tiles, self.definitions, watermark_ms=self.tables.kept_upto_ms)
        self._append_tiles(replace(output, tiles=tiles))
        kept = [row for row in self.tables.seen[output.partition] if not _forgotten(row[0], output.seen_to_ms)]
        self.tables.seen[output.partition] = [*kept, *output.seen]
        self.tables.watermarks[output.partition] = output.watermark_ms
        self.tables.offsets[output.partition] = output.next_offset
        self.tables.profile_offsets[output.partition] = output.profile_offset
        self.tables.item_offsets[output.partition] = output.item_offset
        self.tables.seen_from_ms[output.partition] = output.seen_from_ms
        for row in _rows(output.profiles):
            profile = ProfileVersion(**row)
            self.tables.profiles[output.partition][(profile.user_id, profile.ts)] = profile
        for row in _rows(output.items):
            self._put_item(CatalogItem(**row))
        rows = sum(frame.height for frame in tiles.values())
        return Appended(rows=rows, change=self.tables.change)

    def read(self, asks: Sequence[ViewKey], *, now_ms: int, cached: bool) -> Reading:
        planned = plan(self.definitions, asks, as_of_ms=None, now_ms=now_ms)
        rounds, offsets = self.tables.rounds if cached else {}, dict(self.tables.offsets)
        return Reading(
            values={ask.key: self._value(ask, cached=cached) for ask in planned},
            points={
                ask.view.name: rounds.get(
                    _id(ask.view), ReadPoint(as_of_ms=now_ms, offsets=offsets, version=ask.view.version)
                )
                for ask in planned
            },
        )

    def get(
        self, asks: Sequence[ViewKey], *, as_of_ms: int | None, now_ms: int, cached: bool = False
    ) -> dict[ViewKey, Value | None]:
        if as_of_ms is None:
            return dict(self.read(asks, now_ms=now_ms, cached=cached).values)
        planned = plan(self.definitions, asks, as_of_ms=as_of_ms, now_ms=now_ms)
        refuse(beyond_retention(planned, self.definitions, watermark_ms=self.tables.kept_upto_ms))
        return {ask.key: self._value(ask, cached=False) for ask in planned}

    def profiles(self, user_ids: Iterable[int], *, as_of_ms: int) -> ProfilesRead:
        wanted = set(user_ids)
        versions = [each for of_partition in self.tables.profiles.values() for each in of_partition.values()]
        held = [each for each in versions if each.user_id in wanted and each.ts <= as_of_ms]
        return ProfilesRead(
            profiles={each.user_id: each for each in sorted(held, key=lambda each: each.ts)},
            point=_point(self.tables.profile_offsets, as_of_ms=as_of_ms),
        )

    def items(self, item_ids: Iterable[int]) -> dict[int, CatalogItem]:
        return {item_id: self.tables.items[item_id] for item_id in item_ids if item_id in self.tables.items}

    def catalogue(self) -> CatalogueRead:
        items = [item for _, item in sorted(self.tables.items.items())]
        return CatalogueRead(items=items, point=_point(self.tables.item_offsets))

    def list_rows(self, *, after: Mapping[int, int] | None, from_ms: int) -> ListRows:
        rows = {view.id: self._behind(view, after, from_ms) for view in self.definitions.views if view.cached}
        return ListRows(offsets=dict(self.tables.offsets), rows=rows, whole=after is None)

    def change(self) -> int:
        return self.tables.change

    def news(self, known: Known, *, from_ms: int, most_rows: int) -> News:
        views = self.definitions.views
        merged = {view.id: self._behind(view, known.offsets, from_ms) for view in views if not view.cached}
        room, rows = most_rows, {}
        for view_id, found in merged.items():
            rows[view_id] = found[:room]
            room -= len(rows[view_id])
        rounds = {
            view.id: RoundNews(
                number=self.tables.round_numbers[_id(view)],
                point=self.tables.rounds[_id(view)],
                fresh=True,
                values=None
                if known.rounds.get(view.id) == self.tables.round_numbers[_id(view)]
                else dict(self.tables.lists[_id(view)]),
            )
            for view in views
            if _id(view) in self.tables.rounds
        }
        return News(
            change=self.tables.change,
            offsets=dict(self.tables.offsets),
            rows=rows,
            lost=False,
            rounds=rounds,
        )

    def list_rounds(self) -> Mapping[str, int]:
        return {view.id: self.tables.round_numbers[_id(view)] for view in self.definitions.views}

    def put_lists(self, rounds: Sequence[ListRound]) -> None:
        first = {each.view.id: each for each in reversed(rounds)}.values()
        for each in first:
            if each.number != self.tables.round_numbers[_id(each.view)] + 1:
                raise overtaken(each)
        for each in rounds:
            old = {} if each.whole else self.tables.lists.get(_id(each.view), {})
            both = {**old, **each.changes.values}
            self.tables.round_numbers[_id(each.view)] = each.number
            self.tables.lists[_id(each.view)] = {key: value for key, value in both.items() if value is not None}
            self.tables.rounds[_id(each.view)] = ReadPoint(
                as_of_ms=each.changes.as_of_ms, offsets=dict(each.offsets), version=each.view.version
            )

    def drop_expired(self) -> int:
        mark = self.tables.kept_upto_ms = self._watermark_ms()
        if mark is None:
            return 0
        bound, dropped = (mark - self.definitions.retention_ms) // HOUR_MS * HOUR_MS, set()
        for keys in self.tables.tiles.values():
            for key, rows in list(keys.items()):
                dropped |= {start // HOUR_MS for start, _ in rows if start < bound}
                keys[key] = [row for row in rows if row[0] >= bound]
        for name, written in self.tables.written.items():
            self.tables.written[name] = [each for each in written if each[2][1] >= bound]
        return len(dropped)

    def _complete_from_ms(self, live: Definitions) -> dict[str, int]:
        found = {}
        for view in live.views:
            starts = self.tables.starts[view.id]
            if len(starts) < len(self.tables.offsets):
                found[view.id] = NOT_BEGUN_MS
            elif known := [ms for ms in starts.values() if ms is not None]:
                found[view.id] = max(known)
        return found

    def _value(self, ask: Ask, *, cached: bool) -> Value | None:
        lists = self.tables.lists.get(_id(ask.view))
        if cached and ask.view.cached and lists is not None:
            return lists.get(ask.key.key)
        rows = self.tables.tiles[_id(ask.view)].get(ask.key.key, [])
        return merge(ask.view, [row for row in rows if ask.span.from_ms <= row[0] < ask.span.to_ms])

    def _append_tiles(self, output: TaskOutput) -> None:
        views = {view.id: view for view in self.definitions.views}
        for view, frame in ((views[view_id], frame) for view_id, frame in output.tiles.items() if view_id in views):
            tiles, written = self.tables.tiles[_id(view)], self.tables.written[_id(view)]
            for key, start, state in frame.select("key", "tile_start_ms", "state").iter_rows():
                tiles[key].append((start, state))
                written.append((output.partition, output.next_offset, (key, start, state)))

    def _behind(self, view: FeatureView, after: Mapping[int, int] | None, from_ms: int) -> list[Row]:
        return [
            row
            for partition, next_offset, row in self.tables.written[_id(view)]
            if (after is None or next_offset > after.get(partition, 0)) and row[1] >= from_ms
        ]

    def _put_item(self, item: CatalogItem) -> None:
        old = self.tables.items.get(item.item_id)
        if old is None or item.ts >= old.ts:
            self.tables.items[item.item_id] = item

    def _watermark_ms(self) -> int | None:
        return max((mark for mark in self.tables.watermarks.values() if mark is not None), default=None)


def _point(offsets: Mapping[int, int], *, as_of_ms: int | None = None) -> VersionPoint | None:
    return VersionPoint(offsets=dict(offsets), as_of_ms=as_of_ms) if offsets else None


def _id(view: FeatureView) -> _Versioned:
    return view.name, view.version


def _forgotten(minute_ms: int, to_ms: int | None) -> bool:
    return to_ms is not None and minute_ms <= to_ms


def _rows(frame: pl.DataFrame | None) -> list[dict[str, Any]]:
    return [] if frame is None else frame.to_dicts()


def _profile_frame(profiles: Iterable[ProfileVersion]) -> pl.DataFrame:
    columns = PROFILE_SCHEMA.names()
    rows = [tuple(getattr(each, name) for name in columns) for each in profiles]
    return pl.DataFrame(rows, schema=PROFILE_SCHEMA, orient="row")
