"""The system goes by the file of its workflow when it starts, and not in place of what people applied by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.workflow_log import occurred
from configs.settings import Definitions, Settings
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.app.workflow import open_desk
from rtrec_ray.features.file import load_definitions
from rtrec_ray.notification.base import EventFilter
from rtrec_ray.samples.file import load_definition
from rtrec_ray.workflow.events import WORKFLOW_REQUESTED
from rtrec_ray.workflow.file import load_workflow
from rtrec_ray.workflow.scheduler import Scheduler

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


def schedule(system: System) -> str:
    """Let a scheduler take what it was asked to go by; answers the digest in force."""
    with open_desk(system) as desk:
        session = desk.workflows.open_session(owner="s", ttl_ms=10_000)
        loaded = desk.workflows.load()
        scheduler = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)
        for event in desk.events.list(after_offset=loaded.position):
            if (definition := desk.workflows.definition(event.context["digest"])) is not None:
                scheduler.know(definition)
            scheduler.handle(occurred(event), now_ms=event.time_ms, wall_ms=event.time_ms)
        session.commit(scheduler.changes())
        session.close()
        return desk.workflows.load().workflows["training"].state.digest


def test_a_start_goes_by_the_file_but_not_in_place_of_what_was_applied_by_hand(dsn: str, tmp_path: Path) -> None:
    shipped = load_workflow(CONFIGS / "workflow.yaml").digest
    own, hand = tmp_path / "own.yaml", tmp_path / "hand.yaml"
    own.write_text(FILE)
    hand.write_text(FILE.replace("'true'", "'false'"))
    for file, expected in ((None, shipped), (None, shipped), (str(own), load_workflow(own).digest), (None, shipped)):
        assert schedule(start(dsn, tmp_path, workflow=file)) == expected
    system = start(dsn, tmp_path, workflow=None)
    with open_desk(system) as desk:
        assert desk.events.list(after_offset=desk.workflows.load().position) == (), "nothing is asked for twice"
        desk.workflows.apply(load_workflow(hand))
    by_hand = schedule(system)
    assert by_hand == load_workflow(hand).digest
    assert schedule(start(dsn, tmp_path, workflow=str(own))) == by_hand
    with open_desk(system) as desk:
        desk.workflows.apply(load_workflow(own))
    schedule(system)
    assert schedule(start(dsn, tmp_path, workflow=str(own))) == load_workflow(own).digest
    assert schedule(start(dsn, tmp_path, workflow=None)) == shipped


def test_a_system_that_is_told_to_or_cannot_train_has_no_workflow(dsn: str, tmp_path: Path) -> None:
    start(dsn, tmp_path, workflow="none")
    system = start(dsn, tmp_path, workflow=None, mlflow=None)
    with open_desk(system) as desk:
        assert list(desk.events.list(EventFilter(type=WORKFLOW_REQUESTED), after_offset=0)) == []
