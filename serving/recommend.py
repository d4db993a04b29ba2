"""One request: recall, features, ranking, exploration — and what to answer when a part of that is away."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from rtrec_ray.clock import Clock
from rtrec_ray.events import ITEM, PROFILE, InferenceRecord, RankedItem
from rtrec_ray.features.definition import PROFILE_FIELDS
from rtrec_ray.features.request import (
    VIEW_OF,
    item_features,
    recently_viewed,
    request_features,
    trends,
)
from rtrec_ray.stores.features.store import ReadPoint, VersionPoint
from serving.calls import BoundedCalls
from serving.explore import Shown, arrange
from serving.lists import Lists, ListsReader, without_trends
from serving.metrics import ServingMetrics
from serving.options import Arm, ModelRole, ServingOptions
from serving.rank import Scorer, best_first, by_place, score
from serving.reload import NO_MODEL, ModelHolder, Scored
from serving.retrieve import arm_of, distinct, interleave, recent_categories
from serving.schema import AnswerItem, Freshness, RecommendAnswer, RecommendRequest
from serving.user import UserRead, UserReader

log = logging.getLogger(__name__)

T = TypeVar("T")

NO_MODEL_YET: Final = "no_model"
MODEL_UNAVAILABLE: Final = "model_unavailable"
STORE_UNAVAILABLE: Final = "store_unavailable"
EMPTY_CATALOGUE: Final = "empty_catalogue"
VIEW_MISSING: Final = "view_missing"
REASONS: Final = (NO_MODEL_YET, MODEL_UNAVAILABLE, STORE_UNAVAILABLE, EMPTY_CATALOGUE, VIEW_MISSING)

_CATALOGUE_DRAW: Final = 50


@dataclass(slots=True, kw_only=True)
class _Slate:
    """A request on its way to its answer. `arm_name`: as it is logged; `scores`: (candidates,)."""

    ask: RecommendRequest
    ts_ms: int
    arm_name: str | None
    arm: Arm
    lists: Lists
    user: UserRead = field(default_factory=UserRead)
    features: dict[str, Any] = field(default_factory=dict)
    candidates: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    shown: list[Shown] = field(default_factory=list)
    model: Scorer | None = None
    degraded: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Recommender:
    """Answers requests. Whatever is away costs quality and is named in `degraded`; nothing here fails a request.

    `holders`: of every model that an arm asks for. An arm never gets another's model, or the two could not be compared.
    """

    options: ServingOptions
    clock: Clock
    users: UserReader
    lists: ListsReader
    holders: Mapping[ModelRole, ModelHolder]
    metrics: ServingMetrics
    store_calls: BoundedCalls
    model_calls: BoundedCalls
    rng: random.Random = field(default_factory=random.Random)

    async def answer(self, ask: RecommendRequest) -> tuple[RecommendAnswer, InferenceRecord]:
        """The answer, and the record of what it was made with."""
        slate = self._begin(ask)
        await self._read_user(slate)
        self._recall(slate)
        if slate.candidates:
            await self._rank(slate)
            self._arrange(slate)
        elif ask.candidates is None and slate.lists.loaded:
            slate.degraded.append(EMPTY_CATALOGUE)
        for reason in slate.degraded:
            self.metrics.degraded.labels(reason).inc()
        return self._finish(slate)

    def _begin(self, ask: RecommendRequest) -> _Slate:
        name = ask.arm if ask.arm is not None else arm_of(ask.user_id, self.options.arms)
        arm, lists = self.options.arm(name), self.lists.current()
        return _Slate(
            ask=ask,
            ts_ms=self.clock.now_ms(),
            arm_name=name,
            arm=arm,
            lists=lists if arm.realtime else without_trends(lists),
            model=self.holders[arm.model].current(),
        )

    async def _read_user(self, slate: _Slate) -> None:
        ask, realtime = slate.ask, slate.arm.realtime
        views = partial(self.users.read, ask.user_id, page_id=ask.page_id)
        read = views if realtime else partial(self.users.read_profile, ask.user_id)
        found = await self._or_none(self.store_calls, read, what=STORE_UNAVAILABLE)
        if found is None:
            slate.degraded.append(STORE_UNAVAILABLE)
        if realtime and self.users.undefined():
            slate.degraded.append(VIEW_MISSING)
        slate.user = self.users.remembered(ask.user_id) if found is None else found
        user = slate.user
        own = request_features(user.values, user.profile, user_id=ask.user_id, realtime=user.realtime)
        slate.features = own | ask.context

    def _recall(self, slate: _Slate) -> None:
        if slate.ask.candidates is not None:
            slate.candidates = distinct(slate.ask.candidates)
        else:
            slate.candidates = self._recalled(slate)
        recent = recently_viewed([slate.lists.item(item) for item in slate.user.last_items(slate.ask.user_id)])
        trend = replace(
            trends(slate.user.values, slate.user.profile, page_id=slate.ask.page_id),
            by_category=slate.lists.by_category,
            by_type=slate.lists.by_type,
        )
        slate.rows = [item_features(slate.lists.item(item), trend, recent=recent) for item in slate.candidates]

    def _recalled(self, slate: _Slate) -> list[int]:
        lists, limit = slate.lists, self.options.recalled_items
        categories = {item: lists.item(item).category_id for item in slate.user.last_items(slate.ask.user_id)}
        liked = recent_categories(categories, categories)
        # A few of a large catalogue by chance, or what no list shows could never get on one.
        drawn = self.rng.sample(lists.newest, min(_CATALOGUE_DRAW, limit)) if len(lists.newest) > limit else ()
        sources: list[Sequence[int]] = [
            *slate.user.segment_items(),
            *(list(lists.by_category.get(str(category), ())) for category in liked),
            lists.popular,
            lists.newest,
            drawn,
        ]
        return interleave(sources, limit=limit)

    async def _rank(self, slate: _Slate) -> None:
        scores = None if slate.model is None else await self._scores(slate, slate.model)
        if scores is None:
            slate.degraded.append(NO_MODEL_YET if slate.model is None else MODEL_UNAVAILABLE)
            slate.model, scores = None, self._popular_scores(slate)
        slate.scores = scores

    async def _scores(self, slate: _Slate, model: Scorer) -> npt.NDArray[np.float64] | None:
        shared = {**slate.features, "user_id": slate.ask.user_id, "page_id": slate.ask.page_id}
        rows = [{**row, "item_id": item} for item, row in zip(slate.candidates, slate.rows, strict=True)]
        self.holders[slate.arm.model].remember(Scored(shared=shared, rows=rows))
        work = partial(score, model, shared=shared, rows=rows)
        return await self._or_none(self.model_calls, work, what=MODEL_UNAVAILABLE)

    def _popular_scores(self, slate: _Slate) -> npt.NDArray[np.float64]:
        place = {item: place for place, item in enumerate(slate.lists.popular)}
        last = len(place)
        order = np.argsort([place.get(item, last) for item in slate.candidates], kind="stable")
        scores = np.empty(len(order))
        scores[order] = by_place(len(order))
        return scores

    def _arrange(self, slate: _Slate) -> None:
        count = self.options.default_items if slate.ask.k is None else slate.ask.k
        order = best_first(slate.scores)
        slate.shown = arrange(order, count=count, share=self.options.exploration, rng=self.rng)
        self.metrics.items.inc(len(slate.shown))
        if [shown.index for shown in slate.shown] != order[: len(slate.shown)]:
            self.metrics.explored.inc()

    def _finish(self, slate: _Slate) -> tuple[RecommendAnswer, InferenceRecord]:
        ask, version = slate.ask, NO_MODEL if slate.model is None else slate.model.version
        items = [_ranked(slate, shown, position) for position, shown in enumerate(slate.shown, start=1)]
        answer = RecommendAnswer(
            request_id=str(uuid.uuid4()),
            model_version=version,
            items=[AnswerItem(item_id=i.item_id, score=i.score, position=i.position) for i in items],
            freshness=Freshness(
                feature_age_ms=_age_ms(slate.ts_ms, slate.lists.newest_event_ms),
                model_age_ms=_age_ms(slate.ts_ms, None if slate.model is None else slate.model.trained_to_ms),
            ),
            degraded=slate.degraded,
        )
        record = InferenceRecord(
            request_id=answer.request_id,
            user_id=ask.user_id,
            ts=slate.ts_ms,
            model_version=version,
            features=slate.features,
            page_id=ask.page_id,
            arm=slate.arm_name,
            items=items,
            **_behind(_points(slate), _version_points(slate)),
        )
        return answer, record

    async def _or_none(self, calls: BoundedCalls, work: Callable[[], T], *, what: str) -> T | None:
        try:
            return await calls.run(work)
        except Exception as error:  # noqa: BLE001
            # A driver's or a library's error of any kind is one lack more in the answer, never a failed request.
            # debug: an outage is one metric and one entry of /readyz, not a line for each request.
            log.debug("request_degraded", extra={"what": what, "reason": repr(error)})
            return None


def _ranked(slate: _Slate, shown: Shown, position: int) -> RankedItem:
    return RankedItem(
        item_id=slate.candidates[shown.index],
        position=position,
        score=float(slate.scores[shown.index]),
        propensity=shown.propensity,
        features=slate.rows[shown.index],
    )


def _points(slate: _Slate) -> dict[str, ReadPoint]:
    """What is behind the views whose values are in the record: not those that the request's context replaced."""
    points = {**slate.lists.points, **slate.user.points}
    for name in slate.ask.context.keys() & VIEW_OF.keys():
        points.pop(VIEW_OF[name], None)
    return points


def _version_points(slate: _Slate) -> dict[str, VersionPoint]:
    """What is behind the profile, unless the request's context replaced a part of it, and behind the catalogue."""
    found = {ITEM: slate.lists.catalogued}
    if not slate.ask.context.keys() & PROFILE_FIELDS:
        found[PROFILE] = slate.user.profiled
    return {topic: at for topic, at in found.items() if at is not None}


def _behind(points: Mapping[str, ReadPoint], versions: Mapping[str, VersionPoint]) -> dict[str, Any]:
    """The same as fields of the record; none for none."""
    both: list[tuple[str, ReadPoint | VersionPoint]] = [*points.items(), *versions.items()]
    fields = {
        "as_of": {name: {str(part): offset for part, offset in at.offsets.items()} for name, at in both},
        "as_of_ms": {name: at.as_of_ms for name, at in both if at.as_of_ms is not None},
        "as_of_version": {view: at.version for view, at in points.items()},
    }
    return {name: value for name, value in fields.items() if value}


def _age_ms(now_ms: int, then_ms: int | None) -> int | None:
    return None if then_ms is None else max(0, now_ms - then_ms)
