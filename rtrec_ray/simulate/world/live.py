"""Live shoppers: clients that ask for recommendations over HTTP, see them, and whose behaviour goes to the topics.

Visits come when they come, whether or not earlier requests were answered: a slow answer delays nobody else, so the
latencies are those that users would have had. Times of events are those of the system's clock as they happen.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

import numpy as np
import orjson
import polars as pl

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.events import BEHAVIOR, ITEM, PROFILE
from rtrec_ray.kafka.base import Producer
from rtrec_ray.simulate.client import NO_ANSWER, Client
from rtrec_ray.simulate.world.play import PLACES
from rtrec_ray.simulate.world.shopper import Event, impressions, on_the_way, reactions, respond
from rtrec_ray.simulate.world.visits import Visit, plan_visits
from rtrec_ray.simulate.world.world import World
from rtrec_ray.simulate.world.worth import Slate, asked_by
from rtrec_ray.simulate.world.yesterday import first_items, new_items

_TICK_S: Final = 0.01
_AHEAD_S: Final = 10.0  # wall time that is planned at once
_ASKING: Final = 500  # visitors who wait at once; who comes beyond that leaves without an answer
_REPORT_S: Final = 0.1
_REPORTED: Final = 500  # events in one report
_UNREPORTED: Final = 20_000  # events that wait to be reported over HTTP; the oldest are given up beyond that
_LAST_REPORTS_S: Final = 60.0  # for what is left to report when nobody comes any more
_POSTS: Final = 30  # attempts to report over HTTP, a second apart


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopperOptions:
    """`per_wall_s`: visits per second of wall time, in the mean. `over_http`: share of events that go through POST
    /v1/events rather than to Kafka. `unordered`: share of events that are reported later than those after them, by up
    to `unordered_ms` of event time. `timeout_s`: of a request, wall time.
    """

    per_wall_s: float = 40.0
    seed: int = 0
    over_http: float = 0.05
    unordered: float = 0.02
    unordered_ms: int = 4_000
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request and what came of it. `status`: 0 without an answer; what follows `ts_ms` is then empty.

    `at_s`: monotonic time of sending; ages in ms of event time. `slate`: what was shown, None for nothing.
    """

    at_s: float
    latency_ms: float
    status: int
    user_id: int
    ts_ms: int
    version: str = ""
    degraded: tuple[str, ...] = ()
    feature_age_ms: int | None = None
    model_age_ms: int | None = None
    slate: Slate | None = None
    clicks: int = 0


class Shoppers:
    """All shoppers in one event loop. `connect`: a producer; `tell` is called with each request that is over.

    `sent`: events by type that were acknowledged over HTTP or given to the producer; `unreported`: those given up.
    """

    def __init__(
        self,
        world: World,
        options: ShopperOptions,
        *,
        url: str,
        connect: Callable[[], Producer],
        clock: Clock,
        tell: Callable[[Answered], None] = lambda answered: None,
    ) -> None:
        self._world = world
        self._options = options
        self._url = url
        self._connect = connect
        self._clock = clock
        self._tell = tell
        self._random = np.random.default_rng([options.seed, world.options.seed, 5])
        self._stopped = threading.Event()
        self._waiting: list[tuple[int, int, Visit | Event]] = []
        self._turn = count()
        self._planned_ms = 0
        self._known = frozenset(world.goods.item_id.tolist())
        self._asking = 0
        self._left = False
        self._until_s = math.inf
        self._posting: deque[Event] = deque()
        self._appear = sorted(drift.at_ms for drift in world.options.drifts if drift.kind == "new_items")
        self.sent: dict[str, int] = {}
        self.unreported = 0

    def run(self, stop: threading.Event) -> None:
        """Come until `stop` is set; returns when the last answers are in and all events are acknowledged."""
        self._stopped = stop
        with closing(self._connect()) as producer:
            asyncio.run(self._come(producer))
            producer.flush()

    async def _come(self, producer: Producer) -> None:
        async with Client(self._url, timeout_s=self._options.timeout_s) as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report(client))
            self._planned_ms = self._clock.now_ms()
            # Who asked before the end still sees the answer, and what happened until then is still reported.
            while self._coming():
                if not self._stopped.is_set():
                    self._plan()
                    self._stock(producer)
                self._act(client, producer, tasks)
                await asyncio.sleep(_TICK_S)
            self._act(client, producer, tasks)
            self._left, self._until_s = True, monotonic_s() + _LAST_REPORTS_S

    def _coming(self) -> bool:
        return not self._stopped.is_set() or self._asking > 0

    def _plan(self) -> None:
        """Draw the visits of the next stretch of time before it begins."""
        speed = self._clock.speed
        if self._clock.now_ms() + 0.5 * _AHEAD_S * 1_000 * speed < self._planned_ms:
            return
        to_ms = self._planned_ms + round(_AHEAD_S * 1_000 * speed)
        rate = self._options.per_wall_s / speed
        visits = plan_visits(self._world, self._random, from_ms=self._planned_ms, to_ms=to_ms, per_s=rate)
        finds = self._world.truth.find(visits.asked, self._random).tolist()
        for visit, found in zip(visits, finds, strict=True):
            name = f"visit-{self._options.seed}-{visit.ts_ms}-{next(self._turn)}"
            for event in on_the_way(self._world, visit, name=name, found=found, random=self._random):
                self._put(event["ts"], event)
            self._put(visit.ts_ms, visit)
        self._planned_ms = to_ms

    def _stock(self, producer: Producer) -> None:
        """Put new items into the catalogue when their time has come."""
        if self._appear and self._clock.now_ms() >= self._appear[0]:
            send_items(new_items(self._world, ts_ms=self._appear.pop(0)), producer)

    def _act(self, client: Client, producer: Producer, tasks: asyncio.TaskGroup) -> None:
        now_ms = self._clock.now_ms()
        while self._waiting and self._waiting[0][0] <= now_ms:
            due = heapq.heappop(self._waiting)[2]
            if isinstance(due, Visit):
                self._welcome(due, client, tasks)
            elif self._random.random() < self._options.over_http:
                self._posting.append(due)
            else:
                _send(producer, due)
                self._count(due)

    def _welcome(self, visit: Visit, client: Client, tasks: asyncio.TaskGroup) -> None:
        if self._stopped.is_set():
            return
        if self._asking >= _ASKING:
            self._tell(self._over(visit, began_s=monotonic_s(), status=NO_ANSWER))
            return
        self._asking += 1
        tasks.create_task(self._visit(client, visit))

    async def _visit(self, client: Client, visit: Visit) -> None:
        began_s = monotonic_s()
        body = {"user_id": visit.user_id, "page_id": visit.page_id, "k": PLACES}
        reply = await client.post("/v1/recommend", body)
        over = self._over(visit, began_s=began_s, status=reply.status)
        seen = self._see(replace(visit, ts_ms=over.ts_ms), over, reply.body) if reply.status == 200 else over
        self._tell(seen)
        self._asking -= 1

    def _over(self, visit: Visit, *, began_s: float, status: int) -> Answered:
        return Answered(
            at_s=began_s,
            latency_ms=(monotonic_s() - began_s) * 1_000.0,
            status=status,
            user_id=visit.user_id,
            ts_ms=self._clock.now_ms(),
        )

    def _see(self, visit: Visit, over: Answered, answer: dict[str, Any]) -> Answered:
        """Show an answer to its visitor, who will click some of it."""
        freshness = answer["freshness"]
        over = replace(
            over,
            version=answer["model_version"],
            degraded=tuple(answer["degraded"]),
            feature_age_ms=freshness["feature_age_ms"],
            model_age_ms=freshness["model_age_ms"],
        )
        # A system that had another catalogue before recommends that too: nobody here has eyes for it.
        items = tuple(item["item_id"] for item in answer["items"] if item["item_id"] in self._known)
        if not items:
            return over
        slate = Slate(
            user_id=visit.user_id,
            page_id=visit.page_id,
            intent=visit.intent,
            ts_ms=visit.ts_ms,
            items=items,
        )
        shown = self._world.goods.index_of([slate.items])
        response = respond(self._world, asked_by(self._world, [slate]), shown, self._random)
        marks, indexes = {"request_id": answer["request_id"]}, shown[0].tolist()
        for event in impressions(self._world, visit, indexes, marks=marks):
            self._put(event["ts"], event)
        for event in reactions(self._world, visit, indexes, response, marks=marks):
            self._put(event["ts"], event)
        return replace(over, slate=slate, clicks=int(response.clicked.sum()))

    async def _report(self, client: Client) -> None:
        """Report over HTTP what is to be reported there, one report after the other."""
        while not self._left or (self._posting and monotonic_s() < self._until_s):
            while len(self._posting) > _UNREPORTED:
                self._posting.popleft()
                self.unreported += 1
            if self._posting:
                await self._post(client, [self._posting.popleft() for _ in range(min(_REPORTED, len(self._posting)))])
            await asyncio.sleep(_REPORT_S)
        self.unreported += len(self._posting)

    async def _post(self, client: Client, events: list[Event]) -> None:
        """The event ids stay, so a report that is repeated is no second event."""
        for _ in range(_POSTS):
            reply = await client.post("/v1/events", events)
            if reply.status == 202:
                for event in events:
                    self._count(event)
                return
            if reply.status not in (NO_ANSWER, 503) or monotonic_s() > self._until_s:
                break
            await asyncio.sleep(1.0)
        self.unreported += len(events)

    def _put(self, due_ms: int, what: Visit | Event) -> None:
        if not isinstance(what, Visit) and self._random.random() < self._options.unordered:
            due_ms += int(self._random.integers(0, self._options.unordered_ms))
        heapq.heappush(self._waiting, (due_ms, next(self._turn), what))

    def _count(self, event: Event) -> None:
        self.sent[event["event_type"]] = self.sent.get(event["event_type"], 0) + 1


def open_shop(world: World, producer: Producer, *, ts_ms: int) -> None:
    """Send the profiles and the catalogue, known from `ts_ms` on; returns when they are acknowledged."""
    frame = world.people.records(ts_ms=ts_ms)
    for row in frame.to_dicts():
        producer.send(PROFILE, key=b"%d" % row["user_id"], value=orjson.dumps(row))
    send_items(first_items(world, ts_ms=ts_ms), producer)
    producer.flush()


def send_items(items: pl.DataFrame, producer: Producer) -> None:
    """Send items of the catalogue (ITEM_SCHEMA)."""
    for row in items.to_dicts():
        producer.send(ITEM, key=b"%d" % row["item_id"], value=orjson.dumps(row))


def _send(producer: Producer, event: Event) -> None:
    producer.send(BEHAVIOR, key=b"%d" % event["user_id"], value=orjson.dumps(event))
