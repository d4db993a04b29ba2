"""A run of the demonstration: a system of its own in a directory of its own, the show, the report."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from configs.settings import Settings
from rtrec_ray.app.find import definition_file
from rtrec_ray.app.up import running
from rtrec_ray.clock import wall_ms
from rtrec_ray.demo.log import Log, load_log
from rtrec_ray.demo.options import LOGS, DemoOptions, compressed, roomy
from rtrec_ray.demo.record import DemoRecord
from rtrec_ray.demo.report import write_report
from rtrec_ray.demo.screen import Screen
from rtrec_ray.embedded import ports
from rtrec_ray.errors import RtrecError


def run_demo(options: DemoOptions, settings: Settings, screen: Screen) -> tuple[DemoRecord, Path]:
    """Run it and write the report; answers what was observed and the page's path. `options.out` is there, empty.

    Raises DemoFailed, and what servers and stages raise. The servers' logs are kept there unless all is well.
    """
    began_ms = wall_ms()
    _end_on_sigterm()
    log = load_log()
    settings = _beside_others(compressed(settings, log.facts, options))
    logs = options.out / LOGS
    with TemporaryDirectory(prefix="rtrec-demo-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with _failure_leaves_logs(directory, logs):
            record = _show(options, settings, directory, log=log, screen=screen, began_ms=began_ms)
        if record.ok:
            shutil.rmtree(logs, ignore_errors=True)
        else:
            _keep_logs(directory, logs)
    record = replace(record, phases=screen.phases, seconds=(wall_ms() - began_ms) / 1_000.0)
    return record, write_report(record, options.out)


def _show(
    options: DemoOptions, settings: Settings, directory: Path, *, log: Log, screen: Screen, began_ms: int
) -> DemoRecord:
    settings = _with_roomy_tiles(settings, directory)
    with ExitStack() as stack:
        with screen.phase("starting"):
            steps = _steps(screen)
            system = stack.enter_context(running(settings, directory, on_step=steps))
            _end_on_sigterm()  # Ray's driver has put its own handler in place
        # Ray reads variables as it is imported, and these are known only now that its head runs.
        from rtrec_ray.demo.show import Show

        mend = f"the logs are in {options.out / LOGS}"
        record = Show(options.show, system, log, screen=screen, began_ms=began_ms, mend=mend).play()
        with screen.phase("stopping"):
            stack.close()
    return record


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


def _with_roomy_tiles(settings: Settings, directory: Path) -> Settings:
    own = directory / "features.yaml"
    text = definition_file("features", settings.definitions.features).read_text(encoding="utf-8")
    own.write_text(roomy(text, speed=settings.clock.speed), encoding="utf-8")
    definitions = replace(settings.definitions, features=str(own))
    return settings.model_copy(update={"definitions": definitions})


def _beside_others(settings: Settings) -> Settings:
    """Settings with a port for HTTP that is free now: another system may run on this machine."""
    servers = settings.servers
    http = replace(servers.http, port=ports.pick(servers.http.port))
    return settings.model_copy(update={"servers": replace(servers, http=http)})


@contextmanager
def _failure_leaves_logs(directory: Path, to: Path) -> Iterator[None]:
    """When the block fails, keep the logs, and let the error name the copy: `directory` is about to go."""
    try:
        yield
    except RtrecError as error:
        _keep_logs(directory, to)
        there, here = str(directory), str(to)
        raise type(error)(error.message.replace(there, here), mend=error.mend.replace(there, here)) from error
    except BaseException:
        _keep_logs(directory, to)
        raise


def _keep_logs(directory: Path, to: Path) -> None:
    for path in (*directory.glob("*/*.log"), *directory.glob("ray/logs/*")):
        with suppress(OSError):
            target = to / path.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
