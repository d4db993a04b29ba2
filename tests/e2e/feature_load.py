"""A stream of shoppers as badly behaved as they come, the same for the same seed, sent to Kafka at a pace."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Final

import orjson

from rtrec_ray.events import BEHAVIOR, ITEM, PROFILE, RETRACT
from rtrec_ray.kafka.base import KafkaOptions, Producer
from rtrec_ray.kafka.connect import connect_producer

START_MS: Final = 1_767_225_600_000
"""Event time of the first event: 2026-01-01 UTC, a multiple of every tile."""

STEP_MS: Final = 30
"""Event time between two events. Fewer than 20,000 of them leave no tile beyond its retention."""

LATER_MS: Final = START_MS + 11 * 60_000
"""No event is as new. A profile that is cannot hold for any, so it does not matter which of the two is read first."""

CLOCK_MS: Final = START_MS + 12 * 60_000
"""Where the clock of events may begin: no record is ahead of it, and the windows of lists still cover the stream."""

_USERS, _ITEMS = 60, 40
_BEYOND_MS = 45 * 60_000  # behind the watermark by more than the horizon of 40 min
_KINDS = ("impression", "view", "click", "search", "favorite", "cart", "consult", "comment")
_SHARES = (25, 35, 22, 10, 2, 2, 2, 2)

Record = tuple[str, int, bytes]
"""Topic, the id that is its key, value."""


def profiles() -> list[Record]:
    """Two versions of two users in three. To be there before the first event."""
    return [
        (PROFILE, user, orjson.dumps({"user_id": user, "ts": ts, **_person(user + version)}))
        for version, ts in enumerate((START_MS - 3_600_000, START_MS + 60_000))
        for user in range(_USERS)
        if user % 3
    ]


def records(seed: int, first: int = 0, last: int = 20_000) -> Iterator[Record]:
    """The records about events `first` … `last` - 1 in the order of arrival.

    Of the events 4 % are late, 0.5 % too late, 5 % come twice, 5 % are taken back, half of these before they come; and
    there are broken records, versions of items and of profiles among them.
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


def _about(number: int, rng: random.Random) -> Iterator[tuple[int, Record]]:
    """What is sent because of one event: (the number of the event that it arrives after, record)."""
    late, too_late, again, retracted, early = (rng.random() for _ in range(5))
    event = _event(number, rng, ago_ms=_BEYOND_MS if too_late < 0.005 else 0)
    arrival = number + (rng.randrange(400, 3_000) if late < 0.04 else rng.randrange(60))
    yield arrival, _behavior(event)
    if again < 0.05:
        yield arrival + rng.randrange(1_500), _behavior(event)
    if retracted < 0.05:
        said = max(number, arrival - rng.randrange(50)) if early < 0.5 else arrival + rng.randrange(1_500)
        yield said, _behavior(_retraction(event, ts=START_MS + number * STEP_MS + rng.randrange(500)))
    yield from _beside(number, rng)


def _beside(number: int, rng: random.Random) -> Iterator[tuple[int, Record]]:
    if number % 200 == 7:
        yield number, (BEHAVIOR, rng.randrange(_USERS), b'{"event_id": ')
    if number % 50 == 0:
        item = rng.randrange(_ITEMS)
        content = {"item_id": item, "ts": START_MS + number, "title": f"thing {number}", "category_id": item % 5}
        yield number, (ITEM, item, orjson.dumps(content))
    if number % 40 == 0:
        user = rng.randrange(_USERS)
        yield number, (PROFILE, user, orjson.dumps({"user_id": user, "ts": LATER_MS + number, **_person(number)}))


def _behavior(event: dict[str, Any]) -> Record:
    return BEHAVIOR, event["user_id"], orjson.dumps(event)


def _event(number: int, rng: random.Random, *, ago_ms: int) -> dict[str, Any]:
    (kind,) = rng.choices(_KINDS, _SHARES)
    item = rng.randrange(_ITEMS)
    event = {
        "event_id": f"e{number}",
        "event_type": kind,
        "ts": START_MS + number * STEP_MS - ago_ms,
        "user_id": rng.randrange(_USERS),
        "item_id": item,
        "item_type": ("product", "article", "video", "ad")[item % 4],
        "category_id": item % 5,
        "page_id": rng.randrange(3),
    }
    return event | {"view": {"dwell_ms": rng.randrange(9_000)}, "search": {"query": f"w{item}"}}.get(kind, {})


def _retraction(event: dict[str, Any], *, ts: int) -> dict[str, Any]:
    own = {"event_id": f"{event['event_id']}-r", "event_type": RETRACT, "ts": ts, "user_id": event["user_id"]}
    return own | {"retracts": event}


def _person(number: int) -> dict[str, str]:
    return {"country": ("CN", "NO")[number % 2], "gender": ("f", "m")[number // 2 % 2], "city": f"c{number % 3}"}


class Load:
    """Sends a stream in a thread, `rate` records a second."""

    _CHUNKS_PER_S = 20

    def __init__(self, kafka: KafkaOptions, stream: Iterator[Record], *, rate: int = 600) -> None:
        self._kafka, self._stream, self._chunk = kafka, stream, rate // self._CHUNKS_PER_S
        self._enough = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self._thread.start()

    def finish(self) -> None:
        """Send no more, and return when everything is in the log. Raises what went wrong."""
        self._enough.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def running(self) -> bool:
        """Whether it still sends."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            with closing(connect_producer(self._kafka)) as producer:
                self._send(producer)
                producer.flush(timeout_s=60)
        except Exception as error:  # noqa: BLE001 - told by finish, in the thread of the test
            self._error = error

    def _send(self, producer: Producer) -> None:
        pause = 1 / self._CHUNKS_PER_S
        while chunk := list(islice(self._stream, self._chunk)):
            send(producer, chunk)
            self.sent += len(chunk)
            if self._enough.wait(pause):
                return


def send(producer: Producer, batch: list[Record]) -> None:
    """Queue records under their keys."""
    for topic, key, value in batch:
        producer.send(topic, key=b"%d" % key, value=value)
