"""What shoppers do: browse on their way, see what they are shown, click, look, favour; as records of `behavior`.

Event ids are made of the request's or visit's id, so that a report sent twice is the same event twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rtrec_ray.simulate.world.people import Indexes
from rtrec_ray.simulate.world.truth import Asked, Floats
from rtrec_ray.simulate.world.visits import Visit
from rtrec_ray.simulate.world.world import World

Event = dict[str, Any]

_BEFORE_MS: Final = 2_000  # between two things a visitor does on the way to a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What becomes of n slates of k items, all (n, k). `probability`: the true one of a click."""

    probability: Floats
    clicked: npt.NDArray[np.bool_]
    delay_ms: Indexes
    dwell_ms: Indexes
    favored: npt.NDArray[np.bool_]
    twice: npt.NDArray[np.bool_]

    def __getitem__(self, rows: slice) -> Response:
        """Some of the slates."""
        return Response(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})


def respond(world: World, asked: Asked, shown: Indexes, random: np.random.Generator) -> Response:
    """Draw who clicks what, and when. shown: (n, k) indexes of items on places 1 to k."""
    rules, shape = world.options.visits, shown.shape
    probability = world.truth.probability(asked, shown)
    delay = random.lognormal(np.log(rules.click_ms), rules.click_spread, shape)
    late = random.random(shape) < rules.late
    delay = np.where(late, random.uniform(*rules.late_ms, shape), delay)
    return Response(
        probability=probability,
        clicked=random.random(shape) < probability,
        delay_ms=np.maximum(delay, 500).astype(np.int64),
        dwell_ms=random.exponential(rules.dwell_ms, shape).astype(np.int64) + 500,
        favored=random.random(shape) < rules.favorite,
        twice=random.random(shape) < rules.twice,
    )


def on_the_way(world: World, visit: Visit, *, name: str, found: int, random: np.random.Generator) -> list[Event]:
    """What a visitor does before the page is asked for: a search, views of what he came for, a click of his own.

    `name`: of the visit, for the events' ids. `found`: index of the ad that he would find by himself.
    """
    of_category = np.flatnonzero((world.goods.category == visit.intent) & ~world.goods.is_new())
    seen = random.choice(of_category, size=min(visit.views, len(of_category)), replace=False)
    ts_ms = visit.ts_ms - _BEFORE_MS * (len(seen) + 2)
    shared = {"user_id": visit.user_id, "page_id": visit.page_id}
    events: list[Event] = []
    if visit.searches:
        query = f"category {visit.intent}"
        events.append({"event_id": f"{name}-q", "event_type": "search", "ts": ts_ms, **shared, "query": query})
    for number, item in enumerate(seen.tolist(), start=1):
        dwell_ms = int(random.exponential(world.options.visits.dwell_ms)) + 500
        view = {"event_id": f"{name}-v{number}", "event_type": "view", "ts": ts_ms + _BEFORE_MS * number, **shared}
        events.append({**view, **of_item(world, item), "dwell_ms": dwell_ms})
    if visit.finds:
        click = {"event_id": f"{name}-c", "event_type": "click", "ts": visit.ts_ms - _BEFORE_MS, **shared}
        events.append({**click, **of_item(world, found)})
    return events


def impressions(world: World, visit: Visit, shown: Sequence[int], *, marks: Event) -> list[Event]:
    """What a page reports as soon as it is seen. shown: (k,) indexes. `marks`: request_id and arm, for all events."""
    return [
        _event(world, visit, item, kind="impression", ts_ms=visit.ts_ms, marks={**marks, "position": place})
        for place, item in enumerate(shown, start=1)
    ]


def reactions(world: World, visit: Visit, shown: Sequence[int], response: Response, *, marks: Event) -> list[Event]:
    """What the visitor does with the page, in no order: clicks, looks at what was clicked, favours some of it.

    `response`: to this slate alone, (1, k).
    """
    events: list[Event] = []
    for index in np.flatnonzero(response.clicked[0]).tolist():
        own = {**marks, "position": index + 1}
        click_ms, dwell_ms = visit.ts_ms + int(response.delay_ms[0, index]), int(response.dwell_ms[0, index])
        click = _event(world, visit, shown[index], kind="click", ts_ms=click_ms, marks=own)
        view = _event(world, visit, shown[index], kind="view", ts_ms=click_ms + dwell_ms, marks=own)
        events += [click, {**view, "dwell_ms": dwell_ms}]
        if response.twice[0, index]:
            events.append(click)
        if response.favored[0, index]:
            events.append(_event(world, visit, shown[index], kind="favorite", ts_ms=click_ms + 1_000, marks=own))
    return events


def of_item(world: World, index: int) -> Event:
    """What an event says of its item."""
    return {
        "item_id": int(world.goods.item_id[index]),
        "item_type": world.goods.item_type(index),
        "category_id": int(world.goods.category[index]),
    }


def _event(world: World, visit: Visit, item: int, *, kind: str, ts_ms: int, marks: Event) -> Event:
    return {
        "event_id": f"{marks['request_id']}-{marks['position']}-{kind}",
        "event_type": kind,
        "ts": ts_ms,
        "user_id": visit.user_id,
        **of_item(world, item),
        "page_id": visit.page_id,
        **marks,
    }
