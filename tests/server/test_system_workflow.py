"""The system's workflow is gone by when it starts, and what people apply by hand holds until the file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.settings import Definitions, Settings
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.app.workflow import open_desk
from rtrec_ray.features.file import load_definitions
from rtrec_ray.notification.base import EventFilter
from rtrec_ray.samples.file import load_definition
from rtrec_ray.workflow.events import WORKFLOW_REQUESTED
from rtrec_ray.workflow.file import load_workflow

pytestmark = pytest.mark.server

CONFIGS = Path(__file__).parents[2] / "configs"
FILE = "name: training\nnodes: [{name: base, command: 'true'}]\nrules: []\n"


def start(dsn: str, directory: Path, *, workflow: str | None, mlflow: str | None = "http://127.0.0.1:9") -> System:
    return prepare(
        System(
            settings=Settings(definitions=Definitions(workflow=workflow)),
            directory=directory,
            addresses=Addresses(postgres=dsn, mlflow=mlflow),
            features=load_definitions(CONFIGS / "features.yaml"),
            samples=load_definition(CONFIGS / "samples.yaml"),
        )
    )


def applied(system: System) -> list[str]:
    """The digests that the scheduler was asked to go by, in order."""
    with open_desk(system) as desk:
        asked = desk.events.list(EventFilter(type=WORKFLOW_REQUESTED), after_offset=0)
    return [event.context["digest"] for event in asked]


def test_a_file_is_applied_at_the_first_start_with_it_and_not_again(dsn: str, tmp_path: Path) -> None:
    shipped, own, changed = CONFIGS / "workflow.yaml", tmp_path / "own.yaml", tmp_path / "changed.yaml"
    own.write_text(FILE)
    changed.write_text(FILE.replace("'true'", "'false'"))
    start(dsn, tmp_path, workflow=None)
    system = start(dsn, tmp_path, workflow=None)
    with open_desk(system) as desk:
        desk.workflows.apply(load_workflow(own))  # by hand
    start(dsn, tmp_path, workflow=None)
    system = start(dsn, tmp_path, workflow=str(changed))
    assert applied(system) == [load_workflow(file).digest for file in (shipped, own, changed)]


def test_a_system_that_is_told_to_or_cannot_train_has_no_workflow(dsn: str, tmp_path: Path) -> None:
    start(dsn, tmp_path, workflow="none")
    assert applied(start(dsn, tmp_path, workflow=None, mlflow=None)) == []
