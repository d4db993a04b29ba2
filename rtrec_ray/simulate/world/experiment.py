"""The experiment that the demonstration and its off-line twin share: how long, how fast, what drifts when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.simulate.world.options import HOUR_MS, MINUTE_MS, Drift, WorldOptions
from rtrec_ray.simulate.world.yesterday import DayOptions

ARMS: Final = {"static": False, "features": True, "training": True}
"""Name → whether its requests are given real-time features."""

MODEL_OF: Final[dict[str, Literal["base", "champion"]]] = {
    "static": "base",
    "features": "base",
    "training": "champion",
}
"""Name → the model that answers: the base of the chain, or its newest increment online."""

EXPLORATION: Final = 0.03
"""Share of random slates, the same in every arm: each costs clicks, and without any nothing new is ever found."""

PUBLISH_S: Final = 10.0
"""Wall time between two increments: as often as two cores can validate and exchange them beside everything else."""

STEP_S: Final = 1.0
"""Wall time that a step of a simulation stands for: what the live system takes, about, from an event to a feature."""

MIDNIGHT_MS: Final = 1_772_409_600_000  # 2 March 2026, UTC: yesterday ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """An experiment in compressed time.

    `speed`: at 60 an hour passes in a minute, so a window of 10 minutes is 10 seconds of wall time: far longer than the
    second that an event takes to become a feature, and far shorter than the experiment. `minutes`: wall time of the
    live part. `per_wall_s`: visits per second of wall time; yesterday had as many per second of event time. The drifts
    come one after the other, each at a share of the live part, so that the time before the first shows where all begin.
    The live part begins at `from_ms`, when there is a model to serve.
    """

    minutes: float = 6.0
    speed: float = 60.0
    per_wall_s: float = 40.0
    yesterday_ms: int = 6 * HOUR_MS
    drift_at: tuple[float, float, float] = (1 / 6, 1 / 4, 1 / 3)
    drifting: bool = True
    from_ms: int = MIDNIGHT_MS
    trend_every_ms: int = HOUR_MS

    @property
    def per_s(self) -> float:
        """Visits per second of event time."""
        return self.per_wall_s / self.speed

    @property
    def to_ms(self) -> int:
        """When it ends."""
        return self.from_ms + round(self.minutes * MINUTE_MS * self.speed)

    @property
    def first_drift_ms(self) -> int:
        """Where before and after part, drifting or not."""
        return self._at(self.drift_at[0])

    @property
    def earlier(self) -> tuple[Drift, ...]:
        """The trends of yesterday: that what is clicked now matters now must be there to be learnt.

        They leave men in China on page 100 with ad 2002, so that the talk's example is told in the live part.
        """
        begun_ms = MIDNIGHT_MS - self.yesterday_ms
        times = range(begun_ms + self.trend_every_ms, MIDNIGHT_MS - self.trend_every_ms + 1, self.trend_every_ms)
        return tuple(Drift(kind="trend", at_ms=at_ms, told=2002) for at_ms in times)

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """What changes during the live part."""
        if not self.drifting:
            return ()
        trend, parting, new_items = map(self._at, self.drift_at)
        return (
            Drift(kind="trend", at_ms=trend),
            Drift(kind="parting", at_ms=parting),
            Drift(kind="new_items", at_ms=new_items),
        )

    def _at(self, share: float) -> int:
        return self.from_ms + round((self.to_ms - self.from_ms) * share)


def yesterday(schedule: Schedule, *, arm_of: Callable[[int], str]) -> DayOptions:
    """The day before the live part. `arm_of`: user id → arm, as serving spreads them."""
    return DayOptions(
        from_ms=MIDNIGHT_MS - schedule.yesterday_ms,
        to_ms=MIDNIGHT_MS,
        per_s=schedule.per_s,
        step_ms=round(STEP_S * 1_000 * schedule.speed),
        arms=ARMS,
        arm_of=arm_of,
    )


def world_options(schedule: Schedule, *, seed: int) -> WorldOptions:
    """The world of one run."""
    return WorldOptions(seed=seed, drifts=(*schedule.earlier, *schedule.drifts))


def unskewed(definition: SampleDefinition) -> SampleDefinition:
    """The same labels, positives no sooner than negatives.

    Else the ledger has the clicks of a moment in one run and the impressions that waited in another, and a model that
    learns in small steps swings between them.
    """
    return replace(definition, emit="on_close")
