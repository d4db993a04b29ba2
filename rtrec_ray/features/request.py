"""From the values of the views to the raw features of a request, which serving logs and models take.

Pure and total: a view without data, an unknown user and a missing view all give features, with counts of 0 and empty
lists, so that a degraded answer still has a full vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.events import CatalogItem, ProfileVersion
from rtrec_ray.features.definition import PROFILE_FIELDS, FeatureView, Kind
from rtrec_ray.features.keys import (
    CATEGORY_TOP_ITEMS_10M,
    SEGMENT_PAGE_TOP_ADS,
    TOP_VIEWED_30M,
    USER_BROWSE_1M,
    USER_BROWSE_5M,
    ViewKey,
    city_segment_key,
    segment_key,
)

Value = Mapping[str, Any]
Values = Mapping[ViewKey, Value | None]

LAST_ITEMS: Final = 10
LAST_PAGES: Final = 5
LAST_PRODUCTS: Final = 5
_COUNTS: Final = ("view", "click", "favorite", "cart", "consult", "comment", "search", "dwell_ms")
_MOST: Final = 2**63 - 1  # a record of the log has no greater number

VIEW_OF: Final = {
    **{f"user_5m_{name}": USER_BROWSE_5M for name in _COUNTS},
    "user_last_items": USER_BROWSE_5M,
    "user_1m_pages": USER_BROWSE_1M,
    "user_1m_items": USER_BROWSE_1M,
    **dict.fromkeys(("country", "gender", "city"), SEGMENT_PAGE_TOP_ADS),
}
"""Feature of a request → the view whose value it is of, or whose key it is a part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Of a view that features are out of: forms that its key has to have, and values, each of one of these kinds."""

    keys: tuple[tuple[str, ...], ...]
    values: Mapping[str, tuple[Kind, ...]]


_NUMBER: Final[tuple[Kind, ...]] = ("count", "sum")
_LIST: Final[tuple[Kind, ...]] = ("last_n", "distinct")
_TOP: Final[Mapping[str, tuple[Kind, ...]]] = {"top": ("top_k",)}
NEEDED: Final = {
    USER_BROWSE_5M: Needed(keys=(("user_id",),), values=dict.fromkeys(_COUNTS, _NUMBER) | {"last_items": _LIST}),
    USER_BROWSE_1M: Needed(keys=(("user_id",),), values=dict.fromkeys(("pages", "items"), _LIST)),
    CATEGORY_TOP_ITEMS_10M: Needed(keys=(("category_id",),), values=_TOP),
    TOP_VIEWED_30M: Needed(keys=(("item_type",),), values=_TOP),
    SEGMENT_PAGE_TOP_ADS: Needed(
        keys=(("country", "gender", "page_id"), ("country", "gender", "city", "page_id")), values=_TOP
    ),
}
FEATURE_VIEWS: Final = frozenset(NEEDED)
"""The views that features of requests and items are out of."""


def raise_unfit(view: FeatureView) -> None:
    """Raise DefinitionInvalid for a version of a view that features are out of, but cannot be out of this one: they
    would be 0 for ever, and nobody would be told.
    """
    needed = NEEDED.get(view.name)
    if needed is None:
        return
    kinds = {each.name: each.kind for each in view.aggregations}
    lacking = [f"keys {'|'.join(form)}" for form in needed.keys if form not in view.keys]
    lacking += [f"{name} ({' or '.join(of)})" for name, of in needed.values.items() if kinds.get(name) not in of]
    if lacking:
        raise DefinitionInvalid(
            f"{view.id} lacks {', '.join(lacking)}: features of requests are made of that",
            mend="add it, or give the view another name",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trends:
    """Counts of the top lists a request read, by item id; what is not on a list counts 0."""

    by_category: Mapping[str, Mapping[int, int]]
    by_type: Mapping[str, Mapping[int, int]]
    segment: Mapping[int, int]
    city_segment: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What a user viewed of late: the items, and how many of the newest ten are of each category."""

    items: frozenset[int] = frozenset()
    by_category: Mapping[str, int] = field(default_factory=dict)


def request_asks(*, user_id: int, profile: ProfileVersion | None, page_id: int | None) -> list[ViewKey]:
    """What to read for the user and the segment of one request.

    >>> [ask.view for ask in request_asks(user_id=1, profile=None, page_id=None)]
    ['user_browse_5m', 'user_browse_1m']
    """
    segments = (segment_key(profile, page_id=page_id), city_segment_key(profile, page_id=page_id))
    return [
        ViewKey(view=USER_BROWSE_5M, key=str(user_id)),
        ViewKey(view=USER_BROWSE_1M, key=str(user_id)),
        *(ViewKey(view=SEGMENT_PAGE_TOP_ADS, key=key) for key in segments if key is not None),
    ]


def item_asks(items: Iterable[CatalogItem]) -> list[ViewKey]:
    """The top lists on which the items may stand: those of their categories and of their types.

    >>> [(ask.view, ask.key) for ask in item_asks([CatalogItem(item_id=1, ts=0, item_type="ad", category_id=3)])]
    [('category_top_items_10m', '3'), ('top_viewed_30m', 'ad')]
    """
    known = list(items)
    categories = sorted({item.category_id for item in known if item.category_id is not None})
    types = sorted({item.item_type for item in known if item.item_type is not None})
    return [
        *(ViewKey(view=CATEGORY_TOP_ITEMS_10M, key=str(category)) for category in categories),
        *(ViewKey(view=TOP_VIEWED_30M, key=kind) for kind in types),
    ]


def request_features(values: Values, profile: ProfileVersion | None, *, user_id: int, realtime: bool) -> dict[str, Any]:
    """The raw features that all items of a request share: what the user did of late, and who the user is.

    `realtime`: the values were read. If not, a count of 0 says nothing, and a model can tell so by the feature.

    >>> features = request_features({}, None, user_id=1, realtime=False)
    >>> features["user_5m_view"], features["realtime"]
    (0, 'off')
    """
    recent = values.get(ViewKey(view=USER_BROWSE_5M, key=str(user_id))) or {}
    minute = values.get(ViewKey(view=USER_BROWSE_1M, key=str(user_id))) or {}
    return {
        **{f"user_5m_{name}": min(recent.get(name, 0), _MOST) for name in _COUNTS},
        "user_last_items": list(recent.get("last_items", ()))[:LAST_ITEMS],
        "user_1m_pages": list(minute.get("pages", ()))[:LAST_PAGES],
        "user_1m_items": list(minute.get("items", ()))[:LAST_PRODUCTS],
        **{name: (getattr(profile, name) or "") if profile is not None else "" for name in PROFILE_FIELDS},
        "realtime": "on" if realtime else "off",
    }


def trends(values: Values, profile: ProfileVersion | None, *, page_id: int | None) -> Trends:
    """The counts by item of every top list among the values read; made once per request."""
    return Trends(
        by_category={ask.key: _counts(value) for ask, value in values.items() if ask.view == CATEGORY_TOP_ITEMS_10M},
        by_type={ask.key: _counts(value) for ask, value in values.items() if ask.view == TOP_VIEWED_30M},
        segment=_segment_counts(values, segment_key(profile, page_id=page_id)),
        city_segment=_segment_counts(values, city_segment_key(profile, page_id=page_id)),
    )


def recently_viewed(items: Sequence[CatalogItem]) -> Recent:
    """The user's `last_items`, newest first, as the catalogue knows them; made once per request.

    >>> recent = recently_viewed([CatalogItem(item_id=5, ts=0, category_id=3), CatalogItem(item_id=6, ts=0)])
    >>> sorted(recent.items), dict(recent.by_category)
    ([5, 6], {'3': 1})
    """
    categories = Counter(_category(item) for item in items[:LAST_ITEMS] if item.category_id is not None)
    return Recent(items=frozenset(item.item_id for item in items), by_category=categories)


def item_features(item: CatalogItem, trend: Trends, *, recent: Recent) -> dict[str, Any]:
    """The raw features of one item of a request.

    >>> none = Trends(by_category={}, by_type={}, segment={}, city_segment={})
    >>> item_features(CatalogItem(item_id=5, ts=0), none, recent=Recent(items=frozenset([5])))["item_recently_viewed"]
    1
    """
    category = _category(item)
    kind = item.item_type or ""
    return {
        "item_category": category,
        "item_type": kind,
        "item_category_clicks_10m": trend.by_category.get(category, {}).get(item.item_id, 0),
        "item_type_views_30m": trend.by_type.get(kind, {}).get(item.item_id, 0),
        "item_segment_clicks_10m": trend.segment.get(item.item_id, 0),
        "item_city_segment_clicks_10m": trend.city_segment.get(item.item_id, 0),
        "item_recently_viewed": int(item.item_id in recent.items),
        "item_category_recently_viewed": recent.by_category.get(category, 0),
    }


def _category(item: CatalogItem) -> str:
    return "" if item.category_id is None else str(item.category_id)


def _segment_counts(values: Values, key: str | None) -> Mapping[int, int]:
    return {} if key is None else _counts(values.get(ViewKey(view=SEGMENT_PAGE_TOP_ADS, key=key)))


def _counts(value: Value | None) -> dict[int, int]:
    return {} if value is None else dict(value.get("top", ()))
