"""What was served against what should have been: the features of logged requests, computed again from the events.

A record of the inference log says of each view which events were behind its values: of each partition those below an
offset, in the window that ended at some time. From just these events the values are computed once more, by the
functions that the stream and serving use, and compared feature by feature.

What is not in the log cannot be recomputed: features out of the profile or the catalogue alone, and how many of a
user's last items are of an item's category.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import polars as pl

from rtrec_ray.events import CatalogItem, InferenceRecord, ProfileVersion, RankedItem
from rtrec_ray.features.definition import Definitions
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
from rtrec_ray.features.recount import Question, Recount, behind, in_doubt, sampled
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

Kind = Literal["mismatch", "missing", "extra"]
KINDS: Final[tuple[Kind, ...]] = ("mismatch", "missing", "extra")
LATE_PROFILE: Final = "late_profile"

_OF_USER: Final = {name: view for name, view in VIEW_OF.items() if view in (USER_BROWSE_5M, USER_BROWSE_1M)}
_OF_ITEM: Final = (
    "item_category_clicks_10m",
    "item_type_views_30m",
    "item_segment_clicks_10m",
    "item_city_segment_clicks_10m",
    "item_recently_viewed",
)
FEATURES: Final = (*_OF_USER, *_OF_ITEM)
"""The features that are compared."""

_EXAMPLES: Final = 3

Values = Mapping[ViewKey, Value | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request, and those of its values that can be computed again."""

    record: InferenceRecord
    questions: Mapping[ViewKey, Question]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A feature as it was served and as it is recomputed. `ask`: the value it is out of."""

    feature: str
    item_id: int | None
    ask: ViewKey
    served: Any
    recomputed: Any

    def kind(self) -> Kind | None:
        """How they differ; None if they do not. 0 and an empty list say that there is nothing, as does an absent one.

        >>> ask = ViewKey(view="user_browse_5m", key="7")
        >>> pairs = [(2, 2), (None, 0), (0, 2), ([7], []), (1, 2)]
        >>> [Pair(feature="f", item_id=None, ask=ask, served=a, recomputed=b).kind() for a, b in pairs]
        [None, None, 'missing', 'extra', 'mismatch']
        """
        nothing_served, nothing_again = (value in (None, 0, []) for value in (self.served, self.recomputed))
        if self.served == self.recomputed or (nothing_served and nothing_again):
            return None
        if nothing_served:
            return "missing"
        return "extra" if nothing_again else "mismatch"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Difference:
    """A feature that was served otherwise."""

    case: Case
    pair: Pair
    kind: Kind

    @property
    def question(self) -> Question:
        """The value that it is out of."""
        return self.case.questions[self.pair.ask]

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for people and programs."""
        return {
            "request_id": self.case.record.request_id,
            "ts": self.case.record.ts,
            "feature": self.pair.feature,
            "item_id": self.pair.item_id,
            "view": self.question.view.id,
            "key": self.question.key,
            "kind": self.kind,
            "served": self.pair.served,
            "recomputed": self.pair.recomputed,
        }


@dataclass(slots=True, kw_only=True)
class Report:
    """What came out. `outcomes`: feature → equal, mismatch, missing, extra, late_profile → how often.

    Of the `requests` with offsets, `compared` had a key of the sample; the history has not all events of `not_yet`;
    `incomplete` had a value of a view that is gone, or did not have all events of its window then.
    """

    requests: int = 0
    compared: int = 0
    not_yet: int = 0
    incomplete: int = 0
    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    examples: defaultdict[str, list[Difference]] = field(default_factory=lambda: defaultdict(list))

    @property
    def differences(self) -> int:
        """How many values differ, but for those that a late profile explains."""
        return sum(counts[kind] for counts in self.outcomes.values() for kind in KINDS)

    def add(self, equal: Counter[str], differences: Iterable[Difference], *, late: Iterable[Difference] = ()) -> None:
        """Take the outcome of some cases: feature → values that are equal; what differs; what of it is explained."""
        explained = set(late)
        for feature, n in equal.items():
            self.outcomes[feature]["equal"] += n
        for each in differences:
            feature = each.pair.feature
            self.outcomes[feature][LATE_PROFILE if each in explained else each.kind] += 1
            if each not in explained and len(self.examples[feature]) < _EXAMPLES:
                self.examples[feature].append(each)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, with every feature, compared or not."""
        outcomes = ("equal", *KINDS, LATE_PROFILE)
        return {
            "requests": self.requests,
            "compared": self.compared,
            "not_yet": self.not_yet,
            "incomplete": self.incomplete,
            "differences": self.differences,
            "features": {name: {each: self.outcomes[name][each] for each in outcomes} for name in FEATURES},
            "examples": [each.as_dict() for found in self.examples.values() for each in found],
        }


def cases_of(
    records: Sequence[InferenceRecord],
    definitions: Definitions,
    report: Report,
    *,
    share: float,
    reached: Mapping[int, int],
    most: int | None = None,
) -> list[Case]:
    """The requests that can be computed again, until the report has `most`; it counts these and the others.

    `reached`: partition → the first offset of behaviour that the history does not have.
    """
    asked = [served_asks(record) for record in records]
    keys = pl.Series(list({ask.key for asks in asked for ask in asks}), dtype=pl.String)
    chosen = set(keys.filter(sampled(keys, share)))
    cases = []
    for record, asks in zip(records, asked, strict=True):
        if report.compared == most:
            break
        wanted = [ask for ask in asks if ask.key in chosen]
        found = [(ask, _question(record, ask, definitions)) for ask in wanted]
        questions = {ask: question for ask, question in found if question is not None}
        ahead = any(offset > reached.get(part, 0) for each in questions.values() for part, offset in each.offsets)
        report.requests += 1
        report.incomplete += len(questions) < len(wanted)
        report.not_yet += ahead
        if questions and not ahead:
            report.compared += 1
            cases.append(Case(record=record, questions=questions))
    return cases


def served_asks(record: InferenceRecord) -> list[ViewKey]:
    """What was read for the request, as far as the record says what was behind it.

    >>> record = InferenceRecord(request_id="r", user_id=7, ts=0, model_version="1", features={},
    ...                          as_of={"user_browse_5m": {"0": 3}}, as_of_ms={"user_browse_5m": 0})
    >>> served_asks(record)
    [ViewKey(view='user_browse_5m', key='7')]
    """
    known = (record.as_of or {}).keys() & (record.as_of_ms or {}).keys() & FEATURE_VIEWS
    asks = [
        *request_asks(user_id=record.user_id, profile=_profile(record), page_id=record.page_id),
        *item_asks(_catalogued(item) for item in record.items or ()),
    ]
    return [ask for ask in asks if ask.view in known]


def compare(
    cases: Sequence[Case], events: pl.DataFrame, profiles: pl.DataFrame, *, tile_ms: int
) -> tuple[Counter[str], list[Difference]]:
    """Feature → how many values of the cases are equal; and what differs. `events`, `profiles`: as in `Recount`."""
    questions = [question for case in cases for question in case.questions.values()]
    recount = Recount(questions, events, profiles, tile_ms=tile_ms)
    equal: Counter[str] = Counter()
    differences = []
    for case in cases:
        values = {ask: recount.value(question) for ask, question in case.questions.items()}
        for pair in pairs(case.record, values):
            kind = pair.kind()
            if kind is None:
                equal[pair.feature] += 1
            else:
                differences.append(Difference(case=case, pair=pair, kind=kind))
    return equal, differences


def pairs(record: InferenceRecord, values: Values) -> Iterator[Pair]:
    """The features of a request that are out of these recomputed values."""
    user = {view: ViewKey(view=view, key=str(record.user_id)) for view in (USER_BROWSE_5M, USER_BROWSE_1M)}
    again = request_features(values, None, user_id=record.user_id, realtime=True)
    for name, view in _OF_USER.items():
        if user[view] in values:
            served = record.features.get(name)
            yield Pair(feature=name, item_id=None, ask=user[view], served=served, recomputed=again[name])
    for item in record.items or ():
        yield from _item_pairs(record, item, values)


def by_late_profiles(
    differences: Iterable[Difference], events: pl.DataFrame, versions: pl.DataFrame
) -> list[Difference]:
    """Those that a profile explains which came when events that it should have been joined to were counted already.

    `events`, `versions`: as `in_doubt` has them.
    """
    asked = [each for each in differences if each.question.view.needs_profile]
    views = {each.question.view.id: each.question.view for each in asked}
    doubtful = {name: in_doubt(view, events, versions) for name, view in views.items()}
    return [each for each in asked if behind(each.question, doubtful[each.question.view.id])]


def _item_pairs(record: InferenceRecord, item: RankedItem, values: Values) -> Iterator[Pair]:
    profile, known, served = _profile(record), _catalogued(item), item.features or {}
    user = ViewKey(view=USER_BROWSE_5M, key=str(record.user_id))
    recent = Recent(items=frozenset((values.get(user) or {}).get("last_items", ())))
    again = item_features(known, trends(values, profile, page_id=record.page_id), recent=recent)
    segments = (segment_key(profile, page_id=record.page_id), city_segment_key(profile, page_id=record.page_id))
    asks = (
        ViewKey(view=CATEGORY_TOP_ITEMS_10M, key=again["item_category"]),
        ViewKey(view=TOP_VIEWED_30M, key=again["item_type"]),
        *(ViewKey(view=SEGMENT_PAGE_TOP_ADS, key=key or "") for key in segments),
        user,
    )
    for name, ask in zip(_OF_ITEM, asks, strict=True):
        if ask in values:
            yield Pair(feature=name, item_id=item.item_id, ask=ask, served=served.get(name), recomputed=again[name])


def _profile(record: InferenceRecord) -> ProfileVersion:
    country, gender, city = (record.features.get(name) or None for name in ("country", "gender", "city"))
    return ProfileVersion(user_id=record.user_id, ts=0, country=country, gender=gender, city=city)


def _catalogued(item: RankedItem) -> CatalogItem:
    """The item as the catalogue knew it then."""
    features = item.features or {}
    category = str(features.get("item_category") or "")
    return CatalogItem(
        item_id=item.item_id,
        ts=0,
        item_type=features.get("item_type") or None,
        category_id=int(category) if category.removeprefix("-").isdecimal() else None,
    )


def _question(record: InferenceRecord, ask: ViewKey, definitions: Definitions) -> Question | None:
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
