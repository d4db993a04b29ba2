"""Samples → models: the base model, the increments, the gate. The workflow says when each of them runs."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial

import msgspec

from rtrec_ray.app.find import definition_file
from rtrec_ray.app.snapshot import keep_snapshot
from rtrec_ray.app.system import System
from rtrec_ray.metadata.base import JobRun
from rtrec_ray.metadata.recording import recorded
from rtrec_ray.registry.base import ModelVersion
from rtrec_ray.registry.lifecycle import AliasWatch
from rtrec_ray.registry.mlflow import RegistryOptions
from training.definition import ModelDefinition, load_definition
from training.options import BaseOptions, GateOptions, IncrementalOptions, RayOptions, ServerConnections
from training.patience import patiently

INCREMENTAL = "incremental"


def connections(system: System) -> ServerConnections:
    """Where training finds samples, versions and events."""
    return ServerConnections(
        postgres=system.postgres,
        registry=RegistryOptions(url=system.mlflow_url),
        clock=system.clock,
        snapshot=keep_snapshot(system),
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

    settings = system.settings.training
    options = BaseOptions(
        definition=model_definition(system, family=family),
        ray=RayOptions(storage=system.training_storage, workers=settings.workers),
        held_out_percent=settings.held_out_percent,
        job=job,
        definitions=system.definition_versions,
    )
    return train(options, connections(system))


def run_incremental(system: System, stop: threading.Event) -> None:
    """Follow the ledger until `stop` is set and what was learnt by then is published. Needs a Ray connection.

    Raises TrainingFailed, NotRunning.
    """
    settings, servers = system.settings.training, connections(system)  # first: without servers it ends at once
    from training.incremental import train_incremental  # TensorFlow, as above

    options = IncrementalOptions(
        ray=RayOptions(storage=system.training_storage, workers=settings.workers, max_failures=-1),
        held_out_percent=settings.held_out_percent,
        publish_every_s=settings.publish_every_s,
        definitions=system.definition_versions,
    )
    _when(stop, partial(_request_stop, servers, options.run))
    train_incremental(options, servers)


def run_gate(system: System, stop: threading.Event) -> None:
    """Let versions online, or not, and tell what was changed in MLflow by hand, until `stop` is set.

    Raises NotRunning.
    """
    settings, servers = system.settings.training, connections(system)  # first: as above
    from training.gate import ValidationGate  # TensorFlow, as above

    gate = ValidationGate(GateOptions(held_out_percent=settings.held_out_percent, max_rows=settings.exam_rows), servers)
    _when(stop, gate.stop)
    watch = AliasWatch(lambda: (servers.center(), servers.model_changes()))
    watching = threading.Thread(target=watch.run, args=(stop,), name="alias-watch")
    run = JobRun(
        run_id=f"validate-{uuid.uuid4().hex[:12]}",
        job="validate",
        kind="endless",
        started_ms=servers.clock.now_ms(),
        snapshot=servers.snapshot,
    )
    with ExitStack() as stack:
        patiently(lambda: stack.enter_context(recorded(servers.metadata, run, clock=servers.clock, alone=True)))
        watching.start()
        try:
            gate.run()
        finally:
            stop.set()
            watching.join()


def _when(stop: threading.Event, end: Callable[[], object]) -> None:
    """Call `end` when `stop` is set."""

    def wait() -> None:
        stop.wait()
        end()

    threading.Thread(target=wait, name="until-told", daemon=True).start()


def _request_stop(servers: ServerConnections, run: str) -> None:
    with closing(servers.book()) as book:
        book.request_stop(run)
