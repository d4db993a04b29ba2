"""The jobs on a Ray cluster: pipeline, training, serving; started, stopped, started again when the head was.

Import this only when Ray's variables are set (`join_environment`): Ray reads some of them as it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from rtrec_ray.app import cluster
from rtrec_ray.app.pipeline import shares, start_pipeline
from rtrec_ray.app.system import System
from rtrec_ray.app.workflow import SCHEDULER, start_scheduler
from rtrec_ray.clock import monotonic_s

JOBS = ("pipeline", "training", "serve")

Step = Callable[[str, str], None]


def start_jobs(system: System, parts: Collection[str], *, on_step: Step) -> System:
    """Start the wanted ones side by side; answers the system with its HTTP address when all are up.

    Raises RayUnavailable, NotRunning, ConfigInvalid.
    """
    cluster.join(system)
    begun_s, actors = monotonic_s(), {}
    for part in (part for part in JOBS if part in parts):
        on_step(part, "starting")
        if part != "serve":
            actors[part] = _start_actors(part, system)
    if "serve" in parts:
        system = system.answering_at(_start_serving(system))
        on_step("serve", f"ready in {monotonic_s() - begun_s:.1f} s")
    for part, started in actors.items():
        cluster.wait_for(started)
        on_step(part, f"ready in {monotonic_s() - begun_s:.1f} s")
    return system


def start_traffic(system: System, *, per_s: float, on_step: Step) -> None:
    """Let simulated shoppers come. Raises RayUnavailable, NotRunning."""
    from rtrec_ray.app.traffic import start_traffic as start

    cluster.wait_for([start(system, per_s=per_s)])
    on_step("traffic", f"{per_s:g} requests a second")


def stop_traffic() -> None:
    """Let nobody come any more; returns when the last ones have been answered."""
    from rtrec_ray.app.traffic import TRAFFIC

    cluster.stop_actors([TRAFFIC])


def stop_jobs(system: System, parts: Collection[str], *, on_step: Step) -> None:
    """Let the pipeline commit, and end the jobs. A cluster that is gone has nothing left to stop."""
    if not cluster.answers():
        return
    stop_traffic()
    # An embedded head is ended next, with all that runs on it: only what is not committed yet is worth waiting for.
    ends_whole = system.addresses.ray_token is not None
    for part in (part for part in reversed(JOBS) if part in parts):
        if part == "pipeline":
            cluster.stop_actors([SCHEDULER, *(share.name for share in shares(system))])
        elif not ends_whole:
            _end(part)
        on_step(part, "stopped")
    cluster.leave()


def restart_jobs(system: System, parts: Collection[str], *, on_step: Step) -> System:
    """Start the jobs on a Ray head that died and is up again."""
    cluster.leave()
    return start_jobs(system, parts, on_step=on_step)


# MLflow and Serve take seconds to import: a system without training and serving does without them.


def _start_actors(part: str, system: System) -> list[Any]:
    if part == "pipeline":
        return [*start_pipeline(system), start_scheduler(system)]
    from rtrec_ray.app.training import start_gate, start_incremental

    return [start_gate(system), start_incremental(system)]


def _start_serving(system: System) -> str:
    from rtrec_ray.app.serving import start_serving

    return start_serving(system)


def _end(part: str) -> None:
    if part == "training":
        from rtrec_ray.app.training import GATE, INCREMENTAL

        # A run that is cut off goes on from its last version; waiting for another one would hold up `down`.
        cluster.end_actors((INCREMENTAL, GATE))
    else:
        from rtrec_ray.app.serving import stop_serving

        stop_serving()
