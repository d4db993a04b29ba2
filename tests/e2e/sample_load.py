"""Requests, what was shown, clicked and regretted, as badly behaved as it comes; the same for the same seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from typing import Any, Final

import orjson

from rtrec_ray.events import BEHAVIOR, INFERENCE, RETRACT
from tests.e2e.feature_load import START_MS, Record

STEP_MS: Final = 500
"""Event time between two requests."""

CLOCK_MS: Final = START_MS + 7_200_000
"""Where the clock of events may begin: no record is ahead of it."""

_USERS, _ITEMS = 60, 40
_AT_ONCE, _LATE = 5, 200  # requests that come meanwhile


def records(seed: int, first: int = 0, last: int = 14_000) -> Iterator[Record]:
    """The records about requests `first` … `last` - 1 in the order of arrival.

    Of the requests 3 % have no record in the inference log and 3 % a late one; of the impressions 5 % come twice, 5 %
    late, after what was done on them, and 30 % are clicked, a fifth of these long after; 5 % of the actions come twice,
    15 % are taken back, half of these before they come. There are broken records and impressions without a request
    among them.
    """
    rng, due, ticket = random.Random(seed), [], 0
    for number in range(first, last):
        for arrival, record in _about(number, rng):
            heapq.heappush(due, (arrival, ticket, record))
            ticket += 1
        while due and due[0][0] <= number:
            yield heapq.heappop(due)[-1]
    while due:
        yield heapq.heappop(due)[-1]


def ending(ts: int) -> list[Record]:
    """Records of every user that let event time come to `ts` wherever users are, and leave nothing else behind."""
    return [
        record
        for user in range(_USERS)
        for record in (
            _record({"event_id": f"end{user}", "event_type": "impression", "ts": ts, "user_id": user}),
            (
                INFERENCE,
                user,
                orjson.dumps(
                    {"request_id": f"end{user}", "user_id": user, "ts": ts, "model_version": "1", "features": {}}
                ),
            ),
        )
    ]


def _about(number: int, rng: random.Random) -> Iterator[tuple[float, Record]]:
    user, ts = rng.randrange(_USERS), START_MS + number * STEP_MS
    shown = rng.sample(range(_ITEMS), 3)
    logged = rng.random()
    if logged >= 0.03:
        asked = {"request_id": f"r{number}", "user_id": user, "ts": ts, "model_version": "1", "features": {"n": number}}
        items = [{"item_id": item, "position": place, "score": 0.5} for place, item in enumerate(shown)]
        arrival = number + (rng.randrange(_AT_ONCE, _LATE) if logged < 0.06 else rng.random())
        yield arrival, (INFERENCE, user, orjson.dumps(asked | {"items": items}))
    for place, item in enumerate(shown):
        at = {"user_id": user, "request_id": f"r{number}", "item_id": item, "page_id": number % 3, "position": place}
        yield from _of_item({**at, "ts": ts + rng.randrange(50)}, f"{number}-{item}", number, rng)
    if number % 100 == 7:
        yield number, (BEHAVIOR, user, b'{"event_id": ')
        yield number, _record({"event_id": f"u{number}", "event_type": "impression", "ts": ts, "user_id": user})


def _of_item(at: dict[str, Any], name: str, number: int, rng: random.Random) -> Iterator[tuple[float, Record]]:
    shown = number + (rng.randrange(_AT_ONCE, _LATE) if rng.random() < 0.05 else rng.random() * 3)
    for _ in range(1 + (rng.random() < 0.05)):
        yield shown, _record({**at, "event_id": f"i{name}", "event_type": "impression"})
        shown += rng.randrange(_LATE)
    for kind, share in (("click", 0.3), ("view", 0.2)):
        if rng.random() >= share:
            continue
        event = {**at, "event_id": f"{kind}{name}", "event_type": kind, "ts": at["ts"] + rng.randrange(3_000)}
        event |= {"dwell_ms": rng.randrange(20_000)} if kind == "view" else {}
        came = number + (rng.randrange(_AT_ONCE, _LATE) if rng.random() < 0.2 else rng.random() * 5)
        yield came, _record(event)
        if rng.random() < 0.05:
            yield came + rng.randrange(_LATE), _record(event)
        if rng.random() < 0.15:
            own = {
                "event_id": f"x{kind}{name}",
                "event_type": RETRACT,
                "ts": event["ts"] + 500,
                "user_id": at["user_id"],
            }
            said = came - rng.random() * 3 if rng.random() < 0.5 else came + rng.randrange(_LATE)
            yield max(number, said), _record(own | {"retracts": event})


def _record(event: dict[str, Any]) -> Record:
    return BEHAVIOR, event["user_id"], orjson.dumps(event)
