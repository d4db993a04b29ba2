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
from typing import Any

from configs.settings import Settings
from rtrec_ray.app.up import running
from rtrec_ray.clock import wall_ms
from rtrec_ray.demo.configuration import own_workflow, write_settings
from rtrec_ray.demo.directory import LOGS
from rtrec_ray.demo.scene import Scene, Stage
from rtrec_ray.demo.screen import Screen
from rtrec_ray.embedded import ports
from rtrec_ray.errors import RtrecError


def run_demo(scene: Scene, settings: Settings, screen: Screen) -> tuple[Any, Path]:
    """Run it and write the report; answers what was observed and the page's path. `scene.out` is there, empty.

    Raises DemoFailed, and what servers and stages raise. The servers' logs are kept there unless all is well.
    """
    began_ms = wall_ms()
    _end_on_sigterm()
    logs = scene.out / LOGS
    with TemporaryDirectory(prefix="rtrec-demo-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        settings = own_workflow(scene.settings(_beside_others(settings), directory), directory)
        with _failure_leaves_logs(directory, logs):
            record = _show(scene, settings, directory, screen=screen, began_ms=began_ms)
        if record.ok:
            shutil.rmtree(logs, ignore_errors=True)
        else:
            _keep_logs(directory, logs)
    record = replace(record, phases=screen.phases, seconds=(wall_ms() - began_ms) / 1_000.0)
    return record, scene.write(record)


def _show(scene: Scene, settings: Settings, directory: Path, *, screen: Screen, began_ms: int) -> Any:
    with ExitStack() as stack:
        prepared = stack.enter_context(scene.prepared())
        with screen.phase("starting"):
            config = write_settings(settings, directory)
            system = stack.enter_context(running(settings, directory, config=config, on_step=_steps(screen)))
            _end_on_sigterm()  # Ray's driver has put its own handler in place
        mend = f"the logs are in {scene.out / LOGS}"
        record = scene.play(Stage(system=system, screen=screen, began_ms=began_ms, mend=mend), prepared)
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
