"""What a record of the inference log says it was served, value by value, and what each of them should have been.

The record says of each view which events were behind its values, and of profile and catalogue which versions: of each
partition those below an offset. A value that the record does not tell that of cannot be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from rtrec_ray.events import BEHAVIOR, ITEM, PROFILE, CatalogItem, InferenceRecord, ProfileVersion, RankedItem
from rtrec_ray.features.definition import PROFILE_FIELDS, Definitions
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
from rtrec_ray.features.merge import Value
from rtrec_ray.features.recount import Question
from rtrec_ray.features.request import (
    FEATURE_VIEWS,
    VIEW_OF,
    Recent,
    Trends,
    item_asks,
    item_features,
    recently_viewed,
    request_asks,
    request_features,
    trends,
)
from rtrec_ray.features.versions import Known, Upto

Kind = Literal["mismatch", "missing", "extra"]

_OF_USER: Final = {name: view for name, view in VIEW_OF.items() if view in (USER_BROWSE_5M, USER_BROWSE_1M)}
_OF_CATALOGUE: Final = ("item_category", "item_type")
_OF_ITEM: Final = (
    "item_category_clicks_10m",
    "item_type_views_30m",
    "item_segment_clicks_10m",
    "item_city_segment_clicks_10m",
    "item_recently_viewed",
)
_OF_BOTH: Final = "item_category_recently_viewed"  # the user's last items, in the categories that the catalogue says
FEATURES: Final = (*_OF_USER, *PROFILE_FIELDS, *_OF_CATALOGUE, *_OF_ITEM, _OF_BOTH)
"""The features that are compared."""

_NO_TRENDS: Final = Trends(by_category={}, by_type={}, segment={}, city_segment={})

Values = Mapping[ViewKey, Value | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request, and what of it can be computed again: values of views, and versions of its profile and its items."""

    record: InferenceRecord
    questions: Mapping[ViewKey, Question]
    versions: frozenset[ViewKey] = frozenset()

    def upto(self, topic: str) -> Upto | None:
        """Which versions of `profile` or `item` the request's reader knew; None when the record does not say."""
        offsets = (self.record.as_of or {}).get(topic)
        if offsets is None:
            return None
        at = {int(part): offset for part, offset in offsets.items()}
        return Upto(offsets=at, as_of_ms=(self.record.as_of_ms or {}).get(topic))

    def reads(self) -> Iterator[tuple[str, int, int]]:
        """(topic, partition, the first offset that was not behind it) of all that was read."""
        for question in self.questions.values():
            yield from ((BEHAVIOR, part, offset) for part, offset in question.offsets)
        for topic in (PROFILE, ITEM):
            upto = self.upto(topic)
            if upto is not None:
                yield from ((topic, part, offset) for part, offset in upto.offsets.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A feature as it was served and as it is recomputed. `ask`: the value or the version it is out of."""

    feature: str
    item_id: int | None
    ask: ViewKey
    served: Any
    recomputed: Any

    def kind(self) -> Kind | None:
        """How they differ; None if they do not. 0 and what is empty say that there is nothing, as does an absent one.

        >>> ask = ViewKey(view="user_browse_5m", key="7")
        >>> pairs = [(2, 2), (None, 0), (0, 2), ([7], []), (1, 2)]
        >>> [Pair(feature="f", item_id=None, ask=ask, served=a, recomputed=b).kind() for a, b in pairs]
        [None, None, 'missing', 'extra', 'mismatch']
        """
        nothing_served, nothing_again = (value in (None, 0, [], "") for value in (self.served, self.recomputed))
        if self.served == self.recomputed or (nothing_served and nothing_again):
            return None
        if nothing_served:
            return "missing"
        return "extra" if nothing_again else "mismatch"


def served_asks(record: InferenceRecord) -> list[ViewKey]:
    """What was read for the request, as far as the record says what was behind it.

    >>> record = InferenceRecord(request_id="r", user_id=7, ts=0, model_version="1", features={},
    ...                          as_of={"user_browse_5m": {"0": 3}}, as_of_ms={"user_browse_5m": 0})
    >>> served_asks(record)
    [ViewKey(view='user_browse_5m', key='7')]
    """
    told = record.as_of or {}
    known = told.keys() & (record.as_of_ms or {}).keys() & FEATURE_VIEWS
    asks = [
        *request_asks(user_id=record.user_id, profile=logged_profile(record), page_id=record.page_id),
        *item_asks(logged_item(item) for item in record.items or ()),
    ]
    versions = [
        ViewKey(view=PROFILE, key=str(record.user_id)),
        *(ViewKey(view=ITEM, key=str(item.item_id)) for item in record.items or ()),
    ]
    return [*(ask for ask in asks if ask.view in known), *(ask for ask in versions if ask.view in told)]


def pairs(case: Case, values: Values, known: Known) -> Iterator[Pair]:
    """The features of a request that are out of these recomputed values, and of these versions."""
    record = case.record
    user = {view: ViewKey(view=view, key=str(record.user_id)) for view in (USER_BROWSE_5M, USER_BROWSE_1M)}
    again = request_features(values, None, user_id=record.user_id, realtime=True)
    for name, view in _OF_USER.items():
        if user[view] in values:
            served = record.features.get(name)
            yield Pair(feature=name, item_id=None, ask=user[view], served=served, recomputed=again[name])
    yield from _profile_pairs(case, known)
    recent = _recent(case, values, known)
    for item in record.items or ():
        yield from _item_pairs(case, item, values, recent)
        yield from _catalogue_pairs(case, item, known)


def last_items(case: Case, values: Values) -> list[int]:
    """The items that the user of the case viewed of late, newest first; none where that is not recomputed."""
    return list((values.get(_browse(case)) or {}).get("last_items", ()))


def question_of(record: InferenceRecord, ask: ViewKey, definitions: Definitions) -> Question | None:
    """None when the view is gone, or had not all events of its window then."""
    offsets, as_of_ms = (record.as_of or {})[ask.view], (record.as_of_ms or {})[ask.view]
    version = (record.as_of_version or {}).get(ask.view)
    name = ask.view if version is None else f"{ask.view}@{version}"
    if not any(name in (view.name, view.id) for view in definitions.views):
        return None
    view = definitions.view(name, at_ms=as_of_ms)
    span = definitions.window(view).now(as_of_ms)
    complete_from_ms = definitions.complete_from_ms.get(view.id)
    if complete_from_ms is not None and span.from_ms < complete_from_ms:
        return None
    upto = tuple(sorted((int(part), offset) for part, offset in offsets.items()))
    return Question(view=view, key=ask.key, span=span, offsets=upto)


def _profile_pairs(case: Case, known: Known) -> Iterator[Pair]:
    record, upto = case.record, case.upto(PROFILE)
    ask = ViewKey(view=PROFILE, key=str(record.user_id))
    if upto is None or ask not in case.versions:
        return
    profile = known.profiles.known(record.user_id, upto)
    again = request_features({}, profile, user_id=record.user_id, realtime=True)
    for name in PROFILE_FIELDS:
        yield Pair(feature=name, item_id=None, ask=ask, served=record.features.get(name), recomputed=again[name])


def _catalogue_pairs(case: Case, item: RankedItem, known: Known) -> Iterator[Pair]:
    upto, ask = case.upto(ITEM), ViewKey(view=ITEM, key=str(item.item_id))
    if upto is None or ask not in case.versions:
        return
    again = item_features(known.item(item.item_id, upto), _NO_TRENDS, recent=Recent())
    for name in _OF_CATALOGUE:
        served = (item.features or {}).get(name)
        yield Pair(feature=name, item_id=item.item_id, ask=ask, served=served, recomputed=again[name])


def _item_pairs(case: Case, item: RankedItem, values: Values, recent: Recent) -> Iterator[Pair]:
    record = case.record
    profile, served = logged_profile(record), item.features or {}
    again = item_features(logged_item(item), trends(values, profile, page_id=record.page_id), recent=recent)
    segments = (segment_key(profile, page_id=record.page_id), city_segment_key(profile, page_id=record.page_id))
    asks = (
        ViewKey(view=CATEGORY_TOP_ITEMS_10M, key=again["item_category"]),
        ViewKey(view=TOP_VIEWED_30M, key=again["item_type"]),
        *(ViewKey(view=SEGMENT_PAGE_TOP_ADS, key=key or "") for key in segments),
        _browse(case),
    )
    told = [*zip(_OF_ITEM, asks, strict=True)]
    if case.upto(ITEM) is not None:
        told.append((_OF_BOTH, _browse(case)))
    for name, ask in told:
        if ask in values:
            yield Pair(feature=name, item_id=item.item_id, ask=ask, served=served.get(name), recomputed=again[name])


def _recent(case: Case, values: Values, known: Known) -> Recent:
    """As serving makes it of the user's last items; without categories where the record does not tell the catalogue."""
    items, upto = last_items(case, values), case.upto(ITEM)
    return (
        Recent(items=frozenset(items)) if upto is None else recently_viewed([known.item(each, upto) for each in items])
    )


def _browse(case: Case) -> ViewKey:
    return ViewKey(view=USER_BROWSE_5M, key=str(case.record.user_id))


def logged_profile(record: InferenceRecord) -> ProfileVersion:
    """The profile as far as the record says what it was."""
    country, gender, city = (record.features.get(name) or None for name in ("country", "gender", "city"))
    return ProfileVersion(user_id=record.user_id, ts=0, country=country, gender=gender, city=city)


def logged_item(item: RankedItem) -> CatalogItem:
    """The item as the catalogue knew it then."""
    features = item.features or {}
    category = str(features.get("item_category") or "")
    return CatalogItem(
        item_id=item.item_id,
        ts=0,
        item_type=features.get("item_type") or None,
        category_id=int(category) if category.removeprefix("-").isdecimal() else None,
    )
