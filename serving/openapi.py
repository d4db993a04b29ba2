"""What /docs and /openapi.json say of the routes; the checking itself is done where the bytes are read."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import BaseModel

from rtrec_ray.events import BehaviorEvent
from serving.schema import EventsAnswer, Faults, FeaturesAnswer, Problem, RecommendAnswer, RecommendRequest

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


def _responses(status: int, gives: type[BaseModel], *refusals: int) -> dict[str, Any]:
    models = {status: gives} | {code: _REFUSALS[code] for code in refusals}
    return {"status_code": status, "responses": {code: {"model": model} for code, model in models.items()}}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}}
