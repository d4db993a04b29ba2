"""What a run on a log observed: facts only, from which the report is made. Names as in demo.record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from rtrec_ray.demo.record import Check, Moment, Phase, ProgressPoint, TimeLine, VersionFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """The replayed log. `first_ms`, `last_ms`: event time of its first and last event."""

    source: str
    impressions: int
    clicks: int
    users: int
    items: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One live request for recommendations. `status`: 0 when there was no answer. Ages: ms of event time."""

    at_s: float
    latency_ms: float
    status: int
    version: str = ""
    degraded: tuple[str, ...] = ()
    feature_age_ms: int | None = None
    model_age_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFacts:
    """What the live client did. `accepted`: events whose taking was acknowledged, `impressions` and `clicks` of them;
    `unknown`: events whose post failed, which may have been taken nevertheless.
    """

    requests: int = 0
    failed: int = 0
    impressions: int = 0
    clicks: int = 0
    accepted: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotFacts:
    """A feature value read over HTTP beside its recount, both as JSON text; `skipped`: why they were not compared."""

    view: str
    key: str
    as_of_ms: int
    found: str = ""
    expected: str = ""
    skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRecord:
    """A whole run. `began_ms`: when it began, wall time UTC; `base_rates`: by base version, clicks per impression of
    the samples before it, which the constant baseline predicts; `bounds_ms`: settings in event time that shape the run.
    """

    seed: int
    minutes: float
    began_ms: int
    seconds: float
    log: LogFacts
    time: TimeLine
    phases: tuple[Phase, ...] = ()
    moments: tuple[Moment, ...] = ()
    progress: tuple[ProgressPoint, ...] = ()
    versions: tuple[VersionFacts, ...] = ()
    calls: tuple[Call, ...] = ()
    live: LiveFacts = LiveFacts()
    spots: tuple[SpotFacts, ...] = ()
    checks: tuple[Check, ...] = ()
    base_rates: dict[str, float] = field(default_factory=dict)
    bounds_ms: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return bool(self.checks) and all(check.ok for check in self.checks)


def write_record(path: Path, record: DemoRecord) -> None:
    """Keep a record as JSON."""
    path.write_bytes(msgspec.json.encode(record))


def read_record(path: Path) -> DemoRecord:
    """Read a kept record."""
    return msgspec.json.decode(path.read_bytes(), type=DemoRecord)
