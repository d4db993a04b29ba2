"""Live shoppers: clients that ask for recommendations over HTTP, see them, and whose behaviour goes to the topics.

Visits come when they come, whether or not earlier requests were answered: a slow answer delays nobody else, so the
latencies are those that users would have had. Times of events are those of the system's clock as they happen.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

import httpx
import numpy as np
import orjson
import polars as pl

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.events import BEHAVIOR, ITEM, PROFILE
from rtrec_ray.kafka.base import Producer
from rtrec_ray.simulate.world.people import Indexes
from rtrec_ray.simulate.world.play import PLACES
from rtrec_ray.simulate.world.shopper import Event, impressions, on_the_way, reactions, respond
from rtrec_ray.simulate.world.truth import Asked, regret
from rtrec_ray.simulate.world.visits import Visit, plan_visits
from rtrec_ray.simulate.world.world import World
from rtrec_ray.simulate.world.yesterday import first_items, new_items

_TICK_S: Final = 0.01
_AHEAD_S: Final = 10.0  # wall time that is planned at once
_NO_ANSWER: Final = 0
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
    """One request and what came of it. `status`: 0 without an answer; what follows `status` is then empty.

    `at_s`: monotonic time of sending; ages in ms of event time. `probability`, `regret` and `random` from the true
    probabilities, means per impression.
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
    impressions: int = 0
    clicks: int = 0
    probability: float = 0.0
    regret: float = 0.0
    random: float = 0.0


class Shoppers:
    """A thread with all shoppers in it. `connect`: a producer; `tell` is called with each request that is over."""

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
        self._thread = threading.Thread(target=self._run, name="shoppers", daemon=True)
        self._broke: BaseException | None = None
        self._waiting: list[tuple[int, int, Visit | Event]] = []
        self._turn = count()
        self._planned_ms = 0
        self._asking = 0
        self._appear = sorted(drift.at_ms for drift in world.options.drifts if drift.kind == "new_items")
        self.sent: dict[str, int] = {}
        self.unreported = 0

    def start(self) -> None:
        """Begin to come."""
        self._thread.start()

    def stop(self) -> None:
        """Nobody comes any more; returns when the last answers are in and all events are acknowledged."""
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what ended the shoppers before their time."""
        if self._broke is not None:
            raise self._broke

    def run(self, stop: threading.Event) -> None:
        """Come until `stop` is set, in the caller's thread."""
        self._stopped = stop
        self._run()
        self.check()

    def _run(self) -> None:
        try:
            with closing(self._connect()) as producer:
                asyncio.run(self._come(producer))
                producer.flush()
        except BaseException as error:  # noqa: BLE001 - told to whoever asks next: a thread has nobody else to tell
            self._broke = error

    async def _come(self, producer: Producer) -> None:
        # Servers close idle connections after some 5 s: one taken up again at that moment would fail through our fault.
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=2.0)
        timeout = self._options.timeout_s
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=timeout, limits=limits) as client,
            asyncio.TaskGroup() as tasks,
        ):
            self._planned_ms = self._clock.now_ms()
            # Who asked before the end still sees the answer, and what was seen is still reported.
            while not self._stopped.is_set() or self._asking:
                if not self._stopped.is_set():
                    self._plan()
                    self._stock(producer)
                await self._act(client, producer, tasks)
                await asyncio.sleep(_TICK_S)
            await self._act(client, producer, tasks)

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

    async def _act(self, client: httpx.AsyncClient, producer: Producer, tasks: asyncio.TaskGroup) -> None:
        now_ms = self._clock.now_ms()
        posted: list[Event] = []
        while self._waiting and self._waiting[0][0] <= now_ms:
            due = heapq.heappop(self._waiting)[2]
            if isinstance(due, Visit):
                if not self._stopped.is_set():
                    self._asking += 1
                    tasks.create_task(self._visit(client, due))
            elif self._random.random() < self._options.over_http:
                posted.append(due)
            else:
                _send(producer, due)
                self._count(due)
        if posted:
            tasks.create_task(self._post(client, posted))

    async def _visit(self, client: httpx.AsyncClient, visit: Visit) -> None:
        body = {"user_id": visit.user_id, "page_id": visit.page_id, "k": PLACES}
        sent_s = monotonic_s()
        try:
            response = await client.post("/v1/recommend", content=orjson.dumps(body))
            answer = orjson.loads(response.content) if response.status_code == 200 else None
        except (httpx.HTTPError, orjson.JSONDecodeError):
            response, answer = None, None
        status = _NO_ANSWER if response is None else response.status_code
        over = Answered(
            at_s=sent_s,
            latency_ms=(monotonic_s() - sent_s) * 1_000.0,
            status=status,
            user_id=visit.user_id,
            ts_ms=self._clock.now_ms(),
        )
        self._tell(over if answer is None else self._see(replace(visit, ts_ms=over.ts_ms), over, answer))
        self._asking -= 1

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
        if not answer["items"]:
            return over
        shown = self._world.goods.index_of([[item["item_id"] for item in answer["items"]]])
        asked = _asked(visit, self._world)
        response = respond(self._world, asked, shown, self._random)
        marks, slate = {"request_id": answer["request_id"]}, shown[0].tolist()
        for event in impressions(self._world, visit, slate, marks=marks):
            self._put(event["ts"], event)
        for event in reactions(self._world, visit, slate, response, marks=marks):
            self._put(event["ts"], event)
        truth = self._world.truth
        return replace(
            over,
            impressions=len(slate),
            clicks=int(response.clicked.sum()),
            probability=float(response.probability.mean()),
            regret=float(regret(truth, asked, shown)[0]),
            random=float(truth.random(asked, places=len(slate))[0]),
        )

    async def _post(self, client: httpx.AsyncClient, events: Sequence[Event]) -> None:
        """Report over HTTP; the event ids stay, so a report that is repeated is no second event."""
        for _ in range(_POSTS):
            try:
                response = await client.post("/v1/events", content=orjson.dumps(events))
            except httpx.HTTPError:
                response = None
            if response is not None and response.status_code != 503:
                for event in events:
                    self._count(event)
                return
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


def _asked(visit: Visit, world: World) -> Asked:
    page = world.options.pages.index(visit.page_id)
    columns: list[Indexes] = [np.array([value]) for value in (visit.user_id - 1, page, visit.intent, visit.ts_ms)]
    return Asked(user=columns[0], page=columns[1], intent=columns[2], ts_ms=columns[3])
