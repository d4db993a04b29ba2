"""What a request may say and what an answer says, checked at the edge."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

INT64_MAX: Final = 2**63 - 1
MOST_CONTEXT: Final = 64
MOST_LIST: Final = 256
MOST_TEXT: Final = 1_000
_OWN_FIELDS: Final = {"user_id", "item_id", "page_id", "position", "request_id"}


def _check_text(text: str) -> str:
    # PostgreSQL takes no U+0000, neither in text nor in jsonb, so such a request could never become a sample.
    if "\x00" in text:
        raise ValueError("contains U+0000")
    if len(text) > MOST_TEXT:
        raise ValueError(f"is longer than {MOST_TEXT} characters")
    return text


def _check_scalar(value: object) -> None:
    match value:
        case bool():
            raise ValueError("is a truth value; write 0 or 1")
        case str():
            _check_text(value)
        case int():
            if not -INT64_MAX <= value <= INT64_MAX:
                raise ValueError("is beyond 64 bits")
        case float():
            if not math.isfinite(value):
                raise ValueError("is not a finite number")
        case _:
            raise ValueError("is not a number, a text or a list of these")


def _check_context(context: dict[str, Any]) -> dict[str, Any]:
    for name, value in context.items():
        _check_text(name)
        if not name or name in _OWN_FIELDS:
            raise ValueError(f"{name!r} is no name for a feature of a request")
        values = value if isinstance(value, list) else [value]
        if len(values) > MOST_LIST:
            raise ValueError(f"{name} has more than {MOST_LIST} elements")
        for each in values:
            try:
                _check_scalar(each)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
    return context


Id = Annotated[StrictInt, Field(ge=-INT64_MAX - 1, le=INT64_MAX)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=100), AfterValidator(_check_text)]
Context = Annotated[dict[str, Any], Field(max_length=MOST_CONTEXT), AfterValidator(_check_context)]


class RecommendRequest(BaseModel):
    """Who asks, on which page. `candidates`: rank these and no others. `context`: further raw features of the request.

    A name in `context` that is also a feature of ours replaces it, in the scoring and in the log.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    user_id: Id
    page_id: Id | None = None
    k: Annotated[StrictInt, Field(ge=1)] | None = None
    candidates: list[Id] | None = None
    context: Context = Field(default_factory=dict)
    arm: Name | None = None


class AnswerItem(BaseModel):
    """One recommended item; `position` counts from 1. Without a model `score` is 1, 1/2, ... in the popular order."""

    item_id: int
    score: float
    position: int


class Freshness(BaseModel):
    """How old what was used is, ms of the system's clock; null where it is not known."""

    feature_age_ms: int | None
    model_age_ms: int | None


class RecommendAnswer(BaseModel):
    """The slate, and what it was made with. `degraded` names what was missing; empty means that nothing was."""

    request_id: str
    model_version: str
    items: list[AnswerItem]
    freshness: Freshness
    degraded: list[str]


class FieldFault(BaseModel):
    """What is wrong with one field of a body."""

    field: str
    reason: str


class EventFault(FieldFault):
    """What is wrong with one event of a body; `index` counts from 0."""

    index: int


class Faults(BaseModel):
    """Why a body was refused."""

    detail: str
    errors: list[FieldFault] = []


class EventsAnswer(BaseModel):
    """How many events are on the log now, and which were refused."""

    accepted: int
    errors: list[EventFault] = []


class NotificationsAnswer(BaseModel):
    """Events, ascending. `position`: the `after_offset` of the next question; a sender gets none."""

    events: list[dict[str, Any]]
    position: int | None = None


class FeaturesAnswer(BaseModel):
    """A view's values by key; null where a key has no data."""

    view: str
    as_of_ms: int
    version: int
    values: dict[str, Any]


class Problem(BaseModel):
    """Why a request was not answered, and what to do."""

    detail: str
    mend: str = ""


def faults_of(error: ValidationError) -> list[FieldFault]:
    """Pydantic's findings in the words of this API; what was received is not repeated."""
    return [
        FieldFault(field=".".join(str(part) for part in found["loc"]) or "body", reason=found["msg"])
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    ]
