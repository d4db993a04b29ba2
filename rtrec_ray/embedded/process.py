"""Server processes: start, find, stop. All are stopped by process id and creation time, never by name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rtrec_ray.errors import EmbeddedFailure

MARK = "RTREC_EMBEDDED_DIRECTORY"
"""Environment variable that every process of an embedded server inherits: the server's directory."""

_LAST_LINES = 5
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process, told apart from a later one that got the same number."""

    pid: int
    created_s: float

    def find(self) -> psutil.Process | None:
        """The process while it lives, else None; a process that only waits to be collected counts as gone."""
        try:
            process = psutil.Process(self.pid)
            # The boot time that creation times are counted from moves a little when the machine's clock is corrected.
            same = abs(process.create_time() - self.created_s) < 2.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def identify(pid: int) -> ProcessId:
    """The identity of a process that is running now."""
    return ProcessId(pid=pid, created_s=psutil.Process(pid).create_time())


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, for which server directory, and where its output goes."""

    arguments: Sequence[str]
    directory: Path
    log: Path
    environment: Mapping[str, str]


def spawn(command: Command) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own: a Ctrl-C in the terminal reaches only us, and we stop it in order."""
    command.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **command.environment, MARK: str(command.directory)}
    with command.log.open("ab") as log:
        return subprocess.Popen(
            list(command.arguments),
            cwd=command.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def failure(name: str, reason: str, *, log: Path, mend: str = "") -> EmbeddedFailure:
    """An error that names the log file and quotes its last lines."""
    lines = last_lines(log)
    said = f"; its last lines: {' | '.join(lines)}" if lines else ""
    return EmbeddedFailure(f"{name} {reason}{said}", mend=mend or f"see {log}")


def last_lines(log: Path, *, count: int = _LAST_LINES) -> list[str]:
    """The last non-empty lines of a log file; none when there is no file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


def end(
    processes: Iterable[psutil.Process], *, first: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0
) -> None:
    """Ask these processes to end, wait, and kill those that stay."""
    listed = list(processes)
    for process in listed:
        _signal(process, first)
    _, left = psutil.wait_procs(listed, timeout=timeout_s)
    for process in left:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=5.0)


def kill(processes: Iterable[psutil.Process]) -> None:
    """End these processes at once with SIGKILL and wait until they are gone."""
    end(processes, first=signal.SIGKILL, timeout_s=5.0)


def tree(process: psutil.Process | None) -> list[psutil.Process]:
    """A process and all that descend from it, the ancestor first."""
    if process is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def marked(directory: Path) -> list[psutil.Process]:
    """Processes that an embedded server below `directory` started, found by the mark they inherited.

    This finds what a crash kept from being recorded, and daemons that have left the process tree.
    """
    found = []
    root = directory.resolve()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK)
            if mark and process.pid != os.getpid() and _below(Path(mark), root):
                found.append(process)
    return found


def _below(path: Path, root: Path) -> bool:
    resolved = path.resolve()
    return resolved == root or root in resolved.parents


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
