"""Who the live client plays: the users of the log, and how often they click what they are shown."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import polars as pl

from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM

CLICK_AFTER_MS: Final = 3_000
"""A live click comes this long after its impression, event time: as the log's clicks do."""

ARM: Final = "live"
"""Marks everything that the live client did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """A user of the log on a page, with the features the log has of both."""

    user_id: int
    page_id: int
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """`visitors`: one for each impression of the log, so that drawing one draws as the log did. By item: the click rate
    of the log, and the category.
    """

    visitors: Sequence[Visitor]
    click_rate: Mapping[int, float]
    category: Mapping[int, int]

    def visitor(self, rng: random.Random) -> Visitor:
        """Somebody."""
        return self.visitors[rng.randrange(len(self.visitors))]

    def clicks(self, items: Sequence[int], rng: random.Random) -> list[int]:
        """Which of the shown items are clicked."""
        return [item for item in items if rng.random() < self.click_rate.get(item, 0.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An answered request: what was shown to whom, at `ts_ms` of event time."""

    request_id: str
    visitor: Visitor
    items: Sequence[int]
    ts_ms: int


def audience(records: Mapping[str, pl.DataFrame]) -> Audience:
    """The audience of a log. records: topic → frame, as the data set gives them."""
    asked = records[INFERENCE].select("user_id", "page_id", "features")
    behavior, items = records[BEHAVIOR], records[ITEM]
    counted = behavior.group_by("item_id").agg(
        (pl.col("event_type") == "impression").sum().alias("shown"),
        (pl.col("event_type") == "click").sum().alias("clicked"),
    )
    rates = counted.filter(pl.col("shown") > 0).select("item_id", pl.col("clicked") / pl.col("shown"))
    return Audience(
        visitors=[
            Visitor(user_id=user, page_id=page, context=_of_user(orjson.loads(features)))
            for user, page, features in asked.iter_rows()
        ],
        click_rate=dict(rates.iter_rows()),
        category=dict(items.select("item_id", "category_id").iter_rows()),
    )


def impressions(shown: Shown, audience: Audience) -> list[dict[str, Any]]:
    """What the page reports as soon as it is shown."""
    return [
        _event(shown, audience, item, position=position, event_type="impression", ts_ms=shown.ts_ms)
        for position, item in enumerate(shown.items, start=1)
    ]


def clicks(shown: Shown, audience: Audience, rng: random.Random) -> list[dict[str, Any]]:
    """What the user clicks on it."""
    clicked = set(audience.clicks(shown.items, rng))
    ts_ms = shown.ts_ms + CLICK_AFTER_MS
    return [
        _event(shown, audience, item, position=position, event_type="click", ts_ms=ts_ms)
        for position, item in enumerate(shown.items, start=1)
        if item in clicked
    ]


def _event(
    shown: Shown, audience: Audience, item: int, *, position: int, event_type: str, ts_ms: int
) -> dict[str, Any]:
    return {
        "event_id": f"{shown.request_id}-{position}-{event_type}",
        "event_type": event_type,
        "ts": ts_ms,
        "user_id": shown.visitor.user_id,
        "item_id": item,
        "item_type": "product",
        "category_id": audience.category.get(item),
        "page_id": shown.visitor.page_id,
        "request_id": shown.request_id,
        "position": position,
        "arm": ARM,
    }


def _of_user(features: Mapping[str, Any]) -> dict[str, Any]:
    """The features of the user: position and propensity belong to what was shown then."""
    return {name: value for name, value in features.items() if name.startswith("user_feature_")}
