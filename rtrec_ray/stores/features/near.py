"""Windows in the reader's own memory: reads of now without a round trip, as of the last look at what commits added.

This is a replica, not a set of entries: it has the tiles of every window and all lists, of one moment, and moves on to
the next as a whole. So a key that is not there has no data, nothing is ever invalidated, and what is behind a value is
known as exactly as for a read of the store. Others call it a near cache, or a global table.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from operator import attrgetter
from typing import Final

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.errors import ServerUnavailable, UnknownView
from rtrec_ray.events import CatalogItem
from rtrec_ray.eventtime.window import LONG_AGO_MS, Span
from rtrec_ray.features.definition import Definitions, FeatureView
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Once, Value, timed_state
from rtrec_ray.features.sliding import Row
from rtrec_ray.stores.features.followed import LONGEST_PAUSE_S, Followed, Known, News, RoundNews
from rtrec_ray.stores.features.plan import plan
from rtrec_ray.stores.features.store import Ask, CatalogueRead, ProfilesRead, Reading, ReadPoint

log = logging.getLogger(__name__)

# A look that takes long is followed by a longer pause, so that looking takes a quarter of a core at most.
_BUSY: Final = 0.25
_AFTER_TROUBLE_S: Final = 1.0
_AFTER_TOO_MUCH_S: Final = 60.0
_LEAST_DROPPED: Final = 1_000

_BETWEEN: Final = ",\n"  # rows; no state has a new line
_PIECE: Final = 1 << 12

_Rows = tuple[Once, Span | None, list[tuple[ViewKey, list[str]]]]
_Cut = tuple[dict[ViewKey, Value | None], dict[str, ReadPoint], list[_Rows]]


class NearFeatures:
    """FeatureReader: reads of now from memory, everything else from `store`.

    `most_rows` of tiles are held; when windows have more, and when the last look is more than `longest_s` s of wall
    time ago, `store` is read instead. `trouble` says in words why that is so.
    """

    def __init__(self, store: Followed, *, clock: Clock, most_rows: int, longest_s: float = 2.0) -> None:
        self._store = store
        self._clock = clock
        self._most_rows = most_rows
        self._longest_s = longest_s
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._copy: _Copy | None = None
        self._looked_s = 0.0
        self._full = False
        self.trouble = "nothing was read yet"

    @property
    def definitions(self) -> Definitions:
        """The views that it reads."""
        return self._store.definitions

    @property
    def rows(self) -> int:
        """How many rows of tiles are held."""
        copy = self._copy
        return 0 if copy is None else copy.height

    def age_s(self) -> float | None:
        """Wall time since the look that reads are as of; None while they go to the store."""
        age_s = monotonic_s() - self._looked_s
        return age_s if self._copy is not None and age_s <= self._longest_s else None

    def refresh(self) -> None:
        """Look at what came. Raises StoreUnavailable."""
        with self._looking:
            looked_s, now_ms = monotonic_s(), self._clock.now_ms()
            copy = self._copy
            news = None if copy is None else self._news(copy.known(), copy.definitions, now_ms=now_ms)
            if copy is None or news is None or news.lost or news.change != copy.change:
                copy, news = self._begin(now_ms=now_ms)
            if copy is None or news is None:
                return
            # Nobody reads a new copy yet, and filling it takes a while.
            with self._lock if copy is self._copy else nullcontext():
                copy.take(news, now_ms=now_ms)
            self._full = max(news.height, copy.height) > self._most_rows
            self._copy = None if self._full else copy
            self._looked_s = looked_s
            self.trouble = f"windows have more than {self._most_rows} rows" if self._full else ""

    def run(self, stop: threading.Event, *, every_s: float) -> None:
        """Look each `every_s` s of wall time until `stop` is set."""
        wait_s = 0.0
        while not stop.wait(wait_s):
            began_s = monotonic_s()
            try:
                self.refresh()
            except ServerUnavailable as error:
                self.trouble = error.line()
                log.warning("near_features_wait", extra={"cause": error.line()})
                wait_s = max(every_s, _AFTER_TROUBLE_S)
                continue
            wait_s = max(every_s, min((monotonic_s() - began_s) / _BUSY, LONGEST_PAUSE_S))
            if self._full:
                log.warning("near_features_off", extra={"cause": self.trouble})
                wait_s = _AFTER_TOO_MUCH_S

    def read(self, asks: Sequence[ViewKey], *, now_ms: int, cached: bool) -> Reading:
        """See FeatureReader."""
        # By what the copy is of: what is live may have changed since its look, and a new one is filled meanwhile.
        copy = None if self.age_s() is None else self._copy
        planned = None if copy is None else _planned(copy.definitions, asks, now_ms=now_ms)
        if copy is not None and planned is not None:
            with self._lock:
                cut = copy.cut(planned, now_ms=now_ms, cached=cached)
            # A busy key has so many entries that all other readers would wait while they are added up.
            if cut is not None:
                values, points, rows = cut
                for once, span, of_view in rows:
                    values.update((key, once.value(",".join(pieces), span=span)) for key, pieces in of_view if pieces)
                return Reading(values=values, points=points)
        return self._store.read(asks, now_ms=now_ms, cached=cached)

    def get(
        self, asks: Sequence[ViewKey], *, as_of_ms: int | None, now_ms: int, cached: bool = False
    ) -> dict[ViewKey, Value | None]:
        """See FeatureReader."""
        if as_of_ms is None:
            return dict(self.read(asks, now_ms=now_ms, cached=cached).values)
        return self._store.get(asks, as_of_ms=as_of_ms, now_ms=now_ms, cached=cached)

    def profiles(self, user_ids: Iterable[int], *, as_of_ms: int) -> ProfilesRead:
        """See FeatureReader."""
        return self._store.profiles(user_ids, as_of_ms=as_of_ms)

    def items(self, item_ids: Iterable[int]) -> dict[int, CatalogItem]:
        """See FeatureReader."""
        return self._store.items(item_ids)

    def catalogue(self) -> CatalogueRead:
        """See FeatureReader."""
        return self._store.catalogue()

    def _begin(self, *, now_ms: int) -> tuple[_Copy | None, News | None]:
        """An empty copy and all that belongs into it; nothing when what is live changes at this very moment."""
        change = self._store.change()
        self._store.refresh()
        definitions = self._store.definitions
        news = self._news(Known(), definitions, now_ms=now_ms)
        whole = news.change == change and not news.lost
        return (_Copy(definitions, change=change), news) if whole else (None, None)

    def _news(self, known: Known, definitions: Definitions, *, now_ms: int) -> News:
        from_ms = min((_window_from_ms(definitions, view, now_ms) for view in _merged(definitions)), default=now_ms)
        # One more than there is room for tells that there is no room.
        return self._store.news(known, from_ms=from_ms, most_rows=self._most_rows + 1)


def _planned(definitions: Definitions, asks: Sequence[ViewKey], *, now_ms: int) -> list[Ask] | None:
    """What to read; None when a view is not among these."""
    try:
        return plan(definitions, asks, as_of_ms=None, now_ms=now_ms)
    except UnknownView:
        return None


class _Copy:
    """What is held of one set of views."""

    def __init__(self, definitions: Definitions, *, change: int) -> None:
        self.definitions = definitions
        self.change = change
        self._offsets: Mapping[int, int] = {}
        self._tiles = {view.id: _Tiles(view) for view in _merged(definitions)}
        self._rounds: dict[str, RoundNews] = {}
        self._lists: dict[str, Mapping[str, Value]] = {}

    @property
    def height(self) -> int:
        return sum(tiles.height for tiles in self._tiles.values())

    def known(self) -> Known:
        return Known(offsets=self._offsets, rounds={view: each.number for view, each in self._rounds.items()})

    def take(self, news: News, *, now_ms: int) -> None:
        """Move on to the moment of the news."""
        for view_id, tiles in self._tiles.items():
            from_ms = _window_from_ms(self.definitions, tiles.view, now_ms)
            tiles.take(news.rows.get(view_id, ()), from_ms=from_ms)
        for view_id, each in news.rounds.items():
            if each.values is not None:
                self._lists[view_id] = _lists(self._lists.get(view_id, {}), each.values)
            self._rounds[view_id] = each
        self._offsets = news.offsets

    def cut(self, planned: Sequence[Ask], *, now_ms: int, cached: bool) -> _Cut | None:
        """Values of lists, None for other keys; what is behind the values; the rows of those keys that have some,
        with what adds them up and what is to be cut out of them. None if something is not held.
        """
        values: dict[ViewKey, Value | None] = {}
        points: dict[str, ReadPoint] = {}
        rows: list[_Rows] = []
        for view, of_view in groupby(planned, key=attrgetter("view")):
            asks = list(of_view)
            if cached and view.cached:
                last = self._rounds.get(view.id)
                if last is None or not last.fresh:
                    return None
                lists = self._lists[view.id]
                values.update([(ask.key, lists.get(ask.key.key)) for ask in asks])
                points[view.name] = last.point
                continue
            tiles, span = self._tiles.get(view.id), asks[0].span  # all asks of a view have the same
            if tiles is None or span.from_ms < tiles.from_ms:
                return None
            values.update(dict.fromkeys(ask.key for ask in asks))
            rows.append((tiles.once, tiles.cut(span), [(ask.key, tiles.pieces(ask.key.key)) for ask in asks]))
            points[view.name] = ReadPoint(as_of_ms=now_ms, offsets=self._offsets, version=view.version)
        return values, points, rows


class _Tiles:
    """The tiles of one view from `from_ms` on, and older ones that nobody has come to drop yet."""

    def __init__(self, view: FeatureView) -> None:
        self.view = view
        self.height = 0
        self.from_ms = LONG_AGO_MS
        self.once = Once(view)
        # All rows of a key are one text, with their times: a reader finds them in one place of memory and not in as
        # many as there are rows, and the collector of garbage has nothing to go through. Busy keys have more texts
        # before that one, or adding a row would copy megabytes.
        self._rows: dict[str, str] = {}
        self._before: dict[str, list[str]] = {}
        self._newest_ms = self.from_ms
        self._keys_at: defaultdict[int, list[str]] = defaultdict(list)
        self._due: deque[tuple[int, str]] = deque()

    def take(self, rows: Sequence[Row], *, from_ms: int) -> None:
        """Add rows in any order, and let the window begin here."""
        self.from_ms = max(self.from_ms, from_ms)
        held = self._rows
        for key, start, state in rows:
            if start >= self.from_ms:
                text = held.get(key, "")
                if len(text) > _PIECE:
                    self._before.setdefault(key, []).append(text)
                    text = ""
                row = timed_state(start, state)
                held[key] = f"{text}{_BETWEEN}{row}" if text else row
                self._keys_at[start].append(key)
                self.height += 1
        self._newest_ms = max(self._keys_at, default=self.from_ms)
        for start in [start for start in self._keys_at if start < self.from_ms]:
            self._due += [(start, key) for key in dict.fromkeys(self._keys_at.pop(start))]
        # Readers wait meanwhile, so no more is dropped at once than keeps step with what comes.
        for _ in range(min(len(self._due), max(_LEAST_DROPPED, 2 * len(rows)))):
            self._drop(*self._due.popleft())

    def pieces(self, key: str) -> list[str]:
        """All rows of a key, some with a comma between them each."""
        rows = self._rows.get(key)
        if rows is None:
            return []
        return [*self._before[key], rows] if key in self._before else [rows]

    def cut(self, span: Span) -> Span | None:
        """What is to be cut out of rows for a window that begins no earlier than here; None if that is all of them."""
        whole = not self._due and span.from_ms == self.from_ms and span.to_ms > self._newest_ms
        return None if whole else span

    def _drop(self, start: int, key: str) -> None:
        """Drop the rows of a key in a tile."""
        pieces = []
        for piece in self.pieces(key):
            kept, dropped = _without(piece, start)
            self.height -= dropped
            pieces += [kept] if kept else []
        self._rows.pop(key, None)
        self._before.pop(key, None)
        if pieces:
            self._rows[key] = pieces.pop()
        if pieces:
            self._before[key] = pieces


def _without(rows: str, start: int) -> tuple[str, int]:
    """The rows that are not of this tile, and how many are."""
    begin = f"[{start},"
    if begin not in rows:
        return rows, 0
    all_rows = rows.split(_BETWEEN)
    kept = [row for row in all_rows if not row.startswith(begin)]
    return _BETWEEN.join(kept), len(all_rows) - len(kept)


def _merged(definitions: Definitions) -> list[FeatureView]:
    """The views that are added up by the reader."""
    return [view for view in definitions.views if not view.cached]


def _window_from_ms(definitions: Definitions, view: FeatureView, now_ms: int) -> int:
    return definitions.window(view).now(now_ms).from_ms


def _lists(old: Mapping[str, Value], new: Mapping[str, Value | None]) -> dict[str, Value]:
    return {key: old[key] if value is None else value for key, value in new.items()}
