"""Events → jobs: the scheduler as an actor that never ends, and what the commands see of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.ray_jobs import RayJobRunner, RayJobsOptions
from actors.scheduler import SchedulerLoop, SchedulerOptions
from actors.stage import Work
from actors.workflow_log import sending
from rtrec_ray.app.system import System
from rtrec_ray.errors import UnknownNode
from rtrec_ray.notification import SYSTEM, SYSTEM_STARTED, NewEvent
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.stores.progress import read_stages
from rtrec_ray.stores.workflow.postgres import PostgresWorkflowStore
from rtrec_ray.stores.workflow.store import Loaded

SCHEDULER = "scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The stores that a command about workflows needs."""

    events: PostgresNotificationStore
    workflows: PostgresWorkflowStore


@contextmanager
def open_desk(system: System) -> Iterator[Desk]:
    """The stores, for the block. Raises NotRunning."""
    events = PostgresNotificationStore(system.postgres, clock=system.clock)
    with closing(events), closing(PostgresWorkflowStore(system.postgres, sending(events))) as store:
        yield Desk(events=events, workflows=store)


def runner(system: System, *, given: Mapping[str, str] | None = None) -> RayJobRunner:
    """Where the system's jobs run, with the variables `given` beside the system's own. It connects when first used."""
    words = (sys.executable, "-m", "rtrec_ray.cli", "workflow", "run-node", "--data-dir", str(system.directory))
    passed = {name: os.environ[name] for name in ("PYTHONPATH", "RTREC_CONFIG") if name in os.environ}
    # So that a node's command can be `rtrec ...`, and finds this system.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return RayJobRunner(
        RayJobsOptions(
            address=system.addresses.ray_dashboard or system.ray_address,
            command=words,
            # The clock is fixed at a system's first start: another system's runs have other ids.
            prefix=f"rtrec-{system.clock.origin_wall_ms}",
            environment={**(given or {}), **passed, "PATH": path, "RTREC_DATA_DIR": str(system.directory)},
        )
    )


def start_scheduler(system: System) -> Any:
    """Start the actor that decides what runs."""
    from rtrec_ray.app.cluster import start_actor  # Ray, which the commands do without

    return start_actor(SCHEDULER, partial(make_work, system), cpus=0.1)


def make_work(system: System) -> list[Work]:
    """The scheduler's loop; called in its actor."""
    events = PostgresNotificationStore(system.postgres, clock=system.clock)
    store = PostgresWorkflowStore(system.postgres, sending(events))
    watermarks = partial(_watermarks, Pool(system.postgres, size=1, application="rtrec-watermarks"))
    options = SchedulerOptions(lease_ttl_ms=system.settings.pipeline.lease_ttl_ms)
    jobs = runner(system, given=_given())
    return [SchedulerLoop(store, events, jobs, clock=system.clock, options=options, watermarks=watermarks)]


def tell_started(system: System, parts: Collection[str]) -> None:
    """Tell the rules that the system is up. Raises StoreUnavailable."""
    with open_desk(system) as desk:
        desk.events.send(NewEvent(key=SYSTEM, value=",".join(parts), type=SYSTEM_STARTED, sender="rtrec up"))


def stop_endless(system: System) -> None:
    """Ask the jobs that never end to do so: nobody would look after them. Raises RayUnavailable, StoreUnavailable."""
    jobs = runner(system)
    with open_desk(system) as desk:
        for run in desk.workflows.runs_going():
            if run.kind == "endless":
                jobs.stop(run.run_id)


def find_node(loaded: Loaded, name: str) -> tuple[str, str]:
    """The workflow and the name of a node, given as NODE or WORKFLOW/NODE. Raises UnknownNode."""
    known = [(flow, node) for flow, saved in loaded.workflows.items() for node in saved.nodes]
    found = [each for each in known if name in (each[1], "/".join(each))]
    if len(found) == 1:
        return found[0]
    names = ", ".join("/".join(each) for each in (found or known)) or "none; apply a workflow first"
    what = f'several workflows have a node "{name}"' if found else f'no node is called "{name}"'
    raise UnknownNode(what, mend=f"name one of {names}")


def _given() -> Mapping[str, str]:
    """The variables that the pipeline was submitted with as a job: the configuration may name them."""
    import ray  # only the scheduler's actor asks, and it has imported Ray

    return dict(ray.get_runtime_context().runtime_env.get("env_vars") or {})


def _watermarks(pool: Pool) -> Mapping[str, int]:
    with pool.transaction() as cursor:
        stages = read_stages(cursor)
    return {name: stage.watermark_ms for name, stage in stages.items() if stage.watermark_ms is not None}
