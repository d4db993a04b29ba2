"""Server processes: start, find, stop. All are stopped by process id and creation time, never by name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import psutil

from rtrec_ray import clock
from rtrec_ray.errors import EmbeddedFailure

MARK = "RTREC_EMBEDDED_DIRECTORY"
"""Environment variable that every process of an embedded server inherits: the server's directory."""

_LAST_LINES = 5
_POLL_S = 0.02
_KILL_TIMEOUT_S = 5.0
_KILL_ROUNDS = 10


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
    for number, patience_s in ((first, timeout_s), (signal.SIGKILL, _KILL_TIMEOUT_S)):
        for each in filter(_runs, listed):
            _signal(each, number)
        if _all_gone(listed, timeout_s=patience_s):
            return


def kill_all(find: Callable[[], Sequence[psutil.Process]]) -> None:
    """Kill what `find` answers until it answers none: one that is killed may just have started another."""
    for _ in range(_KILL_ROUNDS):
        found = find()
        if not found:
            return
        end(found, first=signal.SIGKILL, timeout_s=_KILL_TIMEOUT_S)


def listens(processes: Iterable[psutil.Process], port: int) -> bool:
    """Whether one of these processes takes connections on the port."""
    for each in processes:
        with contextlib.suppress(psutil.Error):
            for link in each.net_connections(kind="tcp"):
                if link.status == psutil.CONN_LISTEN and link.laddr.port == port:
                    return True
    return False


def tree(process: psutil.Process | None) -> list[psutil.Process]:
    """A process and all that descend from it, the ancestor first."""
    if process is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def family(identities: Collection[ProcessId], *, directories: Collection[Path]) -> list[psutil.Process]:
    """All running processes of servers: descendants, members of their sessions, bearers of their directories' marks.

    The three together also find daemons that left the tree, what a crash kept from being recorded, and processes that
    overwrote their environment with a title.
    """
    found = [each for identity in identities for each in tree(identity.find())]
    sessions = {identity.pid for identity in identities if _session_lasts(identity)}
    marks = {str(directory) for directory in directories}
    for each in psutil.process_iter():
        if _session(each) in sessions or _mark(each) in marks:
            found += tree(each)
    return [each for each in dict.fromkeys(found) if each.pid != os.getpid() and _runs(each)]


def _session_lasts(identity: ProcessId) -> bool:
    # A session keeps its number from being given away; when another process has it, the session is over.
    if identity.find() is not None:
        return True
    with contextlib.suppress(psutil.NoSuchProcess):
        return not _runs(psutil.Process(identity.pid))
    return True


def _session(process: psutil.Process) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(process.pid)
    return None


def _mark(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(MARK)
    return None


def _runs(process: psutil.Process) -> bool:
    # An ended process that its parent has not collected yet has ended all the same.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _all_gone(processes: Sequence[psutil.Process], *, timeout_s: float) -> bool:
    deadline = clock.monotonic_s() + timeout_s
    pause = Event()
    while any(_runs(each) for each in processes):
        if clock.monotonic_s() > deadline:
            return False
        pause.wait(_POLL_S)
    return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
