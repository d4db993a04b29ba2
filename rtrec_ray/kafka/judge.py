"""What one record must fulfil, and the name of what it does not.

The column codec asks here only about records it could not take at full speed; HTTP asks about each event of a body.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from rtrec_ray.events import BEHAVIOR, INFERENCE, RETRACT, SCHEMAS, STRUCTS, BehaviorEvent
from rtrec_ray.kafka.deadletter import Fault, Reason

YEAR_2000_MS: Final = 946_684_800_000
"""Older events are a clock that was never set. Profiles and items may be older: they say since when something holds."""

OLDEST_MS: Final = {BEHAVIOR: YEAR_2000_MS, INFERENCE: YEAR_2000_MS}

JSON_COLUMNS: Final = ("retracts", "features", "items", "as_of")
"""Fields that are objects or arrays in the record and JSON text in the column."""

DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    topic: msgspec.json.Decoder(struct) for topic, struct in STRUCTS.items()
}

_ENCODER: Final = msgspec.json.Encoder()
_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING: Final = re.compile(r"missing required field `(.+?)`")
# An escaped NUL, not a backslash that is itself escaped and stands before "u0000".
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def judge(topic: str, value: bytes | None, *, latest_ms: int) -> Fault | None:
    """What is wrong with a record of this topic; None if nothing is. `latest_ms`: the greatest `ts` it may have.

    >>> judge("behavior", b'{"event_id": "a", "event_type": "click", "ts": "now", "user_id": 1}', latest_ms=2**62)
    Fault(reason='wrong_type', field='ts')
    """
    if value is None:
        return Fault(reason="tombstone")
    if not value.strip():
        return Fault(reason="empty")
    try:
        record = DECODERS[topic].decode(value)
    except msgspec.ValidationError as error:
        return _fault_of(str(error))
    except RecursionError:
        return Fault(reason="too_deep")
    except UnicodeDecodeError:
        return Fault(reason="not_unicode")
    except msgspec.DecodeError as error:
        return Fault(reason="not_unicode" if "utf-16" in str(error) else "not_json")
    return _fault_of_content(topic, record, latest_ms)


def json_text(content: object) -> str:
    """The content of a JSON column as text. Raises OverflowError for a number beyond 64 bits."""
    return _ENCODER.encode(content).decode()


def _fault_of(message: str) -> Fault:
    """Translate msgspec's sentence.

    >>> _fault_of("Object missing required field `item_id` - at `$.items[0]`")
    Fault(reason='missing_field', field='items[0].item_id')
    >>> _fault_of("Expected `int` <= 9223372036854775807 - at `$.user_id`")
    Fault(reason='out_of_range', field='user_id')
    """
    path = _path_of(message)
    if missing := _MISSING.search(message):
        return Fault(reason="missing_field", field=".".join(filter(None, [path, missing[1]])))
    if "out of range" in message or "`int` <=" in message or "`int` >=" in message:
        return Fault(reason="out_of_range", field=path)
    if "enum value" in message:
        return Fault(reason="unknown_value", field=path)
    return Fault(reason="wrong_type" if path else "not_an_object", field=path)


def _path_of(message: str) -> str | None:
    found = _PATH.search(message)
    return found[1].replace("[...]", "").lstrip(".") or None if found else None


def _fault_of_content(topic: str, record: object, latest_ms: int) -> Fault | None:
    for name in SCHEMAS[topic]:
        reason = _reason_against(name, getattr(record, name))
        if reason is not None:
            return Fault(reason=reason, field=name)
    ts_ms: int = record.ts  # type: ignore[attr-defined]  # every struct of STRUCTS has it
    if ts_ms < OLDEST_MS.get(topic, ts_ms):
        return Fault(reason="before_2000", field="ts")
    if ts_ms > latest_ms:
        return Fault(reason="ahead_of_clock", field="ts")
    return _fault_of_retraction(record) if isinstance(record, BehaviorEvent) and record.event_type == RETRACT else None


def _fault_of_retraction(record: BehaviorEvent) -> Fault | None:
    """A retraction takes back one whole event of the same user, which is not a retraction, and no newer than itself."""
    if record.retracts is None:
        return Fault(reason="missing_field", field="retracts")
    try:
        original = msgspec.convert(record.retracts, BehaviorEvent)
    except msgspec.ValidationError as error:
        return _within("retracts", _fault_of(str(error)))
    if original.event_type == RETRACT:
        return Fault(reason="unknown_value", field="retracts.event_type")
    fault = _fault_of_content(BEHAVIOR, original, record.ts)
    if fault is not None:
        newer = fault.reason == "ahead_of_clock"
        return Fault(reason="before_original", field="ts") if newer else _within("retracts", fault)
    return None if original.user_id == record.user_id else Fault(reason="another_user", field="retracts.user_id")


def _within(name: str, fault: Fault) -> Fault:
    return Fault(reason=fault.reason, field=name if fault.field is None else f"{name}.{fault.field}")


def _reason_against(name: str, content: object) -> Reason | None:
    if isinstance(content, str):
        return "nul_character" if "\0" in content else None
    if name in JSON_COLUMNS and content is not None:
        try:
            return "nul_character" if _NUL.search(json_text(content)) else None
        except OverflowError:
            return "out_of_range"
    return None
