"""What all embedded servers share: one process, one directory, one log; start, stop, kill, start again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

import psutil

from rtrec_ray import clock
from rtrec_ray.embedded import process
from rtrec_ray.errors import EmbeddedFailure

_POLL_S = 0.05


class Server(ABC):
    """One server as a child process. `start` after `stop` or `kill` uses the same ports and the same data."""

    name: str
    """Stage name, as in `rtrec status`."""

    stop_signal = signal.SIGTERM
    attempts = 1

    def __init__(self, directory: Path, *, start_timeout_s: float) -> None:
        self.directory = directory
        self.log = directory / f"{self.name}.log"
        self._start_timeout_s = start_timeout_s
        self._cancelled = Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._identity: process.ProcessId | None = None
        self.on_spawn: Callable[[process.ProcessId], None] = lambda _: None

    def start(self) -> None:
        """Start and wait until clients can use it; EmbeddedFailure names the log and quotes its end."""
        if self.alive():
            return
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(1, self.attempts):
            with contextlib.suppress(EmbeddedFailure):
                return self._start_once()
            if self._cancelled.is_set():
                break
        self._start_once()

    def _start_once(self) -> None:
        try:
            self._prepare()
            self._spawn()
            self._wait()
            self._complete()
        except BaseException:
            self.kill()
            raise

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Ask the server to end in order and wait; what is left of it after the timeout is killed."""
        process.end(self.processes()[:1], first=self.stop_signal, timeout_s=timeout_s)
        self.kill()

    def kill(self) -> None:
        """End it like a power cut, with SIGKILL to all of its processes, also those that left the process tree."""
        known = [self._identity] if self._identity is not None else []
        process.kill_all(lambda: process.family(known, directories=[self.directory]))
        if self._child is not None:
            self._child.wait(timeout=5.0)
        self._child = None
        self._clean()

    def cancel(self) -> None:
        """Make a `start` that runs in another thread fail soon."""
        self._cancelled.set()

    def alive(self) -> bool:
        """Whether its main process runs."""
        return self._child is not None and self._child.poll() is None

    def processes(self) -> list[psutil.Process]:
        """Its processes, the main one first; none when it does not run."""
        return process.tree(self._identity.find()) if self._identity is not None else []

    def failure(self, reason: str, *, mend: str = "") -> EmbeddedFailure:
        """An error that names this server's log and quotes its end."""
        return process.failure(self.name, reason, log=self.log, mend=mend)

    @abstractmethod
    def _prepare(self) -> None:
        """Make its files before the process starts."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Program and arguments."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether clients can use it; called repeatedly, must not raise while it starts."""

    def _complete(self) -> None:
        """Make what lives inside the server once it answers."""
        return

    def _environment(self) -> Mapping[str, str]:
        return {}

    def _spawn(self) -> None:
        command = process.Command(
            arguments=self._command(), directory=self.directory, log=self.log, environment=self._environment()
        )
        self._child = process.spawn(command)
        self._identity = process.identify(self._child.pid)
        self.on_spawn(self._identity)

    def _wait(self) -> None:
        deadline = clock.monotonic_s() + self._start_timeout_s
        pause = Event()
        while not self._ready():
            if self._cancelled.is_set():
                raise self.failure("was told to stop while starting")
            if not self.alive():
                raise self.failure("ended while starting")
            if clock.monotonic_s() > deadline:
                raise self.failure(f"was not ready within {self._start_timeout_s:g} s")
            pause.wait(_POLL_S)

    def _clean(self) -> None:
        """Remove what must not outlive the process."""
        return
