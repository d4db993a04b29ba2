"""The records on the topics: their names, their fields as rows and as columns.

Rows (msgspec structs) are what one record is checked against at the edge; columns (Polars schemas) are what everything
behind the codec works on. Unknown fields of a record are kept in the history and otherwise ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
import polars as pl

BEHAVIOR: Final = "behavior"
INFERENCE: Final = "inference-log"
PROFILE: Final = "profile"
ITEM: Final = "item"
DEAD_LETTER: Final = "dead-letter"

RETRACT: Final = "retract"
EventType = Literal["impression", "click", "view", "favorite", "cart", "consult", "comment", "search", "retract"]
ItemType = Literal["product", "article", "video", "ad"]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""A number that a column can hold: JSON knows larger ones."""
Duration = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A time that something took, ms: a clock that was set back meanwhile may make it negative, which a sum would hide."""


class BehaviorEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Something a user saw or did. `ts` and `dwell_ms` in ms, `ts` UTC."""

    event_id: str
    event_type: EventType
    ts: Int64
    user_id: Int64
    item_id: Int64 | None = None
    item_type: ItemType | None = None
    category_id: Int64 | None = None
    page_id: Int64 | None = None
    request_id: str | None = None
    position: Int64 | None = None
    dwell_ms: Duration | None = None
    query: str | None = None
    arm: str | None = None
    retracts: dict[str, Any] | None = None


class RankedItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One shown item of an answer, with its own features. `propensity`: probability in (0, 1] of being shown there."""

    item_id: Int64
    position: Int64
    score: float
    propensity: float | None = None
    features: dict[str, Any] | None = None


class InferenceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What serving knew when it answered a request.

    `as_of`: view → partition → committed offset behind the values, and likewise for the versions of `profile` and
    `item`; `as_of_ms`: view → end of their window, profile → time at which it held, ms UTC; `as_of_version`: view → its
    version.
    """

    request_id: str
    user_id: Int64
    ts: Int64
    model_version: str
    features: dict[str, Any]
    page_id: Int64 | None = None
    arm: str | None = None
    items: list[RankedItem] | None = None
    as_of: dict[str, dict[str, int]] | None = None
    as_of_ms: dict[str, int] | None = None
    as_of_version: dict[str, int] | None = None


class ProfileVersion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A user's profile from `ts` (ms UTC) on."""

    user_id: Int64
    ts: Int64
    country: str | None = None
    gender: str | None = None
    city: str | None = None
    age_band: str | None = None


class CatalogItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An item of the catalogue from `ts` (ms UTC) on."""

    item_id: Int64
    ts: Int64
    item_type: ItemType | None = None
    category_id: Int64 | None = None
    title: str | None = None


BEHAVIOR_SCHEMA: Final = pl.Schema(
    {
        "event_id": pl.String,
        "event_type": pl.String,
        "ts": pl.Int64,
        "user_id": pl.Int64,
        "item_id": pl.Int64,
        "item_type": pl.String,
        "category_id": pl.Int64,
        "page_id": pl.Int64,
        "request_id": pl.String,
        "position": pl.Int64,
        "dwell_ms": pl.Int64,
        "query": pl.String,
        "arm": pl.String,
        "retracts": pl.String,  # the original event as JSON text
    }
)

INFERENCE_SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "user_id": pl.Int64,
        "ts": pl.Int64,
        "page_id": pl.Int64,
        "model_version": pl.String,
        "arm": pl.String,
        "features": pl.String,  # JSON object as text: its names are the model's business, not the pipeline's
        "items": pl.String,  # JSON array of ranked items as text
        "as_of": pl.String,  # JSON object as text
    }
)

PROFILE_SCHEMA: Final = pl.Schema(
    {
        "user_id": pl.Int64,
        "ts": pl.Int64,
        "country": pl.String,
        "gender": pl.String,
        "city": pl.String,
        "age_band": pl.String,
    }
)

ITEM_SCHEMA: Final = pl.Schema(
    {
        "item_id": pl.Int64,
        "ts": pl.Int64,
        "item_type": pl.String,
        "category_id": pl.Int64,
        "title": pl.String,
    }
)

SCHEMAS: Final = {BEHAVIOR: BEHAVIOR_SCHEMA, INFERENCE: INFERENCE_SCHEMA, PROFILE: PROFILE_SCHEMA, ITEM: ITEM_SCHEMA}
STRUCTS: Final = {BEHAVIOR: BehaviorEvent, INFERENCE: InferenceRecord, PROFILE: ProfileVersion, ITEM: CatalogItem}
