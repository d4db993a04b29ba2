"""The routes, thin: bytes in, one call, bytes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from rtrec_ray.clock import LAST_MS, Clock, monotonic_s
from rtrec_ray.errors import (
    BeyondRetention,
    HistoryBehind,
    MetadataUnknown,
    RecordInvalid,
    RtrecError,
    ServerUnavailable,
    UnknownView,
)
from rtrec_ray.features.json_text import json_bytes
from rtrec_ray.metadata.catalogue import Catalogue
from rtrec_ray.notification import NotificationStore, Step
from rtrec_ray.stores.features.store import FeatureReader
from rtrec_ray.stores.features.views import read_view
from serving import openapi
from serving.auth import RequireToken
from serving.calls import BoundedCalls, CallTimedOut
from serving.collect import EventIntake, Judged
from serving.feedback import InferenceLog
from serving.lists import ListsReader
from serving.metrics import ServingMetrics
from serving.notifications import Ask, AskInvalid, Growth, parse_ask, parse_events, plain, read_log
from serving.options import ModelRole, ServingOptions
from serving.recommend import Recommender
from serving.reload import ModelHolder
from serving.schema import (
    EventsAnswer,
    Faults,
    FieldFault,
    Problem,
    RecommendRequest,
    faults_of,
)
from serving.stages import PipelineState

JSON: Final = "application/json"
# How much of a body that is too large is still read, so that its sender gets the answer and not a broken connection.
_DRAINED: Final = 4
_DIGITS: Final = len(str(LAST_MS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything the routes call."""

    options: ServingOptions
    clock: Clock
    recommender: Recommender
    intake: EventIntake
    store: FeatureReader
    inference_log: InferenceLog
    holders: Mapping[ModelRole, ModelHolder]
    lists: ListsReader
    metrics: ServingMetrics
    pipeline: Callable[[int], PipelineState]
    read_calls: BoundedCalls
    event_calls: BoundedCalls
    log_calls: BoundedCalls
    notifications: NotificationStore
    growth: Growth
    catalogue: Catalogue
    token: str | None = None


Answer = Callable[[Service, Request], Awaitable[Response]]


class BodyTooLarge(Exception):
    """A body is over the limit; the message says which."""


def create_app(service: Service) -> FastAPI:
    """The application. It starts and stops nothing."""
    app = FastAPI(title="rtrec-ray", description="Real-time recommendations.", version="1")
    if service.token:
        app.add_middleware(RequireToken, token=service.token)
    _add(app, service, "POST", "/v1/recommend", recommend, **openapi.recommend())
    _add(app, service, "POST", "/v1/events", post_events, **openapi.events())
    _add(app, service, "GET", "/v1/features/{view}", get_features, **openapi.features())
    _add(app, service, "GET", "/v1/notifications", list_notifications, **openapi.list_notifications())
    _add(app, service, "POST", "/v1/notifications", send_notifications, **openapi.send_notifications())
    _add(app, service, "GET", "/v1/meta/{kind}", list_metadata, **openapi.metadata("kind"))
    _add(app, service, "GET", "/v1/meta/{kind}/{name:path}", show_metadata, **openapi.metadata("kind", "name"))
    _add(app, service, "GET", "/healthz", healthz)
    _add(app, service, "GET", "/readyz", readyz)
    _add(app, service, "GET", "/metrics", metrics)
    return app


async def recommend(service: Service, request: Request) -> Response:
    """Recommend items to a user on a page."""
    body = await read_body(request, limit=service.options.request_limit_bytes)
    try:
        ask = RecommendRequest.model_validate_json(body)
    except ValidationError as error:
        return _refused(faults_of(error))
    if faults := beyond(ask, service.options):
        return _refused(faults)
    answer, record = await service.recommender.answer(ask)
    service.inference_log.offer(record)
    return Response(answer.model_dump_json(), media_type=JSON)


async def post_events(service: Service, request: Request) -> Response:
    """Write behaviour events to the log; answered when all replicas have them."""
    body = await read_body(request, limit=service.options.events_limit_bytes)
    try:
        judged: Judged = await service.event_calls.run(partial(service.intake.take, body))
    except RecordInvalid as error:
        return _refused([FieldFault(field="body", reason=error.message)])
    except (ServerUnavailable, CallTimedOut) as error:
        return _away(error)
    service.metrics.events.labels("accepted").inc(len(judged.values))
    service.metrics.events.labels("refused").inc(len(judged.faults))
    answer = EventsAnswer(accepted=len(judged.values), errors=judged.faults)
    return Response(answer.model_dump_json(), 422 if judged.faults else 202, media_type=JSON)


async def get_features(service: Service, request: Request) -> Response:
    """Values of a feature view, now or as of a time. Give `key` once or more, and `as_of_ms` in ms UTC."""
    view, keys = request.path_params["view"], request.query_params.getlist("key")
    as_of_text = request.query_params.get("as_of_ms")
    if faults := _faults_of_read(keys, as_of_text, most=service.options.most_keys):
        return _refused(faults)
    as_of_ms = None if as_of_text is None else int(as_of_text)
    read = partial(read_view, service.store, view, keys, as_of_ms=as_of_ms, now_ms=service.clock.now_ms())
    try:
        answer = await service.read_calls.run(read)
    except UnknownView as error:
        return _json(404, Problem(detail=error.message, mend=error.mend))
    except BeyondRetention as error:
        return _refused([FieldFault(field="as_of_ms", reason=error.message)])
    except (HistoryBehind, ServerUnavailable, CallTimedOut) as error:
        return _away(error)
    return Response(json_bytes(answer), media_type=JSON)


async def list_notifications(service: Service, request: Request) -> Response:
    """Events of the log: the newest, or those after `after_offset`, waiting up to `wait_s` for the first."""
    try:
        ask = parse_ask(request.query_params)
        step = await _read_log(service, ask)
    except AskInvalid as error:
        return _refused([error.fault])
    except (ServerUnavailable, CallTimedOut) as error:
        return _away(error)
    return Response(orjson.dumps(plain(step)), media_type=JSON)


async def _read_log(service: Service, ask: Ask) -> Step:
    """What is there, looked at again each time the log grows until something wanted is or the time is over."""
    until_s = monotonic_s() + ask.wait_s
    while True:
        # Taken before the look: what comes during it is not missed.
        grown = service.growth.begin() if ask.wait_s else None
        try:
            step = await service.log_calls.run(partial(read_log, service.notifications, ask))
            left_s = until_s - monotonic_s()
            if grown is None or step.events or left_s <= 0.0:
                return step
            await service.growth.wait(grown, left_s)
        finally:
            if grown is not None:
                service.growth.forget(grown)
        ask = replace(ask, after_offset=step.position)


async def send_notifications(service: Service, request: Request) -> Response:
    """Append events to the log, in one transaction; answers them with their offsets and versions."""
    body = await read_body(request, limit=service.options.request_limit_bytes)
    try:
        events = parse_events(body)
        sent = await service.log_calls.run(partial(service.notifications.send_many, events))
    except RecordInvalid as error:
        return _refused([FieldFault(field="body", reason=error.message)])
    except (ServerUnavailable, CallTimedOut) as error:
        return _away(error)
    return Response(orjson.dumps({"events": sent}), 201, media_type=JSON)


async def list_metadata(service: Service, request: Request) -> Response:
    """Every entry of a kind: datasets, projects, workflows, snapshots, jobs, runs, models, kinds, or your own."""
    return await _metadata(service, partial(service.catalogue.list, request.path_params["kind"]))


async def show_metadata(service: Service, request: Request) -> Response:
    """One entry of a kind."""
    kind, name = request.path_params["kind"], request.path_params["name"]
    return await _metadata(service, partial(service.catalogue.show, kind, name))


async def _metadata(service: Service, ask: Callable[[], Any]) -> Response:
    try:
        found = await service.read_calls.run(ask)
    except MetadataUnknown as error:
        return _json(404, Problem(detail=error.message, mend=error.mend))
    except (ServerUnavailable, CallTimedOut) as error:
        return _away(error)
    return Response(orjson.dumps(found), media_type=JSON)


async def healthz(service: Service, request: Request) -> Response:
    """Whether the process lives."""
    return Response(b'{"status":"ok"}', media_type=JSON)


async def readyz(service: Service, request: Request) -> Response:
    """Whether answers are whole: 503 names what is missing. Requests are answered, degraded, in any case."""
    missing = not_ready(service)
    state = {"ready": not missing, "missing": missing, "model_version": service.holders["champion"].version()}
    return Response(orjson.dumps(state), 503 if missing else 200, media_type=JSON)


async def metrics(service: Service, request: Request) -> Response:
    """Counters of this replica and, while the store is there, the pipeline's state, in Prometheus' text format."""
    read = partial(service.pipeline, service.clock.now_ms())
    try:
        pipeline = (await service.read_calls.run(read)).text()
    except (ServerUnavailable, CallTimedOut):
        pipeline = b""
    return Response(service.metrics.text() + pipeline, media_type=CONTENT_TYPE_LATEST)


def not_ready(service: Service) -> list[str]:
    """What an answer of this moment would lack."""
    age_s = service.lists.age_s()
    reasons = {
        "lists_not_read": age_s is None,
        # Readings slow down tenfold at worst (lists.py); a minute without one means that the store is away.
        "store_unavailable": age_s is not None and age_s > 60.0 * service.options.lists_refresh_s + 2.0,
        "store_hangs": service.recommender.store_calls.stuck() > 0,
        "no_model": any(holder.current() is None for holder in service.holders.values()),
        "inference_log_waits": service.inference_log.waiting() > service.options.log_queue // 10,
    }
    return [reason for reason, holds in reasons.items() if holds]


def beyond(ask: RecommendRequest, options: ServingOptions) -> list[FieldFault]:
    """Which fields of a well-formed request ask for too much."""
    faults = []
    if ask.k is not None and ask.k > options.most_items:
        faults.append(FieldFault(field="k", reason=f"is greater than {options.most_items}"))
    if ask.candidates is not None and len(ask.candidates) > options.most_candidates:
        faults.append(FieldFault(field="candidates", reason=f"has more than {options.most_candidates} items"))
    return faults


async def read_body(request: Request, *, limit: int) -> bytes:
    """The body, of at most `limit` bytes, counted as it comes. Raises BodyTooLarge."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > _DRAINED * limit:
            break
    if size > limit:
        raise BodyTooLarge(f"the body is over the limit of {limit} bytes")
    return b"".join(chunks)


def _add(app: FastAPI, service: Service, method: str, path: str, answer: Answer, **documented: Any) -> None:
    # The answer's model is documentation: FastAPI would validate each answer against it once more.
    app.add_api_route(
        path,
        _counted(service, path, answer),
        methods=[method],
        name=answer.__name__,
        description=answer.__doc__,
        response_class=Response,
        **documented,
    )


def _counted(service: Service, route: str, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """The route with its latency and status counted, and a body over the limit answered."""
    latency = service.metrics.latency.labels(route)

    async def handle(request: Request) -> Response:
        began_s = monotonic_s()
        try:
            response = await answer(service, request)
        except BodyTooLarge as error:
            response = _json(413, Problem(detail=str(error)))
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody is there to read it; the count is for us
        latency.observe(monotonic_s() - began_s)
        service.metrics.requests.labels(route, response.status_code).inc()
        return response

    return handle


def _faults_of_read(keys: list[str], as_of_ms: str | None, *, most: int) -> list[FieldFault]:
    faults = []
    if not 1 <= len(keys) <= most:
        faults.append(FieldFault(field="key", reason=f"is given {len(keys)} times, not 1 to {most}"))
    if any("\0" in key or len(key) > 1_000 for key in keys):
        faults.append(FieldFault(field="key", reason="contains U+0000 or is longer than 1000 characters"))
    if as_of_ms is not None and not _is_time(as_of_ms):
        faults.append(FieldFault(field="as_of_ms", reason="is not a time in ms since 1970, up to the year 9999"))
    return faults


def _is_time(text: str) -> bool:
    # Python reads any digits that Unicode has, and takes its time over thousands of them.
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) <= LAST_MS


def _json(status: int, body: BaseModel, **headers: str) -> Response:
    return Response(body.model_dump_json(), status, headers or None, JSON)


def _refused(faults: list[FieldFault]) -> Response:
    return _json(422, Faults(detail="the request breaks its contract", errors=faults))


def _away(error: Exception) -> Response:
    mend = error.mend if isinstance(error, RtrecError) else ""
    body: Any = Problem(detail=str(error), mend=mend or "try again in a second")
    return _json(503, body, **{"Retry-After": "1"})
