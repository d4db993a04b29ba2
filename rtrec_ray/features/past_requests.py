"""Features of past requests out of a view that they did not have, under the names that serving gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rtrec_ray.events import InferenceRecord
from rtrec_ray.features.keys import (
    CATEGORY_TOP_ITEMS_10M,
    SEGMENT_PAGE_TOP_ADS,
    TOP_VIEWED_30M,
    USER_BROWSE_1M,
    USER_BROWSE_5M,
    ViewKey,
)
from rtrec_ray.features.merge import Value
from rtrec_ray.features.request import (
    VIEW_OF,
    Recent,
    item_asks,
    item_features,
    request_asks,
    request_features,
    trends,
)
from rtrec_ray.features.served import logged_item, logged_profile

Features = dict[str, Any]

# country, gender and city are parts of a key, and not values.
_OF_REQUEST: Final = {name: view for name, view in VIEW_OF.items() if view in (USER_BROWSE_5M, USER_BROWSE_1M)}
# How many of a user's last items are of an item's category takes the catalogue of that time, which nobody has.
_OF_ITEM: Final = {
    "item_category_clicks_10m": CATEGORY_TOP_ITEMS_10M,
    "item_type_views_30m": TOP_VIEWED_30M,
    "item_segment_clicks_10m": SEGMENT_PAGE_TOP_ADS,
    "item_city_segment_clicks_10m": SEGMENT_PAGE_TOP_ADS,
    "item_recently_viewed": USER_BROWSE_5M,
}


def features_of(view: str) -> tuple[str, ...]:
    """The features of requests and items whose values are out of the view of that name.

    >>> features_of("category_top_items_10m"), features_of("top_queries_30m")
    (('item_category_clicks_10m',), ())
    """
    return tuple(name for name, source in {**_OF_REQUEST, **_OF_ITEM}.items() if source == view)


def keys_of(view: str, record: InferenceRecord) -> list[str]:
    """The keys of the view that serving reads for the request: the profile and the items are those that were logged."""
    asks = [
        *request_asks(user_id=record.user_id, profile=logged_profile(record), page_id=record.page_id),
        *item_asks(logged_item(item) for item in record.items or ()),
    ]
    return [ask.key for ask in asks if ask.view == view]


def past_features(
    view: str, record: InferenceRecord, values: Mapping[str, Value | None]
) -> tuple[Features, dict[str, Features]]:
    """The request's features out of the view, and those of each of its items by item_id as text.

    `values`: of `keys_of`.
    """
    found = {ViewKey(view=view, key=key): value for key, value in values.items()}
    profile = logged_profile(record)
    whole = request_features(found, profile, user_id=record.user_id, realtime=True)
    trend = trends(found, profile, page_id=record.page_id)
    viewed = (found.get(ViewKey(view=USER_BROWSE_5M, key=str(record.user_id))) or {}).get("last_items", ())
    recent = Recent(items=frozenset(viewed))
    items = {
        str(item.item_id): _chosen(view, _OF_ITEM, item_features(logged_item(item), trend, recent=recent))
        for item in record.items or ()
    }
    return _chosen(view, _OF_REQUEST, whole), {item: features for item, features in items.items() if features}


def _chosen(view: str, sources: Mapping[str, str], features: Features) -> Features:
    return {name: value for name, value in features.items() if sources.get(name) == view}
