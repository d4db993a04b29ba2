"""The world in a closed loop with a recommender, step by step in event time, without servers and wall time.

Events take effect when their step is over: a step is what the system's latency would be.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final

import numpy as np

from rtrec_ray.events import InferenceRecord, ProfileVersion, RankedItem
from rtrec_ray.features.keys import USER_BROWSE_5M, ViewKey
from rtrec_ray.features.request import (
    Recent,
    Trends,
    Values,
    item_features,
    recently_viewed,
    request_features,
    trends,
)
from rtrec_ray.simulate.world.engine import FeatureEngine
from rtrec_ray.simulate.world.people import Indexes
from rtrec_ray.simulate.world.shopper import Event, impressions, on_the_way, reactions, respond
from rtrec_ray.simulate.world.truth import Asked, Floats, regret
from rtrec_ray.simulate.world.visits import Visit, Visits
from rtrec_ray.simulate.world.world import World

PLACES: Final = 5
"""Items on a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as a recommender sees it. `shared`: its features; `rows`: those of each of `items` (ids)."""

    request_id: str
    user_id: int
    page_id: int
    ts_ms: int
    arm: str
    shared: dict[str, Any]
    items: Sequence[int]
    rows: Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slate:
    """What a recommender shows: places in `Request.items`, best first, with the chance of each to stand there.

    `propensities`: None where nobody knows.
    """

    shown: Sequence[int]
    scores: Sequence[float]
    propensities: Sequence[float] | None
    model_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happened in one step. `asked`, `arms` (n,), `shown` (n, k); `regret`, `probability` (n,), means per
    impression from the true probabilities. `events`: those that took effect, in the order of their time; `records`:
    the answers.
    """

    asked: Asked
    arms: list[str]
    shown: Indexes
    probability: Floats
    regret: Floats
    events: list[Event]
    records: list[InferenceRecord]


@dataclass(slots=True, kw_only=True)
class Play:
    """One run of the world. `realtime`: whether an arm's requests are given real-time features."""

    world: World
    engine: FeatureEngine
    recommend: Callable[[list[Request]], list[Slate]]
    arm_of: Callable[[int], str]
    realtime: Callable[[str], bool]
    random: np.random.Generator
    name: str
    _waiting: list[tuple[int, int, Event]] = field(default_factory=list)
    _turn: count[int] = field(default_factory=count)

    def step(self, visits: Visits, *, to_ms: int) -> Step:
        """Play the visits of one step and let everything up to `to_ms` take effect."""
        asked, truth = visits.asked, self.world.truth
        each = [(visit, f"{self.name}-{next(self._turn)}") for visit in visits]
        for (visit, name), found in zip(each, truth.find(asked, self.random).tolist(), strict=True):
            self._report(on_the_way(self.world, visit, name=name, found=found, random=self.random))
        requests = [self._request(visit, name) for visit, name in each]
        slates = self.recommend(requests)
        shown = self._indexes(requests, slates)
        self._react(visits, shown, requests)
        events = self._due(to_ms)
        self.engine.take(events, now_ms=to_ms)
        return Step(
            asked=asked,
            arms=[request.arm for request in requests],
            shown=shown,
            probability=truth.probability(asked, shown).mean(axis=1),
            regret=regret(truth, asked, shown),
            events=events,
            records=[_record(request, slate) for request, slate in zip(requests, slates, strict=True)],
        )

    def _request(self, visit: Visit, name: str) -> Request:
        arm, profile = self.arm_of(visit.user_id), self.engine.profile(visit.user_id)
        known = self.realtime(arm)
        values = self.engine.read(visit.user_id, page_id=visit.page_id, now_ms=visit.ts_ms) if known else {}
        trend = self._trend(values, profile, page_id=visit.page_id, known=known)
        catalogue, recent = self.engine.catalogue(), self._recent(values, visit.user_id)
        return Request(
            request_id=name,
            user_id=visit.user_id,
            page_id=visit.page_id,
            ts_ms=visit.ts_ms,
            arm=arm,
            shared=request_features(values, profile, user_id=visit.user_id, realtime=known),
            items=list(catalogue),
            rows=[item_features(item, trend, recent=recent) for item in catalogue.values()],
        )

    def _trend(self, values: Values, profile: ProfileVersion | None, *, page_id: int, known: bool) -> Trends:
        of_request = trends(values, profile, page_id=page_id)
        if not known:
            return of_request
        return replace(of_request, by_category=self.engine.by_category(), by_type=self.engine.by_type())

    def _recent(self, values: Values, user_id: int) -> Recent:
        catalogue, own = self.engine.catalogue(), values.get(ViewKey(view=USER_BROWSE_5M, key=str(user_id))) or {}
        return recently_viewed([catalogue[item] for item in own.get("last_items", ()) if item in catalogue])

    def _react(self, visits: Visits, shown: Indexes, requests: list[Request]) -> None:
        response = respond(self.world, visits.asked, shown, self.random)
        for row, (visit, request) in enumerate(zip(visits, requests, strict=True)):
            slate, marks = shown[row].tolist(), {"request_id": request.request_id, "arm": request.arm}
            self._report(impressions(self.world, visit, slate, marks=marks))
            self._report(reactions(self.world, visit, slate, response[row : row + 1], marks=marks))

    def _indexes(self, requests: list[Request], slates: list[Slate]) -> Indexes:
        ids = [[request.items[place] for place in slate.shown] for request, slate in zip(requests, slates, strict=True)]
        return self.world.goods.index_of(np.array(ids, dtype=np.int64).reshape(-1, PLACES))

    def _report(self, events: list[Event]) -> None:
        for event in events:
            heapq.heappush(self._waiting, (event["ts"], next(self._turn), event))

    def _due(self, to_ms: int) -> list[Event]:
        due = []
        while self._waiting and self._waiting[0][0] < to_ms:
            due.append(heapq.heappop(self._waiting)[2])
        return due


def _record(request: Request, slate: Slate) -> InferenceRecord:
    return InferenceRecord(
        request_id=request.request_id,
        user_id=request.user_id,
        ts=request.ts_ms,
        model_version=slate.model_version,
        features=request.shared,
        page_id=request.page_id,
        arm=request.arm,
        items=[
            RankedItem(
                item_id=request.items[index],
                position=position,
                score=slate.scores[position - 1],
                propensity=None if slate.propensities is None else slate.propensities[position - 1],
                features=request.rows[index],
            )
            for position, index in enumerate(slate.shown, start=1)
        ],
    )
