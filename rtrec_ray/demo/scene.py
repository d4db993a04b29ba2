"""What there is to be shown: the settings of its system, its play, its report."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from configs.settings import Settings
from rtrec_ray.app.find import definition_file
from rtrec_ray.app.system import System
from rtrec_ray.demo.replay.log import load_log
from rtrec_ray.demo.replay.options import DemoOptions, compressed, roomy
from rtrec_ray.demo.screen import Screen
from rtrec_ray.demo.world.options import WorldDemoOptions, world_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a scene is played. `mend`: where to look when something does not happen; `began_ms`: of the run, wall."""

    system: System
    screen: Screen
    began_ms: int
    mend: str


class Scene(Protocol):
    """One demonstration. `prepared` is work that may begin before the servers are up."""

    out: Path

    def settings(self, settings: Settings, directory: Path, /) -> Settings:
        """The settings of its system; files of its own go into `directory`."""
        ...

    def prepared(self) -> AbstractContextManager[Any]:
        """Begin what needs no server; the value goes to `play`."""
        ...

    def play(self, stage: Stage, prepared: Any, /) -> Any:
        """Play on a running system and answer the record. Raises DemoFailed and what stages raise."""
        ...

    def write(self, record: Any, /) -> Path:
        """Write the report; answers the page's path."""
        ...

    def summary(self, record: Any, /) -> dict[str, Any]:
        """The record for programs."""
        ...


# The shows import Ray, which reads variables that are known only once its head runs; the reports import matplotlib.


class OpenBandit:
    """The whole loop on a real click log."""

    def __init__(self, options: DemoOptions) -> None:
        self.out = options.out
        self._options = options
        self._log = load_log()

    def settings(self, settings: Settings, directory: Path, /) -> Settings:
        """See Scene."""
        settings = compressed(settings, self._log.facts, self._options)
        own = directory / "features.yaml"
        text = definition_file("features", settings.definitions.features).read_text(encoding="utf-8")
        own.write_text(roomy(text, speed=settings.clock.speed), encoding="utf-8")
        definitions = replace(settings.definitions, features=str(own))
        return settings.model_copy(update={"definitions": definitions})

    def prepared(self) -> AbstractContextManager[None]:
        """See Scene."""
        return nullcontext()

    def play(self, stage: Stage, prepared: Any, /) -> Any:
        """See Scene."""
        from rtrec_ray.demo.replay.show import Show

        show = Show(
            self._options.show,
            stage.system,
            self._log,
            screen=stage.screen,
            began_ms=stage.began_ms,
            mend=stage.mend,
        )
        return show.play()

    def write(self, record: Any, /) -> Path:
        """See Scene."""
        from rtrec_ray.demo.replay.report import write_report

        return write_report(record, self.out)

    def summary(self, record: Any, /) -> dict[str, Any]:
        """See Scene."""
        from rtrec_ray.demo.replay.figures import summary

        return summary(record)


class DriftingWorld:
    """The claims: what a static system loses when behaviour drifts, and what real time wins back."""

    def __init__(self, options: WorldDemoOptions) -> None:
        self.out = options.out
        self._options = options
        self._features: Path | None = None

    def settings(self, settings: Settings, directory: Path, /) -> Settings:
        """See Scene."""
        self._features = definition_file("features", settings.definitions.features)
        return world_settings(settings, self._options, directory)

    def prepared(self) -> AbstractContextManager[Future[Any]]:
        """See Scene."""
        from rtrec_ray.demo.world.day import played_elsewhere

        assert self._features is not None
        return played_elsewhere(self._options.schedule, seed=self._options.seed, features=self._features)

    def play(self, stage: Stage, prepared: Any, /) -> Any:
        """See Scene."""
        from rtrec_ray.demo.world.show import WorldShow

        show = WorldShow(self._options, stage.system, screen=stage.screen, began_ms=stage.began_ms, mend=stage.mend)
        return show.play(prepared)

    def write(self, record: Any, /) -> Path:
        """See Scene."""
        from rtrec_ray.demo.world.report import write_report

        return write_report(record, self.out)

    def summary(self, record: Any, /) -> dict[str, Any]:
        """See Scene."""
        from rtrec_ray.demo.world.figures import summary

        return summary(record)
