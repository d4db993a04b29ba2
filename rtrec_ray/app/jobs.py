"""The jobs on a Ray cluster: pipeline, training, serving; started, stopped, started again when the head was.

Import this only when Ray's variables are set (`join_environment`): Ray reads some of them as it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from rtrec_ray.app import cluster
from rtrec_ray.app.pipeline import shares, start_pipeline
from rtrec_ray.app.system import System
from rtrec_ray.app.workflow import SCHEDULER, start_scheduler, stop_endless
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
            # Training is the workflow's: the scheduler that may be there already starts it.
            actors[part] = [*(start_pipeline(system) if part == "pipeline" else ()), start_scheduler(system)]
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
            _end(part, system)
        on_step(part, "stopped")
    cluster.leave()


def restart_jobs(system: System, parts: Collection[str], *, on_step: Step) -> System:
    """Start the jobs on a Ray head that died and is up again."""
    cluster.leave()
    return start_jobs(system, parts, on_step=on_step)


# Serve takes seconds to import: a system without serving does without it.


def _start_serving(system: System) -> str:
    from rtrec_ray.app.serving import start_serving

    return start_serving(system)


def _end(part: str, system: System) -> None:
    if part == "training":
        stop_endless(system)
        if not cluster.has_actors(share.name for share in shares(system)):  # it is the pipeline's, if there is one
            cluster.stop_actors([SCHEDULER])
    else:
        from rtrec_ray.app.serving import stop_serving

        stop_serving()
