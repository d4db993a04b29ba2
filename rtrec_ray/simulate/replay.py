"""Write a recorded log into the topics, in event-time order over all of them.

A line that the pipeline will refuse is sent like the others, so that it ends as a dead letter with its reason, as it
would have live; the summary names the first few. `bad_lines` can leave them out instead, or refuse the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np

from rtrec_ray.clock import Clock, monotonic_s, wall_ms
from rtrec_ray.errors import ConfigInvalid, RecordInvalid, RecordTooLarge, ReplayRefused
from rtrec_ray.kafka.base import MAX_RECORD_BYTES, Producer, check_size
from rtrec_ray.simulate.recording import ORDER, Recording, Spoilt
from rtrec_ray.simulate.source import read

Progress = Callable[[int, int], None]
"""Told after each chunk: records written, records in all."""

_CHUNK: Final = 2_000
_PAUSE_S: Final = 0.05
_FLUSH_S: Final = 120.0
_YEAR_MS: Final = 366 * 24 * 60 * 60 * 1000
_NAMED: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How a log is written.

    `speed`: seconds of the log per second of wall time; None writes as fast as it goes. `pace`: "clock" writes an event
    when the system's clock has come to it. `shift_to_now`: move all times by one amount, so that the log ends now if it
    is written at once into a system that allows that, and begins now if it is not.
    """

    speed: float | None = None
    pace: Literal["free", "clock"] = "free"
    shift_to_now: bool = False
    bad_lines: Literal["send", "skip", "refuse"] = "send"
    skew_ms: int = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySummary:
    """What was written. `records`: topic → count; `bad_lines`: the first few refused ones; times in ms UTC."""

    records: dict[str, int]
    first_ts_ms: int | None
    last_ts_ms: int | None
    shift_ms: int
    bad: int
    bad_lines: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When a record may be written: when every limit (ms of event time) has come to it."""

    limits: tuple[Callable[[], int], ...] = ()
    sleep: Callable[[float], None] = time.sleep

    def due_ms(self) -> int:
        """The greatest event time that may be written now."""
        return min((limit() for limit in self.limits), default=2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A log that is ready to be written."""

    recording: Recording
    shift_ms: int = 0
    spoilt: list[Spoilt] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)


def replay(
    source: str | Path,
    producer: Producer,
    options: ReplayOptions,
    *,
    clock: Clock,
    progress: Progress | None = None,
    watermark_ms: int | None = None,
) -> ReplaySummary:
    """Read, check and write a log; returns when Kafka has acknowledged all of it.

    `watermark_ms`: that of the running system, None if nothing has run yet. Raises ReplayRefused when the log lies
    behind it, ConfigInvalid for a source that is no log, RecordInvalid for bad lines that are to be refused,
    KafkaUnavailable.
    """
    plan = prepare(source, options, clock=clock, watermark_ms=watermark_ms)
    return write(plan, producer, progress=progress)


def prepare(source: str | Path, options: ReplayOptions, *, clock: Clock, watermark_ms: int | None = None) -> Plan:
    """Read a log and decide its times. Raises as `replay`."""
    if options.speed is not None and options.speed <= 0:
        raise ConfigInvalid(f"speed {options.speed:g} is not above 0", mend="leave it out to go as fast as it goes")
    recording = read(source, latest_ms=_latest_ms(options, clock))
    spoilt = recording.spoilt
    if spoilt and options.bad_lines == "refuse":
        raise RecordInvalid(f"{source}, {spoilt[0]}; {len(spoilt)} bad lines in all", mend="mend or skip them")
    if options.bad_lines == "skip":
        recording = recording.without_spoilt()
    _refuse_large(recording, str(source))
    span_ms = recording.span_ms()
    if span_ms is None:
        return Plan(recording=recording, spoilt=spoilt)
    shift_ms, limits = _timing(span_ms, options, clock=clock, watermark_ms=watermark_ms)
    shifted = recording.shifted(shift_ms) if shift_ms else recording
    return Plan(recording=shifted, shift_ms=shift_ms, spoilt=spoilt, pace=Pace(limits=limits))


def write(plan: Plan, producer: Producer, *, progress: Progress | None = None) -> ReplaySummary:
    """Write a planned log. Raises KafkaUnavailable, RecordTooLarge."""
    started_s, done, total = monotonic_s(), 0, len(plan.recording)
    while done < total:
        end = min(done + _CHUNK, int(np.searchsorted(plan.recording.ts_ms, plan.pace.due_ms(), side="right")))
        if end <= done:
            plan.pace.sleep(_PAUSE_S)
            continue
        _send(plan.recording, producer, start=done, end=end)
        done = end
        if progress is not None:
            progress(done, total)
    producer.flush(timeout_s=_FLUSH_S)
    return _summary(plan, seconds=monotonic_s() - started_s)


def _latest_ms(options: ReplayOptions, clock: Clock) -> int:
    """Beyond this an event time is a mistake. A log that waits or is shifted may lie ahead, but not by years."""
    now_ms = clock.now_ms()
    if options.pace == "clock" or options.speed is not None or options.shift_to_now:
        return max(now_ms, wall_ms()) + _YEAR_MS
    return now_ms + options.skew_ms


def _timing(
    span_ms: tuple[int, int], options: ReplayOptions, *, clock: Clock, watermark_ms: int | None
) -> tuple[int, tuple[Callable[[], int], ...]]:
    """By how much the log is shifted, and what holds it back."""
    first_ms, last_ms = span_ms
    if not options.shift_to_now:
        _refuse_behind(first_ms, watermark_ms)
        # Whatever the speed, an event before its time by the clock would be refused as one from the future.
        waits = options.pace == "clock" or options.speed is not None
        return 0, (*_speed_limit(first_ms, options), *((clock.now_ms,) if waits else ()))
    now_ms = clock.now_ms()
    at_once = options.speed is None and options.pace == "free"
    if at_once and (watermark_ms is None or now_ms - (last_ms - first_ms) >= watermark_ms):
        return now_ms - last_ms, ()
    begin_ms = max(now_ms, now_ms if watermark_ms is None else watermark_ms)
    # What comes before its time by the system's clock would be refused as an event from the future.
    return begin_ms - first_ms, (*_speed_limit(begin_ms, options), clock.now_ms)


def _speed_limit(first_ms: int, options: ReplayOptions) -> tuple[Callable[[], int], ...]:
    return () if options.speed is None else (_Elapsed(first_ms=first_ms, speed=options.speed),)


class _Elapsed:
    """Event time that runs at `speed` from the first question on."""

    def __init__(self, *, first_ms: int, speed: float) -> None:
        self._first_ms = first_ms
        self._speed = speed
        self._started_s: float | None = None

    def __call__(self) -> int:
        now_s = monotonic_s()
        if self._started_s is None:
            self._started_s = now_s
        return self._first_ms + round((now_s - self._started_s) * 1000 * self._speed)


def _refuse_large(recording: Recording, source: str) -> None:
    """Before anything is written: Kafka would refuse it half-way."""
    try:
        check_size("any", recording.values, limit=MAX_RECORD_BYTES)
    except RecordTooLarge as error:
        raise RecordTooLarge(f"{source}: {error}", mend="take the record out of the log") from error


def _refuse_behind(first_ms: int, watermark_ms: int | None) -> None:
    if watermark_ms is not None and first_ms < watermark_ms:
        raise ReplayRefused(
            f"the log begins at {_text(first_ms)}, behind the system's watermark {_text(watermark_ms)}",
            mend="add --shift-to-now, or replay into a new --data-dir",
        )


def _send(recording: Recording, producer: Producer, *, start: int, end: int) -> None:
    topics = recording.topic[start:end]
    for number, topic in enumerate(ORDER):
        chosen = np.flatnonzero(topics == number) + start
        if len(chosen):
            keys, values = [recording.keys[i] for i in chosen], [recording.values[i] for i in chosen]
            producer.send_many(topic, keys, values)


def _summary(plan: Plan, *, seconds: float) -> ReplaySummary:
    counts = np.bincount(plan.recording.topic, minlength=len(ORDER))
    span_ms = plan.recording.span_ms()
    return ReplaySummary(
        records={topic: int(count) for topic, count in zip(ORDER, counts, strict=True) if count},
        first_ts_ms=None if span_ms is None else span_ms[0],
        last_ts_ms=None if span_ms is None else span_ms[1],
        shift_ms=plan.shift_ms,
        bad=len(plan.spoilt),
        bad_lines=tuple(map(str, plan.spoilt[:_NAMED])),
        seconds=seconds,
    )


def _text(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).isoformat(timespec="seconds")
