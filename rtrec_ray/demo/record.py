"""What a run of any demonstration observed: facts only, of which its record is made.

Names with `_s` are seconds of wall time since the run began, those with `_ms` event time in ms UTC unless they say
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLine:
    """Event time over the run: the line through (`clock_s`, `event_ms`) with slope `speed` (event s per wall s)."""

    clock_s: float
    event_ms: int
    speed: float

    def at_s(self, event_ms: float) -> float:
        """When the clock showed `event_ms`, seconds since the run began.

        >>> TimeLine(clock_s=10.0, event_ms=0, speed=2.0).at_s(4_000)
        12.0
        """
        return self.clock_s + (event_ms - self.event_ms) / (1_000.0 * self.speed)

    def event_at(self, at_s: float) -> int:
        """What the clock showed `at_s` seconds into the run, ms UTC.

        >>> TimeLine(clock_s=10.0, event_ms=0, speed=2.0).event_at(12.0)
        4000
        """
        return self.event_ms + round((at_s - self.clock_s) * 1_000.0 * self.speed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the run, [start_s, end_s)."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMoment:
    """A stage at one moment. `applied`: behaviour events whose effect is committed; `counts`: since it began."""

    applied: int
    watermark_ms: int | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The system at one moment. `on_log`: behaviour events on Kafka; `stages`: by task; `clock_ms`: the clock then."""

    at_s: float
    clock_ms: int
    on_log: int
    stages: dict[str, StageMoment] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressPoint:
    """Samples scored before they were trained on. Losses: mean over these `rows`, nats, of the model that learns and of
    the base it began from, version `base`.
    """

    at_s: float
    event_time_ms: int
    rows: int
    positives: int
    log_loss: float | None = None
    base_log_loss: float | None = None
    lag_rows: int = 0
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """One model version. `kind`: base or increment; `outcome`: validated, rejected, or none yet; `offline_s`: when
    another took its place, none while it serves.
    """

    version: str
    kind: str
    family: str
    generated_s: float
    parent: str | None = None
    outcome: str = ""
    decided_s: float | None = None
    reason: str = ""
    online_s: float | None = None
    offline_s: float | None = None
    rows: int | None = None
    trained_to_ms: int | None = None
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A claim and whether the stores bear it out. `figure`: what was found, for people."""

    stage: str
    claim: str
    ok: bool
    figure: str
