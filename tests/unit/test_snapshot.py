"""What a workflow snapshot of the system has in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.settings import Settings
from rtrec_ray.app.find import compose
from rtrec_ray.app.snapshot import register, workflow_snapshot
from rtrec_ray.embedded.state import Addresses
from rtrec_ray.metadata import MemoryMetadataStore, list_entries


def test_a_snapshot_changes_with_what_a_run_depends_on_and_with_nothing_else(tmp_path: Path) -> None:
    settings = Settings()
    system = compose(settings, tmp_path, Addresses())
    first = workflow_snapshot(system)
    assert {"features.yaml", "samples.yaml", "model.yaml", "tensorflow"} <= set(first.files)
    moved = replace(settings.training, storage="s3://key:secret@elsewhere")
    taught = replace(settings.training, held_out_percent=20)
    assert workflow_snapshot(_with(system, moved)).snapshot == first.snapshot
    assert workflow_snapshot(_with(system, taught)).snapshot != first.snapshot


def test_project_workflow_and_jobs_are_entered_and_stay_as_they_are_at_the_next_start(tmp_path: Path) -> None:
    store, system = MemoryMetadataStore(), compose(Settings(), tmp_path, Addresses())
    for _ in range(2):
        register(store, workflow_snapshot(system))
    assert [entry["name"] for entry in list_entries(store, "jobs")] == [
        "backfill",
        "static-features",
        "train-base",
        "train-incremental",
        "validate",
    ]
    (workflow,) = store.entities("workflows")
    assert (workflow.body["snapshot"], workflow.version) == (store.snapshots()[0].snapshot, 1)


def _with(system, training):
    return replace(system, settings=system.settings.model_copy(update={"training": training}))
