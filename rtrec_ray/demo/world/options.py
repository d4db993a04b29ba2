"""What may be chosen of the demonstration in the world, and what follows from it for the system's settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Final

from configs.settings import Definitions, Settings
from rtrec_ray.app.find import definition_file
from rtrec_ray.app.system import with_clock
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.samples.file import file_text, load_definition
from rtrec_ray.simulate.world.experiment import (
    ARMS,
    EXPLORATION,
    MIDNIGHT_MS,
    MODEL_OF,
    PUBLISH_S,
    Schedule,
    unskewed,
)
from serving.options import Arm

EXAM_ROWS: Final = 300
"""Held-out samples that judge a version: those of about the last 15 s of wall time, a quarter of an hour of event time.
In a world that has just drifted an exam of the time before keeps back every model that has learnt something: with those
of 50 s four of the first ten increments were refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldDemoOptions:
    """`schedule`: the experiment. `warm_up_s`: wall time at the beginning of the live part that counts for nothing,
    while windows fill that were empty. `settle_s`: at most, for what is under way at the end.
    """

    out: Path
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    warm_up_s: float = 15.0
    settle_s: float = 60.0


def world_settings(settings: Settings, options: WorldDemoOptions, directory: Path) -> Settings:
    """Settings of the experiment; its definitions are written below `directory`.

    The clock begins as yesterday ends, so that all of yesterday is past when it is replayed.
    """
    schedule = options.schedule
    if not 2.0 <= schedule.minutes <= 24 * 60:
        raise ConfigInvalid(
            f"the live part takes 2 minutes to a day, not {schedule.minutes:g} minutes", mend="--minutes"
        )
    definition = unskewed(load_definition(definition_file("samples", settings.definitions.samples)))
    samples = directory / "samples.yaml"
    samples.write_text(file_text(definition), encoding="utf-8")
    model = Path(str(resources.files("rtrec_ray.simulate.world") / "model.yaml"))
    settings = settings.model_copy(
        update={
            "definitions": Definitions(features=settings.definitions.features, samples=str(samples), model=str(model)),
            "training": replace(settings.training, publish_every_s=PUBLISH_S, exam_rows=EXAM_ROWS),
            "serving": replace(
                settings.serving,
                exploration=EXPLORATION,
                arms={name: Arm(model=MODEL_OF[name], realtime=live) for name, live in ARMS.items()},
            ),
        }
    )
    return with_clock(settings, origin_event_ms=MIDNIGHT_MS, speed=schedule.speed)
