"""The jobs on a Ray cluster: pipeline, training, serving; started, stopped, started again when the head was.

Import this only when Ray's variables are set (`join_environment`): Ray reads some of them as it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from rtrec_ray.app import cluster
from rtrec_ray.app.pipeline import shares, start_pipeline
from rtrec_ray.app.system import System
from rtrec_ray.clock import monotonic_s

JOBS = ("pipeline", "training", "serve")

Step = Callable[[str, str], None]


def start_jobs(system: System, parts: Collection[str], *, on_step: Step) -> System:
    """Start the wanted ones in flow order, each when the one before is up; answers the system with its HTTP address.

    Raises RayUnavailable, NotRunning, ConfigInvalid.
    """
    cluster.join(system)
    for part in JOBS:
        if part in parts:
            begun_s = monotonic_s()
            on_step(part, "starting")
            system = _start(part, system)
            on_step(part, f"ready in {monotonic_s() - begun_s:.1f} s")
    return system


def stop_jobs(system: System, parts: Collection[str], *, on_step: Step) -> None:
    """Let the pipeline commit, and end the jobs. A cluster that is gone has nothing left to stop."""
    if not cluster.answers():
        return
    for part in reversed(JOBS):
        if part in parts:
            _stop(part, system)
            on_step(part, "stopped")
    cluster.leave()


def restart_jobs(system: System, parts: Collection[str], *, on_step: Step) -> System:
    """Start the jobs on a Ray head that died and is up again."""
    cluster.leave()
    return start_jobs(system, parts, on_step=on_step)


# MLflow and Serve take seconds to import: a system without training and serving does without them.


def _start(part: str, system: System) -> System:
    if part == "pipeline":
        cluster.wait_for(start_pipeline(system))
    elif part == "training":
        from rtrec_ray.app.training import start_gate, start_incremental

        cluster.wait_for([start_gate(system), start_incremental(system)])
    else:
        from rtrec_ray.app.serving import start_serving

        return system.answering_at(start_serving(system))
    return system


def _stop(part: str, system: System) -> None:
    if part == "pipeline":
        cluster.stop_actors([share.name for share in shares(system)])
    elif part == "training":
        from rtrec_ray.app.training import GATE, INCREMENTAL

        # A run that is cut off goes on from its last version; waiting for another one would hold up `down`.
        cluster.end_actors((INCREMENTAL, GATE))
    else:
        from rtrec_ray.app.serving import stop_serving

        stop_serving()
