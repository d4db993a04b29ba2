"""The live client: asks for recommendations, shows them, clicks some, and writes down how it was served.

Requests come at random moments at a fixed mean rate, whether or not the ones before were answered: a slow answer delays
no other request, so the latencies are those that users would have had.
"""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass
from typing import Any, Final

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.demo.replay.audience import ARM, Audience, Shown, Visitor, clicks, impressions
from rtrec_ray.demo.replay.record import Call, LiveFacts
from rtrec_ray.simulate.client import Client

_STEP_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficOptions:
    """`requests_per_s`: mean, wall time. `items`: asked for per request. `timeout_s`: of a call, wall time."""

    requests_per_s: float = 4.0
    items: int = 3
    timeout_s: float = 10.0
    seed: int = 0


class Traffic:
    """A thread with the client in it. `began_s`: the monotonic time from which moments are counted."""

    def __init__(self, options: TrafficOptions, *, url: str, clock: Clock, audience: Audience, began_s: float) -> None:
        self._options = options
        self._url = url
        self._clock = clock
        self._audience = audience
        self._began_s = began_s
        self._random = random.Random(options.seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-traffic", daemon=True)
        self._calls: list[Call] = []
        self._taken: list[dict[str, Any]] = []
        self._unknown = 0
        self._broke: BaseException | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; returns when the last answers are in."""
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what ended the client before its time."""
        if self._broke is not None:
            raise self._broke

    def calls(self) -> list[Call]:
        """The requests so far, in the order of their answers."""
        return list(self._calls)

    def events(self) -> list[dict[str, Any]]:
        """The events so far whose taking was acknowledged."""
        return list(self._taken)

    def facts(self) -> LiveFacts:
        """What was done so far."""
        calls, taken = self.calls(), self.events()
        return LiveFacts(
            requests=len(calls),
            failed=sum(call.status != 200 for call in calls),
            impressions=sum(event["event_type"] == "impression" for event in taken),
            clicks=sum(event["event_type"] == "click" for event in taken),
            accepted=len(taken),
            unknown=self._unknown,
        )

    def _run(self) -> None:
        try:
            asyncio.run(self._serve_audience())
        except BaseException as error:  # noqa: BLE001 - told to whoever asks next: a thread has nobody else to tell
            self._broke = error

    async def _serve_audience(self) -> None:
        async with Client(self._url, timeout_s=self._options.timeout_s) as client, asyncio.TaskGroup() as visits:
            next_s = monotonic_s()
            while not self._stopped.is_set():
                if (wait_s := next_s - monotonic_s()) > 0:
                    await asyncio.sleep(min(wait_s, _STEP_S))
                    continue
                next_s += self._random.expovariate(self._options.requests_per_s)
                visits.create_task(self._visit(client, self._audience.visitor(self._random)))

    async def _visit(self, client: Client, visitor: Visitor) -> None:
        shown = await self._recommend(client, visitor)
        if shown is None or not shown.items:
            return
        if await self._send(client, impressions(shown, self._audience)):
            await self._send(client, clicks(shown, self._audience, self._random))

    async def _recommend(self, client: Client, visitor: Visitor) -> Shown | None:
        body = {
            "user_id": visitor.user_id,
            "page_id": visitor.page_id,
            "k": self._options.items,
            "context": visitor.context,
            "arm": ARM,
        }
        sent_s = monotonic_s()
        reply = await client.post("/v1/recommend", body)
        took_ms = (monotonic_s() - sent_s) * 1_000.0
        answer = reply.body if reply.status == 200 else None
        self._calls.append(_call(answer, status=reply.status, at_s=sent_s - self._began_s, latency_ms=took_ms))
        if answer is None:
            return None
        items = [item["item_id"] for item in answer["items"]]
        return Shown(request_id=answer["request_id"], visitor=visitor, items=items, ts_ms=self._clock.now_ms())

    async def _send(self, client: Client, events: list[dict[str, Any]]) -> bool:
        """Report events; whether Kafka has all of them."""
        if not events:
            return True
        taken = (await client.post("/v1/events", events)).status == 202
        if taken:
            self._taken.extend(events)
        else:
            self._unknown += len(events)
        return taken


def _call(answer: dict[str, Any] | None, *, status: int, at_s: float, latency_ms: float) -> Call:
    if answer is None:
        return Call(at_s=at_s, latency_ms=latency_ms, status=status)
    freshness = answer["freshness"]
    return Call(
        at_s=at_s,
        latency_ms=latency_ms,
        status=status,
        version=answer["model_version"],
        degraded=tuple(answer["degraded"]),
        feature_age_ms=freshness["feature_age_ms"],
        model_age_ms=freshness["model_age_ms"],
    )
