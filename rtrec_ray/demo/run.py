"""A run of the demonstration: a system of its own in a directory of its own, the show, the report."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from configs.settings import Settings
from rtrec_ray.app.system import with_clock
from rtrec_ray.app.up import running
from rtrec_ray.clock import wall_ms
from rtrec_ray.demo.log import Log, load_log
from rtrec_ray.demo.record import DemoRecord
from rtrec_ray.demo.report import OBJECT, PAGE, write_report
from rtrec_ray.demo.screen import Screen
from rtrec_ray.demo.show import Show, ShowOptions
from rtrec_ray.errors import ConfigInvalid, DirectoryUnusable

OUT: Final = Path("out") / "demo"
LOGS: Final = "logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """`out`: where the report goes, emptied first. Wall time: `lead_s` from the clock's start to the log's first event,
    about what the servers need to start; `publish_every_s` between two increments.
    """

    out: Path
    show: ShowOptions = field(default_factory=ShowOptions)
    lead_s: float = 45.0
    publish_every_s: float = 20.0


def run_demo(options: DemoOptions, settings: Settings, screen: Screen) -> tuple[DemoRecord, Path]:
    """Run it and write the report; answers what was observed and the page's path.

    Raises DemoFailed, and what servers and stages raise; then `out` holds the servers' logs.
    """
    began_ms = wall_ms()
    _end_on_sigterm()
    empty(options.out)
    log = load_log()
    settings = compressed(settings, log, options)
    with TemporaryDirectory(prefix="rtrec-demo-", ignore_cleanup_errors=True) as name, _logs_kept(Path(name), options):
        record = _show(options, settings, Path(name), log=log, screen=screen, began_ms=began_ms)
    record = replace(record, phases=screen.phases, seconds=(wall_ms() - began_ms) / 1_000.0)
    return record, write_report(record, options.out)


def _show(
    options: DemoOptions, settings: Settings, directory: Path, *, log: Log, screen: Screen, began_ms: int
) -> DemoRecord:
    with ExitStack() as stack:
        with screen.phase("servers and stages start"):
            steps = _steps(screen)
            system = stack.enter_context(running(settings, directory, on_step=steps))
            _end_on_sigterm()  # Ray's driver has put its own handler in place
        record = Show(options.show, system, log, screen=screen, began_ms=began_ms).play()
        stack.enter_context(screen.phase("everything stops"))
        return record


def compressed(settings: Settings, log: Log, options: DemoOptions) -> Settings:
    """Settings with a clock on which the log passes in the minutes asked for, and increments as often as asked."""
    minutes = options.show.minutes
    if not 1.0 <= minutes <= 7 * 24 * 60:
        raise ConfigInvalid(f"a demonstration takes 1 minute to 7 days, not {minutes:g} minutes", mend="see --minutes")
    speed = (log.facts.last_ms - log.facts.first_ms) / (minutes * 60_000.0)
    origin_ms = log.facts.first_ms - round(options.lead_s * 1_000.0 * speed)
    training = replace(settings.training, publish_every_s=options.publish_every_s)
    settings = settings.model_copy(update={"training": training})
    return with_clock(settings, origin_event_ms=origin_ms, speed=speed)


def empty(directory: Path) -> None:
    """Make the directory, without what was in it. Raises DirectoryUnusable for one that no report of ours was in."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = list(directory.iterdir())
        ours = directory.parts[-2:] == OUT.parts or any(path.name in (PAGE, OBJECT, LOGS) for path in found)
        if found and not ours:
            raise DirectoryUnusable(
                f"{directory} is not empty, and what is in it is no report of ours", mend="name another --out"
            )
        for path in found:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise DirectoryUnusable(
            f"{directory} cannot be written: {error.strerror}", mend="name another --out"
        ) from error


def _steps(screen: Screen) -> Callable[[str, str], None]:
    """What became of each part; that one begins to start goes without saying."""

    def tell(part: str, what: str) -> None:
        if what != "starting":
            screen.say(f"{part}: {what}")

    return tell


def _end_on_sigterm() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that whatever was started is stopped."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _logs_kept(directory: Path, options: DemoOptions) -> Iterator[None]:
    """When the block fails, keep the servers' logs beside the report: the directory is about to go."""
    try:
        yield
    except BaseException:
        for path in directory.rglob("*.log"):
            with suppress(OSError):
                target = options.out / LOGS / path.relative_to(directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        raise
