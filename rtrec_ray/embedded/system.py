"""The embedded servers as one system on a data directory: start, watch, stop, and stop what another process started."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import Any

from rtrec_ray import clock
from rtrec_ray.embedded import process
from rtrec_ray.embedded.assembly import MLFLOW_DATABASE, PARTS, EmbeddedOptions, addresses, build, postgres_of
from rtrec_ray.embedded.ray import RayServer
from rtrec_ray.embedded.server import Server
from rtrec_ray.embedded.state import Claim, State, claim, read_state, write_state
from rtrec_ray.errors import AlreadyRunning, EmbeddedFailure, NotRunning

_WATCH_S = 1.0
_CLAIMED_S = 20.0
_RELEASED_S = 20.0
_LONGEST_PAUSE_S = 30.0
_FILES = 65_536

Step = Callable[[str, str], None]
"""Told of a server's name and what happened to it: starting, ready in 2.1 s, ended, restarted, stopped."""


class Running:
    """Embedded servers that this process started and will stop."""

    def __init__(self, owned: Claim, servers: Mapping[str, Server], *, on_step: Step) -> None:
        self._claim = owned
        self._servers = dict(servers)
        self._on_step = on_step
        self._lock = Lock()
        self._ended = Event()
        self._stopped = False
        self._watcher: Thread | None = None
        self.addresses = addresses(servers)
        self._state = State(
            owner=process.identify(os.getpid()),
            started_ms=clock.wall_ms(),
            parts=tuple(servers),
            addresses=self.addresses,
        )
        self._change(self._state)
        for name, server in servers.items():
            server.on_spawn = partial(self._record, name)

    @property
    def servers(self) -> Mapping[str, Server]:
        """The servers by name, each with start, stop and kill of its own."""
        return self._servers

    @property
    def directory(self) -> Path:
        """The data directory."""
        return self._claim.directory

    def note(self, **facts: Any) -> None:
        """Add facts of the application to the state file, for other processes to read."""
        with self._lock:
            self._change(replace(self._state, facts={**self._state.facts, **facts}))

    def environment(self) -> dict[str, str]:
        """Variables that a driver of the embedded Ray needs before it imports ray; empty without Ray."""
        server = self._servers.get("ray")
        return server.client_environment() if isinstance(server, RayServer) else {}

    def health(self) -> dict[str, bool]:
        """Which servers' processes live now."""
        return {name: server.alive() for name, server in self._servers.items()}

    def start(self) -> None:
        """Start all at once, each as soon as what it needs is ready; on the first failure stop all and raise it."""
        with ThreadPoolExecutor(len(self._servers) or 1) as threads:
            begun: dict[str, Future[None]] = {}
            for name in self._servers:
                needed = [begun["postgres"]] if name == "mlflow" and "postgres" in begun else []
                begun[name] = threads.submit(self._start_one, name, needed)
            try:
                done, _ = wait(begun.values(), return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                # Also a Ctrl-C.
                with _undisturbed():
                    for server in self._servers.values():
                        server.cancel()
                    wait(begun.values())
                    self.stop()
                raise

    def watch(self, on_step: Step | None = None) -> None:
        """Watch the servers in a thread until `stop`: one that ends is reported and started again, with back-off."""
        if on_step is not None:
            self._on_step = on_step
        self._watcher = Thread(target=self._watch, name="embedded-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Stop all, the last one started first, and give the directory free; a second call does nothing."""
        with _undisturbed():
            if self._stopped:
                return
            self._stopped = True
            self._ended.set()
            if self._watcher is not None:
                self._watcher.join()
            for name, server in reversed(self._servers.items()):
                server.stop()
                self._on_step(name, "stopped")
            _sweep(self.directory, [])
            self._claim.close()

    def _start_one(self, name: str, needed: Iterable[Future[None]]) -> None:
        for future in needed:
            future.result()
        started_s = clock.monotonic_s()
        self._on_step(name, "starting")
        self._servers[name].start()
        if name == "postgres" and "mlflow" in self._servers:
            postgres_of(self._servers).create_database(MLFLOW_DATABASE)
        self._on_step(name, f"ready in {clock.monotonic_s() - started_s:.1f} s")

    def _watch(self) -> None:
        pauses = dict.fromkeys(self._servers, 0.0)
        due_s = dict.fromkeys(self._servers, 0.0)
        while not self._ended.wait(_WATCH_S):
            for name, server in self._servers.items():
                now_s = clock.monotonic_s()
                if server.alive():
                    # A server that held for a while after a restart is well again.
                    if now_s - due_s[name] > _LONGEST_PAUSE_S:
                        pauses[name] = 0.0
                elif now_s >= due_s[name]:
                    self._restart(name, server)
                    pauses[name] = min(_LONGEST_PAUSE_S, max(1.0, 2 * pauses[name]))
                    due_s[name] = clock.monotonic_s() + pauses[name]

    def _restart(self, name: str, server: Server) -> None:
        self._on_step(name, "ended")
        try:
            server.kill()
            server.start()
            self._on_step(name, "restarted")
        except EmbeddedFailure as error:
            self._on_step(name, f"not restarted: {error.line()}")

    def _record(self, name: str, identity: process.ProcessId) -> None:
        with self._lock:
            self._change(replace(self._state, processes={**self._state.processes, name: identity}))

    def _change(self, state: State) -> None:
        self._state = state
        write_state(self.directory, state)


def start(parts: Collection[str], directory: Path, options: EmbeddedOptions, *, on_step: Step) -> Running:
    """Start servers on a data directory; what a crashed run left there is ended first.

    Raises DirectoryUnusable, AlreadyRunning, or EmbeddedFailure with the log of the server that did not start.
    """
    directory = directory.expanduser().absolute()
    _raise_file_limit()
    owned = claim(directory)
    try:
        _sweep(directory, _recorded(read_state(directory)))
        running = Running(owned, build(parts, directory, options), on_step=on_step)
    except BaseException:
        owned.close()
        raise
    running.start()
    return running


def stop_other(directory: Path, *, timeout_s: float = 90.0) -> State:
    """Stop the system that another process runs on this directory, or what a crashed one left; answer what it was.

    The owner is asked to stop in order and is killed after `timeout_s`. Raises NotRunning when nothing ran.
    """
    directory = directory.expanduser().absolute()
    state = _state_of_owner(directory) if (directory / "run").is_dir() else None
    owner = state.owner.find() if state is not None else None
    if owner is not None:
        process.end([owner], first=signal.SIGTERM, timeout_s=timeout_s)
    if (directory / "run").is_dir():
        _sweep_as_owner(directory, state)
    if state is None:
        raise NotRunning(f"nothing runs on {directory}", mend="`rtrec up` starts it")
    return state


def _sweep_as_owner(directory: Path, state: State | None) -> None:
    """Only as the owner: somebody may have started anew in the meantime."""
    deadline, pause = clock.monotonic_s() + _RELEASED_S, Event()
    while True:
        with contextlib.suppress(AlreadyRunning), contextlib.closing(claim(directory, to_write=False)):
            _sweep(directory, _recorded(state))
            return
        # A process with many threads counts as ended before the last of them has let go of its lock.
        now = read_state(directory)
        anew = now is not None and (state is None or now.owner != state.owner)
        if anew or clock.monotonic_s() > deadline:
            return
        pause.wait(0.1)


def _state_of_owner(directory: Path) -> State | None:
    # The owner writes its state as soon as it has cleaned up after the run before it.
    deadline = clock.monotonic_s() + _CLAIMED_S
    pause = Event()
    while (state := read_state(directory)) is None and clock.monotonic_s() < deadline:
        with contextlib.suppress(AlreadyRunning), contextlib.closing(claim(directory, to_write=False)):
            return None
        pause.wait(0.1)
    return state


def _recorded(state: State | None) -> list[process.ProcessId]:
    return list(state.processes.values()) if state is not None else []


def _sweep(directory: Path, recorded: Iterable[process.ProcessId]) -> None:
    """End what still runs for this directory: first in order the servers themselves, then the rest at once."""
    recorded = list(recorded)
    # SIGINT is the orderly end for all of them; SIGTERM would let PostgreSQL wait for its clients.
    mains = [found for identity in recorded if (found := identity.find()) is not None]
    process.end(mains, first=signal.SIGINT, timeout_s=10.0)
    directories = [directory / name for name in PARTS]
    process.kill_all(lambda: process.family(recorded, directories=directories))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    # An impatient second Ctrl-C must not leave servers behind; every step in here has an end of its own.
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_file_limit() -> None:
    # Ray and Kafka hold thousands of files and sockets; the usual soft limit is 1024, and children inherit ours.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
