"""What was served against what should have been: the features of logged requests, computed again from the events.

From just the events and versions that a record says were behind its values (`served.py`) they are computed once more,
by the functions that the stream and serving use, and compared feature by feature.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from rtrec_ray.events import ITEM, InferenceRecord
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.recount import Question, Recount, Sample, behind, in_doubt
from rtrec_ray.features.request import FEATURE_VIEWS
from rtrec_ray.features.served import FEATURES, Case, Kind, Pair, Values, last_items, pairs, question_of, served_asks
from rtrec_ray.features.versions import Known

KINDS: Final[tuple[Kind, ...]] = ("mismatch", "missing", "extra")
LATE_PROFILE: Final = "late_profile"

_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Difference:
    """A feature that was served otherwise."""

    case: Case
    pair: Pair
    kind: Kind

    @property
    def question(self) -> Question | None:
        """The value that it is out of; None of a profile or an item."""
        return self.case.questions.get(self.pair.ask)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for people and programs."""
        return {
            "request_id": self.case.record.request_id,
            "ts": self.case.record.ts,
            "feature": self.pair.feature,
            "item_id": self.pair.item_id,
            "view": self.pair.ask.view if self.question is None else self.question.view.id,
            "key": self.pair.ask.key,
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
    sample: Sample,
    reached: Mapping[str, Mapping[int, int]],
    most: int | None = None,
) -> list[Case]:
    """The requests that can be computed again, until the report has `most`; it counts these and the others.

    `reached`: topic → partition → the first offset that the history does not have.
    """
    asked = [served_asks(record) for record in records]
    chosen = {
        ViewKey(view=view, key=key)
        for view, keys in keys_by_view(asked).items()
        for key in keys.filter(sample.of(view, keys))
    }
    cases = []
    for record, asks in zip(records, asked, strict=True):
        if report.compared == most:
            break
        wanted = [ask for ask in asks if ask in chosen]
        of_views = [ask for ask in wanted if ask.view in FEATURE_VIEWS]
        found = [(ask, question_of(record, ask, definitions)) for ask in of_views]
        questions = {ask: question for ask, question in found if question is not None}
        case = Case(record=record, questions=questions, versions=frozenset(wanted).difference(of_views))
        ahead = any(offset > reached.get(topic, {}).get(part, 0) for topic, part, offset in case.reads())
        report.requests += 1
        report.incomplete += len(questions) < len(of_views)
        if not questions and not case.versions:
            continue
        report.not_yet += ahead
        if not ahead:
            report.compared += 1
            cases.append(case)
    return cases


def keys_by_view(asked: Iterable[Iterable[ViewKey]]) -> dict[str, pl.Series]:
    """View → its keys (text), each once, in an order of their own."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for asks in asked:
        for ask in asks:
            found[ask.view].add(ask.key)
    return {view: pl.Series(sorted(keys), dtype=pl.String) for view, keys in found.items()}


def values_of(cases: Sequence[Case], events: pl.DataFrame, profiles: pl.DataFrame, *, tile_ms: int) -> list[Values]:
    """The values of each case's questions. `events`, `profiles`: as in `Recount`."""
    questions = [question for case in cases for question in case.questions.values()]
    recount = Recount(questions, events, profiles, tile_ms=tile_ms)
    return [{ask: recount.value(question) for ask, question in case.questions.items()} for case in cases]


def items_behind(cases: Sequence[Case], values: Sequence[Values]) -> set[int]:
    """The items whose versions a comparison of these cases needs."""
    told = [(case, found) for case, found in zip(cases, values, strict=True) if case.upto(ITEM) is not None]
    shown = {int(ask.key) for case, _ in told for ask in case.versions if ask.view == ITEM}
    return shown.union(*(last_items(case, found) for case, found in told))


def compare(cases: Sequence[Case], values: Sequence[Values], known: Known) -> tuple[Counter[str], list[Difference]]:
    """Feature → how many values of the cases are equal; and what differs. `values`: of each case, as recomputed."""
    equal: Counter[str] = Counter()
    differences = []
    for case, found in zip(cases, values, strict=True):
        for pair in pairs(case, found, known):
            kind = pair.kind()
            if kind is None:
                equal[pair.feature] += 1
            else:
                differences.append(Difference(case=case, pair=pair, kind=kind))
    return equal, differences


def by_late_profiles(
    differences: Iterable[Difference], events: pl.DataFrame, versions: pl.DataFrame
) -> list[Difference]:
    """Those that a profile explains which came when events that it should have been joined to were counted already.

    `events`, `versions`: as `in_doubt` has them.
    """
    asked = [(each, question) for each in differences if (question := each.question) and question.view.needs_profile]
    views = {question.view.id: question.view for _, question in asked}
    doubtful = {name: in_doubt(view, events, versions) for name, view in views.items()}
    return [each for each, question in asked if behind(question, doubtful[question.view.id])]
