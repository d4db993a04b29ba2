"""What a run in the world observed: facts only, from which the report is made. Names as in demo.record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import polars as pl

from rtrec_ray.demo.record import Check, Moment, Phase, ProgressPoint, TimeLine, VersionFacts
from rtrec_ray.simulate.world.effect import OBSERVED
from rtrec_ray.simulate.world.live import Answered
from rtrec_ray.simulate.world.options import Drift
from rtrec_ray.simulate.world.worth import Worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One live request: how it was answered, and in which arm. `at_s`: since the run began. `worth`: None while it is
    not known, and for an answer without items.
    """

    at_s: float
    arm: str
    answered: Answered
    worth: Worth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldRecord:
    """A whole run. `live_ms`: event time of the live part, [from, to); `counted_from_ms`: after the warm-up."""

    seed: int
    minutes: float
    began_ms: int
    seconds: float
    time: TimeLine
    live_ms: tuple[int, int]
    counted_from_ms: int
    drifts: tuple[Drift, ...]
    first_drift_ms: int
    phases: tuple[Phase, ...] = ()
    moments: tuple[Moment, ...] = ()
    progress: tuple[ProgressPoint, ...] = ()
    versions: tuple[VersionFacts, ...] = ()
    asked: tuple[Asking, ...] = ()
    checks: tuple[Check, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every claim about the system holds; what the arms did is a finding, not a check."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def observed(self) -> pl.DataFrame:
        """The answered requests that count, (n, OBSERVED)."""
        rows = [
            (a.ts_ms, a.user_id, asking.arm, len(a.slate.items), a.clicks, *asking.worth)
            for asking in self.asked
            if (a := asking.answered).slate and asking.worth and a.ts_ms >= self.counted_from_ms
        ]
        return pl.DataFrame(rows, schema=OBSERVED, orient="row")


def write_record(path: Path, record: WorldRecord) -> None:
    """Keep a record as JSON."""
    path.write_bytes(msgspec.json.encode(record))


def read_record(path: Path) -> WorldRecord:
    """Read a kept record."""
    return msgspec.json.decode(path.read_bytes(), type=WorldRecord)
