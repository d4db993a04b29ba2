"""What all requests share: the catalogue and the top lists, read in the background and kept.

A request reads the last good snapshot, so a dead store costs freshness and never an answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, get_args

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.events import CatalogItem, ItemType
from rtrec_ray.features.keys import CATEGORY_TOP_ITEMS_10M, TOP_VIEWED_30M, ViewKey
from rtrec_ray.features.request import item_asks
from rtrec_ray.stores.features.store import CatalogueRead, FeatureReader, ReadPoint, VersionPoint
from serving.metrics import ServingMetrics
from serving.retrieve import Top, interleave, merged_top

log = logging.getLogger(__name__)

Values = Mapping[ViewKey, Mapping[str, Any] | None]

# The share of time spent reading at most: thousands of categories make the reads rarer, not the answers slower.
_BUSY: Final = 0.1
_TYPES: Final = [ViewKey(view=TOP_VIEWED_30M, key=kind) for kind in get_args(ItemType)]


def known(store: FeatureReader, asks: Iterable[ViewKey]) -> list[ViewKey]:
    """The asks for views that are defined: a view deleted from the file costs its features, not the others'."""
    return [ask for ask in asks if ask.view in store.definitions.by_name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """One reading. `newest`: all items, newest first; `popular`: what to show to whom nothing is known of.

    `newest_event_ms`: event time of the newest event behind the features, ms UTC. `loaded`: there was a reading.
    `points`: view name → what is behind its top lists; `catalogued`: what is behind the catalogue.
    """

    catalogue: Mapping[int, CatalogItem] = field(default_factory=dict)
    newest: tuple[int, ...] = ()
    asks: tuple[ViewKey, ...] = tuple(_TYPES)
    by_category: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    by_type: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    popular: tuple[int, ...] = ()
    points: Mapping[str, ReadPoint] = field(default_factory=dict)
    catalogued: VersionPoint | None = None
    newest_event_ms: int | None = None
    loaded: bool = False

    def item(self, item_id: int) -> CatalogItem:
        """The item as the catalogue knows it; a bare one when it does not."""
        return self.catalogue.get(item_id) or CatalogItem(item_id=item_id, ts=0)


def with_catalogue(lists: Lists, read: CatalogueRead) -> Lists:
    """The same lists over another catalogue."""
    catalogue = {item.item_id: item for item in read.items}
    newest = sorted(catalogue, key=lambda item_id: (-catalogue[item_id].ts, item_id))
    asks = tuple(dict.fromkeys([*item_asks(catalogue.values()), *_TYPES]))
    return replace(lists, catalogue=catalogue, newest=tuple(newest), asks=asks, catalogued=read.point)


def with_values(lists: Lists, values: Values, *, limit: int) -> Lists:
    """The same catalogue under newer top lists. `limit`: length of `popular`.

    >>> asked = ViewKey(view="top_viewed_30m", key="ad")
    >>> with_values(Lists(), {asked: {"top": [[7, 3], [5, 1]]}}, limit=1).popular
    (7,)
    """
    by_category = _tops(values, CATEGORY_TOP_ITEMS_10M)
    by_type = _tops(values, TOP_VIEWED_30M)
    clicked = merged_top(by_category.values())
    viewed = merged_top(by_type.values())
    # Trends first, each kind in turn; the catalogue only fills up, or a quiet hour would recommend whatever is new.
    popular = interleave([interleave([clicked, viewed], limit=limit) + list(lists.newest[:limit])], limit=limit)
    return replace(
        lists,
        by_category={key: dict(top) for key, top in by_category.items()},
        by_type={key: dict(top) for key, top in by_type.items()},
        popular=tuple(popular),
        loaded=True,
    )


def without_trends(lists: Lists) -> Lists:
    """The catalogue alone: nothing that behaviour of the last minutes could have changed.

    >>> without_trends(Lists(newest=(3, 2, 1), popular=(1, 3), by_type={"ad": {1: 9}})).popular
    (3, 2)
    """
    popular = lists.newest[: len(lists.popular)]
    return replace(lists, by_category={}, by_type={}, popular=popular, points={}, newest_event_ms=None)


def _tops(values: Values, view: str) -> dict[str, Top]:
    return {
        ask.key: [(item, count) for item, count in value.get("top", ())]
        for ask, value in values.items()
        if ask.view == view and value is not None
    }


class ListsReader:
    """Keeps `current()` fresh in a thread of its own. `newest_event_ms` asks how far the features have come."""

    def __init__(
        self,
        store: FeatureReader,
        *,
        clock: Clock,
        newest_event_ms: Callable[[], int | None],
        metrics: ServingMetrics,
        popular: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._newest_event_ms = newest_event_ms
        self._metrics = metrics
        self._popular = popular
        self._lists = Lists()
        self._fresh_at_s: float | None = None
        self._catalogue_due_s = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        metrics.watch("rtrec_lists_age_seconds", "Wall time since the lists were last read.", self.age_s)

    def current(self) -> Lists:
        """The last good reading."""
        return self._lists

    def age_s(self) -> float | None:
        """Wall time since the last good reading, None before the first."""
        return None if self._fresh_at_s is None else monotonic_s() - self._fresh_at_s

    def refresh(self, *, catalogue_s: float) -> None:
        """Read the lists, and the catalogue if it is older than `catalogue_s`. Raises StoreUnavailable."""
        lists = self._lists
        if monotonic_s() >= self._catalogue_due_s:
            lists = with_catalogue(lists, self._store.catalogue())
        asks = known(self._store, lists.asks)
        found = self._store.read(asks, now_ms=self._clock.now_ms(), cached=True)
        newest = self._newest_event_ms()
        if lists.catalogue is not self._lists.catalogue:
            self._catalogue_due_s = monotonic_s() + catalogue_s
        valued = with_values(lists, found.values, limit=self._popular)
        self._lists = replace(valued, points=found.points, newest_event_ms=newest)
        self._fresh_at_s = monotonic_s()

    def start(self, *, lists_s: float, catalogue_s: float) -> None:
        """Refresh each `lists_s` seconds of wall time, or more rarely when a reading is slow, until `close`."""
        self._thread = threading.Thread(target=self._run, args=(lists_s, catalogue_s), name="lists", daemon=True)
        self._thread.start()

    def close(self, *, timeout_s: float = 1.0) -> None:
        """End the thread after the reading it is in."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, lists_s: float, catalogue_s: float) -> None:
        wait_s = 0.0
        while not self._closed.wait(wait_s):
            began_s = monotonic_s()
            try:
                self.refresh(catalogue_s=catalogue_s)
            except Exception as error:  # noqa: BLE001
                # The last good lists stay; a thread that ends would freeze them for good.
                self._metrics.refreshes.labels("failed").inc()
                log.warning("lists_not_read", extra={"reason": repr(error)})
                wait_s = max(lists_s, 1.0)
            else:
                self._metrics.refreshes.labels("read").inc()
                wait_s = max(lists_s, (monotonic_s() - began_s) / _BUSY)
