"""What may be chosen of the demonstration on a log, and what follows from it for the system's settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from configs.settings import Settings
from rtrec_ray.app.system import with_clock
from rtrec_ray.demo.replay.record import LogFacts
from rtrec_ray.errors import ConfigInvalid

_RETENTION: Final = re.compile(r"^retention: *(\d+)([smhd])", re.MULTILINE)
_MINUTES: Final = {"s": 1 / 60, "m": 1, "h": 60, "d": 1_440}


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model to be trained: `family`, once `after_days` of the log have passed."""

    family: str
    after_days: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowOptions:
    """What is shown. Rates in wall time; `spot_checks`: feature values to compare."""

    seed: int = 0
    minutes: float = 5.0
    bases: tuple[Base, ...] = (Base(family="dcn", after_days=1.5), Base(family="logistic", after_days=4.0))
    requests_per_s: float = 4.0
    spot_checks: int = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """`out`: where the report goes, emptied first. Wall time: `lead_s` from the clock's start to the log's first event,
    about what the servers need to start; `publish_every_s` between two increments.
    """

    out: Path
    show: ShowOptions = field(default_factory=ShowOptions)
    lead_s: float = 30.0
    publish_every_s: float = 20.0


def compressed(settings: Settings, log: LogFacts, options: DemoOptions) -> Settings:
    """Settings with a clock on which the log passes in the minutes asked for, and increments as often as asked."""
    minutes = options.show.minutes
    if not 1.0 <= minutes <= 7 * 24 * 60:
        raise ConfigInvalid(f"a demonstration takes 1 minute to 7 days, not {minutes:g} minutes", mend="see --minutes")
    speed = (log.last_ms - log.first_ms) / (minutes * 60_000.0)
    origin_ms = log.first_ms - round(options.lead_s * 1_000.0 * speed)
    training = replace(settings.training, publish_every_s=options.publish_every_s)
    settings = settings.model_copy(update={"training": training})
    return with_clock(settings, origin_event_ms=origin_ms, speed=speed)


def roomy(definitions: str, *, speed: float) -> str:
    """Feature definitions (features.yaml) that keep tiles for a minute of wall time, or longer if they do so anyway.

    The seventy minutes that are kept at real time pass in moments here, before anybody could read them.

    >>> roomy("retention: 70m  # of tiles", speed=2000.0)
    'retention: 2000m  # of tiles'
    """
    kept = _RETENTION.search(definitions)
    if kept is None or int(kept[1]) * _MINUTES[kept[2]] >= speed:
        return definitions
    return _RETENTION.sub(f"retention: {round(speed)}m", definitions)
