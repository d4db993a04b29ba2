"""Features of past requests out of a view that they did not have: those that serving has of it, under the names that it
gives them, or else every value of the view under a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from rtrec_ray.errors import BackfillImpossible
from rtrec_ray.events import InferenceRecord
from rtrec_ray.features.definition import ALL, PROFILE_FIELDS, Aggregation, FeatureView
from rtrec_ray.features.keys import (
    CATEGORY_TOP_ITEMS_10M,
    SEGMENT_PAGE_TOP_ADS,
    TOP_VIEWED_30M,
    USER_BROWSE_1M,
    USER_BROWSE_5M,
    ViewKey,
)
from rtrec_ray.features.merge import Value, aggregate
from rtrec_ray.features.request import (
    FEATURE_VIEWS,
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
Values = Mapping[str, Value | None]
Form = tuple[str, ...]

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
_REQUEST_FIELDS: Final = ("user_id", "page_id", *PROFILE_FIELDS)
_ITEM_FIELDS: Final = ("item_id", "item_type", "category_id")


class RequestFeatures(Protocol):
    """What one view says about a request and its items."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        ...

    def keys(self, record: InferenceRecord) -> list[str]:
        """The keys of the view that the features take."""
        ...

    def features(self, record: InferenceRecord, values: Values) -> tuple[Features, dict[str, Features]]:
        """The request's features, and those of each of its items by item_id as text. `values`: of `keys`."""
        ...


def request_features_of(view: FeatureView) -> RequestFeatures:
    """The features of a view. Raises BackfillImpossible when its keys are not of what a request and its items have."""
    return Served(view.name) if view.name in FEATURE_VIEWS else Derived(view)


class Served:
    """The features that serving has out of the view of that name.

    >>> Served("category_top_items_10m").names
    ('item_category_clicks_10m',)
    """

    def __init__(self, view: str) -> None:
        self._view = view

    @property
    def names(self) -> tuple[str, ...]:
        """See RequestFeatures."""
        return tuple(name for name, view in {**_OF_REQUEST, **_OF_ITEM}.items() if view == self._view)

    def keys(self, record: InferenceRecord) -> list[str]:
        """See RequestFeatures; what serving reads for the request: the profile and the items are those logged."""
        asks = [
            *request_asks(user_id=record.user_id, profile=logged_profile(record), page_id=record.page_id),
            *item_asks(logged_item(item) for item in record.items or ()),
        ]
        return [ask.key for ask in asks if ask.view == self._view]

    def features(self, record: InferenceRecord, values: Values) -> tuple[Features, dict[str, Features]]:
        """See RequestFeatures."""
        found = {ViewKey(view=self._view, key=key): value for key, value in values.items()}
        profile = logged_profile(record)
        whole = request_features(found, profile, user_id=record.user_id, realtime=True)
        trend = trends(found, profile, page_id=record.page_id)
        viewed = (found.get(ViewKey(view=USER_BROWSE_5M, key=str(record.user_id))) or {}).get("last_items", ())
        recent = Recent(items=frozenset(viewed))
        items = {
            str(item.item_id): self._own(_OF_ITEM, item_features(logged_item(item), trend, recent=recent))
            for item in record.items or ()
        }
        return self._own(_OF_REQUEST, whole), {item: features for item, features in items.items() if features}

    def _own(self, sources: Mapping[str, str], features: Features) -> Features:
        return {name: value for name, value in features.items() if sources.get(name) == self._view}


class Derived:
    """Every value of a view as a feature "view.name", of the request or, if a form of its key has a field of an item,
    of each item. With several forms: "view.country|page_id.name".

    >>> view = FeatureView(
    ...     name="user_hour", version=1, keys=(("user_id",),), window_ms=3_600_000, source=(),
    ...     aggregations=(Aggregation(name="clicks", kind="count"),),
    ... )
    >>> record = InferenceRecord(request_id="r", user_id=7, ts=0, model_version="1", features={})
    >>> Derived(view).keys(record), Derived(view).features(record, {"7": {"clicks": 3}})
    (['7'], ({'user_hour.clicks': 3}, {}))
    """

    def __init__(self, view: FeatureView) -> None:
        known = (*_REQUEST_FIELDS, *_ITEM_FIELDS)
        foreign = [name for form in view.keys for name in form if name not in known]
        if foreign:
            raise BackfillImpossible(
                f"keys of {view.name} are made of {foreign[0]}, which is not taken from past requests",
                mend=f"keys may have {', '.join(known)}; `rtrec features as-of` reads any view for any rows",
            )
        self._forms = {form: any(name in _ITEM_FIELDS for name in form) for form in view.keys}
        self._names = {form: [(self._name(view, form, each), each) for each in view.aggregations] for form in view.keys}

    @property
    def names(self) -> tuple[str, ...]:
        """See RequestFeatures."""
        return tuple(name for named in self._names.values() for name, _ in named)

    def keys(self, record: InferenceRecord) -> list[str]:
        """See RequestFeatures."""
        keys = [key for _, known in _places(record) for _, key in self._keys(known)]
        return list(dict.fromkeys(key for key in keys if key is not None))

    def features(self, record: InferenceRecord, values: Values) -> tuple[Features, dict[str, Features]]:
        """See RequestFeatures."""
        (_, whole), *items = [(place, self._of(known, values)) for place, known in _places(record)]
        return whole, {item: features for item, features in items if features}

    def _of(self, known: Mapping[str, Any], values: Values) -> Features:
        found: Features = {}
        for form, key in self._keys(known):
            value = None if key is None else values.get(key)
            for name, each in self._names[form]:
                found[name] = aggregate(each).value() if value is None else value[each.name]
        return found

    def _keys(self, known: Mapping[str, Any]) -> Iterator[tuple[Form, str | None]]:
        """The forms of key that are of an item, where one is known, or of the request, where none is; and the keys."""
        for form, of_item in self._forms.items():
            if of_item == ("item_id" in known):
                yield form, _key(form, known)

    def _name(self, view: FeatureView, form: Form, each: Aggregation) -> str:
        between = ["|".join(form) or ALL] if len(view.keys) > 1 else []
        return ".".join([view.name, *between, each.name])


def _places(record: InferenceRecord) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What keys can be made of, as it was logged: of the request, and then of each item too, by its item_id as text."""
    known: dict[str, Any] = {name: record.features.get(name) or None for name in PROFILE_FIELDS}
    known |= {"user_id": record.user_id, "page_id": record.page_id}
    yield "", known
    for item in record.items or ():
        of_item = logged_item(item)
        yield str(item.item_id), known | {name: getattr(of_item, name) for name in _ITEM_FIELDS}


def _key(form: Form, known: Mapping[str, Any]) -> str | None:
    """As `compute.key_of` makes it."""
    parts = [known[name] for name in form]
    if any(part is None for part in parts):
        return None
    return "|".join(map(str, parts)).replace("\0", "\ufffd") if form else ALL
