"""Behaviour events that come by HTTP: each is judged by the rules of the log, and good ones go there as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from rtrec_ray.clock import Clock
from rtrec_ray.errors import RecordInvalid
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.base import MAX_RECORD_BYTES, Producer
from rtrec_ray.kafka.judge import judge
from serving.schema import EventFault


class _Keyed(msgspec.Struct):
    user_id: int


_KEYS = msgspec.json.Decoder(_Keyed)
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The good events of a body as records of the log, and what is wrong with the others."""

    keys: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    faults: list[EventFault] = field(default_factory=list)


def split(body: bytes) -> list[bytes]:
    """The events of a JSON array, or the one that is the whole body, as bytes. Raises RecordInvalid.

    >>> split(b'[{"a": 1}, 2]'), split(b' {"a": 1}')
    ([b'{"a": 1}', b'2'], [b' {"a": 1}'])
    """
    if not body.lstrip().startswith(b"["):
        return [body]
    try:
        return [bytes(raw) for raw in _ARRAY.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordInvalid(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise RecordInvalid("the body is nested too deep") from error


def judge_all(events: list[bytes], *, latest_ms: int) -> Judged:
    """Sort events into good and bad. `latest_ms`: the greatest `ts` allowed.

    >>> judge_all([b'{"event_id": "a"}'], latest_ms=0).faults[0].field
    'event_type'
    """
    judged = Judged()
    for index, value in enumerate(events):
        fault = judge(BEHAVIOR, value, latest_ms=latest_ms) if len(value) <= MAX_RECORD_BYTES else None
        if fault is not None:
            judged.faults.append(EventFault(index=index, field=fault.field or "event", reason=fault.reason))
        elif len(value) > MAX_RECORD_BYTES:
            judged.faults.append(EventFault(index=index, field="event", reason="too_large"))
        else:
            judged.keys.append(str(_KEYS.decode(value).user_id).encode())
            judged.values.append(value)
    return judged


class EventIntake:
    """Takes bodies of events to the log. Used by several threads; the producer is connected by the first that needs it.

    `skew_ms`: how far ahead of the clock an event may be.
    """

    def __init__(self, *, connect: Callable[[], Producer], clock: Clock, skew_ms: int, timeout_s: float) -> None:
        self._connect = connect
        self._clock = clock
        self._skew_ms = skew_ms
        self._timeout_s = timeout_s
        self._producer: Producer | None = None
        self._connecting = threading.Lock()

    def take(self, body: bytes) -> Judged:
        """Send the good events, and return when all replicas have them. Raises RecordInvalid, KafkaUnavailable."""
        judged = judge_all(split(body), latest_ms=self._clock.now_ms() + self._skew_ms)
        if judged.values:
            self._connected().deliver(BEHAVIOR, judged.keys, judged.values, timeout_s=self._timeout_s)
        return judged

    def close(self) -> None:
        """Give the connection back."""
        if self._producer is not None:
            self._producer.close()

    def _connected(self) -> Producer:
        with self._connecting:
            if self._producer is None:
                self._producer = self._connect()
            return self._producer
