"""What the system's workflow consists of, kept by its hash, so that a run can be reproduced."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rtrec_ray.app.find import definition_file, workflow_files
from rtrec_ray.app.in_force import texts_in_force
from rtrec_ray.app.system import System
from rtrec_ray.metadata.base import Entity, MetadataStore, Snapshot, take_snapshot
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.workflow.definition import Workflow

PROJECT: Final = "rtrec"
WORKFLOW: Final = "main"
_LIBRARIES: Final = ("rtrec-ray", "ray", "tensorflow", "mlflow", "polars", "numpy")
_JOBS: Final = {
    "train-base": ("batch", ["samples"]),
    "train-incremental": ("endless", ["samples"]),
    "validate": ("endless", ["samples"]),
    "backfill": ("batch", ["behavior-history"]),
    "static-features": ("batch", ["behavior-history"]),
}


def workflow_snapshot(system: System, in_force: Mapping[str, str] = MappingProxyType({})) -> Snapshot:
    """The definitions' text, the settings of training, and the versions of the program and its libraries.

    `in_force`: what was applied, beside the files that the settings name (`texts_in_force`).
    """
    chosen = system.settings.definitions
    files = {
        f"{name}.yaml": _text(definition_file(name, path))
        for name, path in (("features", chosen.features), ("samples", chosen.samples), ("model", chosen.model))
    }
    files |= {f"{name}.yaml": _text(path) for name, path in workflow_files(chosen).items()} | dict(in_force)
    # Where Ray Train keeps its state is no part of what is learnt, and an address may hold a secret.
    training = replace(system.settings.training, storage=None)
    files |= {"training": repr(training), **{name: _version(name) for name in _LIBRARIES}}
    return take_snapshot(PROJECT, WORKFLOW, files, created_ms=system.clock.now_ms())


def keep_snapshot(system: System) -> str:
    """Keep what the workflow consists of now; answers its hash. Raises StoreUnavailable."""
    snapshot = workflow_snapshot(system, texts_in_force(system))
    with closing(PostgresMetadataStore(system.postgres)) as store:
        store.put_snapshot(snapshot)
    return snapshot.snapshot


def register(store: MetadataStore, snapshot: Snapshot) -> None:
    """Enter project, workflow and jobs. Raises StoreUnavailable."""
    store.put_snapshot(snapshot)
    store.put_entity(Entity(kind="projects", name=PROJECT, body={"description": "The recommendation system itself."}))
    workflow = {"project": PROJECT, "snapshot": snapshot.snapshot}
    store.put_entity(Entity(kind="workflows", name=WORKFLOW, body=workflow))
    for name, (kind, inputs) in _JOBS.items():
        body = {"workflow": WORKFLOW, "kind": kind, "inputs": inputs}
        store.put_entity(Entity(kind="jobs", name=name, body=body))


def entering(system: System, workflow: Workflow, *, by_hand: bool) -> Callable[[Cursor], None]:
    """What enters a workflow into the metadata in the transaction that applies it. Raises StoreUnavailable."""
    snapshot = workflow_snapshot(system, texts_in_force(system, workflow))
    return lambda cursor: enter_workflow(PostgresMetadataStore(cursor), workflow, snapshot, by_hand=by_hand)


def enter_workflow(store: MetadataStore, workflow: Workflow, snapshot: Snapshot, *, by_hand: bool) -> None:
    """Enter a workflow and its nodes, as jobs WORKFLOW/NODE, and take out those it had. Raises StoreUnavailable."""
    store.put_snapshot(snapshot)
    body = {"project": PROJECT, "snapshot": snapshot.snapshot, "digest": workflow.digest, "by_hand": by_hand}
    store.put_entity(Entity(kind="workflows", name=workflow.name, body=body))
    for node in workflow.nodes:
        job = {"workflow": workflow.name, "kind": node.kind, "description": shlex.join(node.command)}
        store.put_entity(Entity(kind="jobs", name=f"{workflow.name}/{node.name}", body=job))
    _drop_jobs(store, workflow.name, left=[node.name for node in workflow.nodes])


def leave_workflow(store: MetadataStore, name: str) -> None:
    """Take out a workflow and its nodes; its runs and snapshots stay. Raises StoreUnavailable."""
    _drop_jobs(store, name, left=())
    store.drop_entity("workflows", name)


def _drop_jobs(store: MetadataStore, workflow: str, *, left: Collection[str]) -> None:
    for job in store.entities("jobs"):
        of, _, node = job.name.partition("/")
        if node and of == workflow and node not in left:
            store.drop_entity("jobs", job.name)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
