"""What /docs and /openapi.json say of the routes; the checking itself is done where the bytes are read."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import BaseModel

from rtrec_ray.events import BehaviorEvent
from rtrec_ray.notification import NewEvent
from serving.schema import (
    EventsAnswer,
    Faults,
    FeaturesAnswer,
    NotificationsAnswer,
    Problem,
    RecommendAnswer,
    RecommendRequest,
)

_REFUSALS: dict[int, type[BaseModel]] = {404: Problem, 413: Problem, 422: Faults, 503: Problem}


def recommend() -> dict[str, Any]:
    """POST /v1/recommend."""
    return _responses(200, RecommendAnswer, 413, 422) | _body(RecommendRequest.model_json_schema())


def events() -> dict[str, Any]:
    """POST /v1/events."""
    _, components = msgspec.json.schema_components([BehaviorEvent], ref_template="#/{name}")
    event = components["BehaviorEvent"]
    documented = _responses(202, EventsAnswer, 413, 503) | _body({"anyOf": [{"type": "array", "items": event}, event]})
    documented["responses"][422] = {"model": EventsAnswer}
    return documented


def features() -> dict[str, Any]:
    """GET /v1/features/{view}."""
    parameters = [
        {"name": "view", "in": "path", "required": True, "schema": {"type": "string"}},
        {
            "name": "key",
            "in": "query",
            "required": True,
            "explode": True,
            "schema": {"type": "array", "items": {"type": "string"}},
        },
        {"name": "as_of_ms", "in": "query", "schema": {"type": "integer"}},
    ]
    return _responses(200, FeaturesAnswer, 404, 422, 503) | {"openapi_extra": {"parameters": parameters}}


def list_notifications() -> dict[str, Any]:
    """GET /v1/notifications."""
    texts, numbers = ("key", "type", "namespace", "sender"), ("version", "after_version", "from_ms", "to_ms")
    asked = dict.fromkeys(texts, "string") | dict.fromkeys((*numbers, "after_offset", "limit", "wait_s"), "integer")
    parameters = [{"name": name, "in": "query", "schema": {"type": kind}} for name, kind in asked.items()]
    return _responses(200, NotificationsAnswer, 422, 503) | {"openapi_extra": {"parameters": parameters}}


def send_notifications() -> dict[str, Any]:
    """POST /v1/notifications."""
    event = msgspec.json.schema(NewEvent)["$defs"]["NewEvent"]
    return _responses(201, NotificationsAnswer, 413, 422, 503) | _body(
        {"anyOf": [{"type": "array", "items": event}, event]}
    )


def metadata(*names: str) -> dict[str, Any]:
    """GET /v1/meta/..."""
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    documented = {code: {"model": _REFUSALS[code]} for code in (404, 503)}
    return {"responses": documented, "openapi_extra": {"parameters": parameters}}


def _responses(status: int, gives: type[BaseModel], *refusals: int) -> dict[str, Any]:
    models = {status: gives} | {code: _REFUSALS[code] for code in refusals}
    return {"status_code": status, "responses": {code: {"model": model} for code, model in models.items()}}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}}
