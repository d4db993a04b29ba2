"""Samples → models: the base model on order, the increments and the gate as actors that never end."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from actors.stage import Work
from rtrec_ray.app.cluster import start_actor
from rtrec_ray.app.find import definition_file
from rtrec_ray.app.snapshot import keep_snapshot, workflow_snapshot
from rtrec_ray.app.system import System
from rtrec_ray.metadata.base import JobRun
from rtrec_ray.metadata.recording import recorded
from rtrec_ray.registry.base import ModelVersion
from rtrec_ray.registry.lifecycle import AliasWatch
from rtrec_ray.registry.mlflow import RegistryOptions
from training.definition import ModelDefinition, load_definition
from training.options import BaseOptions, GateOptions, IncrementalOptions, RayOptions, ServerConnections
from training.patience import patiently

GATE, INCREMENTAL = "gate", "incremental"


def connections(system: System) -> ServerConnections:
    """Where training finds samples, versions and events."""
    return ServerConnections(
        postgres=system.postgres,
        registry=RegistryOptions(url=system.mlflow_url),
        clock=system.clock,
        snapshot=workflow_snapshot(system).snapshot,
    )


def model_definition(system: System, *, family: str | None = None) -> ModelDefinition:
    """The model of model.yaml, or another family of it."""
    definition = load_definition(definition_file("model", system.settings.definitions.model))
    return definition if family is None else msgspec.structs.replace(definition, family=family)


def train_base(system: System, *, family: str | None = None, job: str = "") -> ModelVersion:
    """Train, log and announce a base model; returns when that is done. Needs a Ray connection (`cluster.joined`).

    Raises TrainingImpossible, TrainingFailed, NotRunning, StoreUnavailable, RegistryUnavailable.
    """
    from training.base import train_base as train  # TensorFlow: only the processes that train import it

    keep_snapshot(system)  # the definitions may have been edited since `up`
    settings = system.settings.training
    options = BaseOptions(
        definition=model_definition(system, family=family),
        ray=RayOptions(storage=system.training_storage, workers=settings.workers),
        held_out_percent=settings.held_out_percent,
        job=job,
        definitions=system.definition_versions,
    )
    return train(options, connections(system))


def run_incremental(system: System) -> None:
    """Follow the ledger until the run is asked to stop. Needs a Ray connection. Raises TrainingFailed, NotRunning."""
    from training.incremental import train_incremental  # TensorFlow, as above

    keep_snapshot(system)
    settings = system.settings.training
    options = IncrementalOptions(
        ray=RayOptions(storage=system.training_storage, workers=settings.workers, max_failures=-1),
        held_out_percent=settings.held_out_percent,
        publish_every_s=settings.publish_every_s,
        definitions=system.definition_versions,
    )
    train_incremental(options, connections(system))


def start_gate(system: System) -> Any:
    """Start the actor that lets versions online, or not."""
    return start_actor(GATE, partial(_gate, system), cpus=0.5)


def start_incremental(system: System) -> Any:
    """Start the actor that keeps the incremental run going."""
    return start_actor(INCREMENTAL, partial(_incremental, system), cpus=0.1)


def _gate(system: System) -> list[Work]:
    from training.gate import ValidationGate  # TensorFlow, as above

    settings = system.settings.training
    options = GateOptions(held_out_percent=settings.held_out_percent, max_rows=settings.exam_rows)
    servers = connections(system)
    gate = ValidationGate(options, servers)
    return [
        Endless(partial(_run_gate, servers, gate.run), end=gate.stop),
        AliasWatch(lambda: (servers.center(), servers.model_changes())),
    ]


def _run_gate(servers: ServerConnections, run: Callable[[], None]) -> None:
    made = JobRun(
        run_id=f"validate-{uuid.uuid4().hex[:12]}",
        job="validate",
        kind="endless",
        started_ms=servers.clock.now_ms(),
        snapshot=servers.snapshot,
    )
    with ExitStack() as stack:
        patiently(lambda: stack.enter_context(recorded(servers.metadata, made, clock=servers.clock, alone=True)))
        run()


def _incremental(system: System) -> list[Work]:
    end = partial(_request_stop, connections(system), IncrementalOptions().run)
    return [Endless(partial(run_incremental, system), end=end)]


def _request_stop(servers: ServerConnections, run: str) -> None:
    book = servers.book()
    book.request_stop(run)
    book.close()


class Endless:
    """Work that blocks in `begin` until `end` is called from another thread."""

    def __init__(self, begin: Callable[[], None], *, end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end

    def run(self, stop: threading.Event) -> None:
        """See Work."""
        threading.Thread(target=self._end_when, args=(stop,), daemon=True).start()
        self._begin()

    def _end_when(self, stop: threading.Event) -> None:
        stop.wait()
        self._end()
