"""The whole system, or parts of it: started, kept running, stopped."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.settings import Settings
from rtrec_ray.app.find import clock_fact, compose
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import System
from rtrec_ray.app.workflow import tell_started
from rtrec_ray.embedded.assembly import EmbeddedOptions
from rtrec_ray.embedded.system import Running, start
from rtrec_ray.errors import ConfigInvalid, RtrecError

SERVERS = ("kafka", "postgres", "mlflow", "ray")
PARTS = (*SERVERS, "pipeline", "training", "serve")

Step = Callable[[str, str], None]
"""Told of a part's name and what happened to it."""


class Up:
    """A started system. `revive` starts its jobs again after the Ray head was."""

    def __init__(
        self, settings: Settings, servers: Running, parts: Collection[str], *, on_step: Step, traffic: float = 0.0
    ) -> None:
        self._servers = servers
        self._traffic = traffic
        self._parts = parts
        self._on_step = on_step
        self._ray_is_new = threading.Event()
        self._jobs: Any = None
        self.system = prepare(compose(settings, servers.directory, servers.addresses))

    def start(self, *, config: Path | None) -> None:
        """Start the jobs; returns when they are up."""
        # The facts come first: a job that asks for the system finds its clock.
        self._servers.note(
            parts=list(self._parts), config=config and str(config.absolute()), clock=clock_fact(self.system.clock)
        )
        if set(self._parts) - set(SERVERS):
            # A driver whose parent is init takes a raylet that is away for its own parent's death, and exits; this one
            # outlives the head that it starts again. What Ray looks at instead is the process of this number.
            os.environ.update(self._servers.environment(), RAY_RAYLET_PID=str(os.getpid()))
            # Ray reads variables as it is imported, and these were not known before the head was started.
            from rtrec_ray.app import jobs

            self._jobs = jobs
            self._settle(jobs.start_jobs(self.system, self._parts, on_step=self._on_step))
            if self._traffic:
                jobs.start_traffic(self.system, per_s=self._traffic, on_step=self._on_step)
        self._servers.watch(self._see)
        if {"pipeline", "training"} & set(self._parts):  # what starts a scheduler
            tell_started(self.system, self._parts)
        self._servers.note(ready=True)

    def revive(self) -> None:
        """Start the jobs on a Ray head that died and is up again; does nothing otherwise."""
        if self._jobs is not None and self._ray_is_new.is_set():
            try:
                self._settle(self._jobs.restart_jobs(self.system, self._parts, on_step=self._on_step))
                if self._traffic:
                    self._jobs.start_traffic(self.system, per_s=self._traffic, on_step=self._on_step)
            except (RtrecError, RuntimeError, OSError) as error:
                # The servers stay up whatever the cluster does; the next look tries again.
                self._on_step("ray", f"jobs not restarted: {error}")
            else:
                self._ray_is_new.clear()

    def stop(self) -> None:
        """Let the pipeline commit, end every job, then the servers that were started here."""
        try:
            if self._jobs is not None:
                self._jobs.stop_jobs(self.system, self._parts, on_step=self._on_step)
        finally:
            self._servers.stop()

    def _settle(self, system: System) -> None:
        self.system = system
        self._servers.note(http=system.addresses.http)

    def _see(self, part: str, what: str) -> None:
        if (part, what) == ("ray", "restarted"):
            self._ray_is_new.set()
        self._on_step(part, what)


@contextmanager
def started(
    settings: Settings,
    directory: Path,
    *,
    parts: Collection[str] = PARTS,
    config: Path | None = None,
    on_step: Step = lambda part, what: None,
    traffic: float = 0.0,
) -> Iterator[Up]:
    """Start the parts for the block, and stop them at its end, whatever ends it.

    `traffic`: requests per second of simulated shoppers; they need the parts pipeline and serve. Servers whose address
    the settings name are used as they are. Raises ConfigInvalid, AlreadyRunning,
    DirectoryUnusable, EmbeddedFailure.
    """
    check_parts(parts, traffic=traffic)
    servers = start(_embedded_parts(settings, parts), directory, _options(settings), on_step=on_step)
    try:
        up = Up(settings, servers, parts, on_step=on_step, traffic=traffic)
    except BaseException:
        servers.stop()
        raise
    try:
        up.start(config=config)
        yield up
    finally:
        up.stop()


@contextmanager
def running(settings: Settings, directory: Path, **options: Any) -> Iterator[System]:
    """As `started`, for who only needs the system."""
    with started(settings, directory, **options) as up:
        yield up.system


def check_parts(parts: Collection[str], *, traffic: float = 0.0) -> None:
    """Raise ConfigInvalid for a part that there is not, and for traffic without what it needs."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise ConfigInvalid(f"unknown part {', '.join(unknown)!r}", mend=f"the parts are {','.join(PARTS)}")
    if traffic < 0.0:
        raise ConfigInvalid(
            f"traffic is a number of requests per second, not {traffic:g}", mend="leave it out for none"
        )
    if traffic and not {"pipeline", "serve"} <= set(parts):
        raise ConfigInvalid(
            "shoppers need the parts pipeline and serve", mend="leave out --only, or name these parts too"
        )


def _embedded_parts(settings: Settings, parts: Collection[str]) -> list[str]:
    servers = settings.servers
    named = {
        "kafka": servers.kafka.bootstrap,
        "postgres": servers.postgres.dsn,
        "mlflow": servers.mlflow.url,
        "ray": servers.ray.address,
    }
    return [part for part in SERVERS if part in parts and named[part] is None]


def _options(settings: Settings) -> EmbeddedOptions:
    ray = settings.servers.ray
    return EmbeddedOptions(
        partitions=settings.pipeline.partitions, cpus=ray.num_cpus, object_store_bytes=ray.object_store_mb << 20
    )
