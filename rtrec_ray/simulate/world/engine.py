"""Real-time features without servers: the operators of the feature stage over tables in memory.

What a request reads here is what serving would read: the same views, the same merging, the same names. Only time is
coarser: events take effect at the next `take`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA, CatalogItem, ProfileVersion
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.keys import CATEGORY_TOP_ITEMS_10M, TOP_VIEWED_30M, ViewKey
from rtrec_ray.features.request import Values, item_asks, request_asks
from rtrec_ray.features.seen import Seen
from rtrec_ray.features.stream import FeatureStream
from rtrec_ray.stores.features.memory import MemoryFeatureStore
from rtrec_ray.stores.features.store import TaskOutput

_PARTITION: Final = 0
_DROP_EVERY_MS: Final = 3_600_000


class FeatureEngine:
    """The feature stage of one partition that holds everything."""

    def __init__(self, definitions: Definitions, *, disorder_ms: int, profiles: pl.DataFrame) -> None:
        self._store = MemoryFeatureStore(definitions)
        self._store.apply(None)
        self._store.append(None, TaskOutput(partition=_PARTITION, watermark_ms=None, profiles=profiles))
        self._profiles = {row["user_id"]: ProfileVersion(**row) for row in profiles.to_dicts()}
        self._stream = FeatureStream(definitions, disorder_ms=disorder_ms, seen=Seen(), profiles=profiles)
        self._items: dict[int, CatalogItem] = {}
        self._shared: Values = {}
        self._segments: dict[ViewKey, Any] = {}
        self._dropped_ms = 0

    def add_items(self, items: pl.DataFrame) -> None:
        """New items of the catalogue (ITEM_SCHEMA)."""
        self._items |= {row["item_id"]: CatalogItem(**row) for row in items.to_dicts()}

    def catalogue(self) -> dict[int, CatalogItem]:
        """All items so far, by id."""
        return self._items

    def take(self, events: Sequence[dict[str, Any]], *, now_ms: int) -> None:
        """Take events, as a commit of the stage does, and rebuild the lists that all requests share."""
        if events:
            self._stream.take(pl.DataFrame(events, schema=BEHAVIOR_SCHEMA))
            output = TaskOutput(
                partition=_PARTITION, watermark_ms=self._stream.watermark_ms, tiles=self._stream.tiles()
            )
            self._store.append(None, output)
            self._stream.settle()
        self._stream.forget()
        if now_ms - self._dropped_ms >= _DROP_EVERY_MS:
            self._store.drop_expired()
            self._dropped_ms = now_ms
        self._segments = {}
        asks = item_asks(self._items.values())
        self._shared = self._store.get(asks, as_of_ms=None, now_ms=now_ms)

    def by_category(self) -> dict[str, dict[int, int]]:
        """Clicks of the top lists by category, as of the last `take`."""
        return _counts(self._shared, CATEGORY_TOP_ITEMS_10M)

    def by_type(self) -> dict[str, dict[int, int]]:
        """Views of the top lists by item type, as of the last `take`."""
        return _counts(self._shared, TOP_VIEWED_30M)

    def profile(self, user_id: int) -> ProfileVersion | None:
        """The user's profile."""
        return self._profiles.get(user_id)

    def read(self, user_id: int, *, page_id: int, now_ms: int) -> Values:
        """What one request reads of its user and of the user's segments on the page."""
        asks = request_asks(user_id=user_id, profile=self.profile(user_id), page_id=page_id)
        own, segments = (
            [ask for ask in asks if ask.key == str(user_id)],
            [ask for ask in asks if ask.key != str(user_id)],
        )
        missing = [ask for ask in segments if ask not in self._segments]
        found = self._store.get([*own, *missing], as_of_ms=None, now_ms=now_ms)
        self._segments |= {ask: found[ask] for ask in missing}
        return {**{ask: found[ask] for ask in own}, **{ask: self._segments[ask] for ask in segments}}


def _counts(values: Values, view: str) -> dict[str, dict[int, int]]:
    return {
        ask.key: dict(value.get("top", ())) for ask, value in values.items() if ask.view == view and value is not None
    }
