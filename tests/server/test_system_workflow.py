"""The system goes by the file of its workflow when it starts, and not in place of what people applied by hand."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from actors.workflow_log import occurred
from configs.settings import Definitions as DefinitionFiles
from configs.settings import Settings
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.snapshot import entering, keep_snapshot, leave_workflow, workflow_snapshot
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.app.views import apply_views
from rtrec_ray.app.workflow import open_desk
from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.file import load_definitions, parse_definitions
from rtrec_ray.metadata import list_entries
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.notification.base import FEATURES, FEATURES_APPLIED, EventFilter
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.samples.file import load_definition, parse_definition
from rtrec_ray.stores.samples.live import apply_definition
from rtrec_ray.workflow.events import WORKFLOW_REQUESTED
from rtrec_ray.workflow.file import load_workflow, parse_workflow
from rtrec_ray.workflow.scheduler import Scheduler

pytestmark = pytest.mark.server

CONFIGS = Path(__file__).parents[2] / "configs"
FILE = "name: training\nnodes: [{name: base, command: 'true'}]\nrules: []\n"


def start(
    dsn: str,
    directory: Path,
    *,
    workflow: str | None,
    mlflow: str | None = "http://127.0.0.1:9",
    features: Definitions | None = None,
    **chosen: str,
) -> System:
    return prepare(
        System(
            settings=Settings(definitions=DefinitionFiles(workflow=workflow, **chosen)),
            directory=directory,
            addresses=Addresses(postgres=dsn, mlflow=mlflow),
            features=features or load_definitions(CONFIGS / "features.yaml"),
            samples=load_definition(CONFIGS / "samples.yaml"),
        )
    )


def schedule(system: System, name: str = "training") -> str:
    """Let a scheduler take what it was asked to go by; answers the workflow's digest in force."""
    with open_desk(system) as desk:
        session = desk.workflows.open_session(owner="s", ttl_ms=10_000)
        loaded = desk.workflows.load()
        scheduler = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)
        for event in desk.events.list(after_offset=loaded.position):
            if (definition := desk.workflows.definition(event.context.get("digest", ""))) is not None:
                scheduler.know(definition)
            scheduler.handle(occurred(event), now_ms=event.time_ms, wall_ms=event.time_ms)
        session.commit(scheduler.changes())
        session.close()
        return desk.workflows.load().workflows[name].state.digest


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
    system = start(dsn, tmp_path, workflow=None, mlflow=None, workflow_features="none")
    assert asked_for(system) == ["features"], "the first start's"


def asked_for(system: System) -> list[str]:
    with open_desk(system) as desk:
        return [event.namespace for event in desk.events.list(EventFilter(type=WORKFLOW_REQUESTED), after_offset=0)]


def test_the_workflow_of_the_features_is_gone_by_without_training_too(dsn: str, tmp_path: Path) -> None:
    start(dsn, tmp_path, workflow=None, mlflow=None, workflow_features="none")
    own = tmp_path / "own.yaml"
    own.write_text(FILE.replace("training", "features"))
    for file in (CONFIGS / "workflow_features.yaml", own):
        system = start(dsn, tmp_path, workflow=None, mlflow=None, workflow_features=str(file))
        assert schedule(system, "features") == load_workflow(file).digest
    assert asked_for(system) == ["features", "features"]
    with closing(PostgresMetadataStore(system.postgres)) as store:
        (entity,) = store.entities("workflows", name="features")
        files = {each.snapshot: each.files for each in store.snapshots()}[entity.body["snapshot"]]
    assert entity.body["digest"] == load_workflow(own).digest
    assert files["workflow_features.yaml"] == own.read_text()


def test_views_that_come_with_a_later_start_are_told_of_and_those_of_the_first_are_not(
    dsn: str, tmp_path: Path
) -> None:
    first = load_definitions(CONFIGS / "features.yaml")
    again = replace(first, views=(*first.views, *(replace(view, version=2) for view in first.views[:2])))
    told = []
    for features in (first, first, again, again):
        with open_desk(start(dsn, tmp_path, workflow="none", features=features)) as desk:
            told.append([event.value for event in desk.events.list(EventFilter(type=FEATURES_APPLIED))])
    new = ",".join(view.id for view in again.views[-2:])
    assert told == [[], [], [new], [new]]


def test_the_event_of_new_views_is_seen_if_and_only_if_they_are(dsn: str, tmp_path: Path) -> None:
    system = start(dsn, tmp_path, workflow="none")
    new = replace(system.features, views=(replace(system.features.views[0], version=2),))
    wrong = replace(system.features, views=(replace(system.features.views[0], version=2, window_ms=120_000),))
    with closing(Pool(system.postgres, size=2)) as pool, open_desk(system) as desk:

        def apply(definitions: Definitions) -> tuple[str, ...]:
            with pool.transaction() as cursor:
                added = apply_views(system, definitions, pool=pool, cursor=cursor, clock=system.clock)
                assert len(desk.events.list(EventFilter(key=FEATURES))) == before, "nothing is seen before the commit"
                if fails:
                    raise RuntimeError("after the event")
            return added

        before, fails = 0, True
        with pytest.raises(RuntimeError):
            apply(new)
        assert desk.events.list(EventFilter(key=FEATURES)) == ()
        fails = False
        assert apply(new) == (new.views[0].id,)
        (event,) = desk.events.list(EventFilter(key=FEATURES))
        assert (event.type, event.value, event.context) == (
            FEATURES_APPLIED,
            new.views[0].id,
            {"views": [new.views[0].id]},
        )
        before = 1
        assert apply(new) == ()
        with pytest.raises(DefinitionInvalid):
            apply(wrong)
        assert len(desk.events.list(EventFilter(key=FEATURES))) == 1


def test_a_snapshot_has_what_was_applied_while_the_system_ran(dsn: str, tmp_path: Path) -> None:
    system = start(dsn, tmp_path, workflow=None)
    schedule(system)
    before = keep_snapshot(system)
    hand = replace(load_workflow(CONFIGS / "workflow.yaml"), concurrency=3)
    (view, *_) = system.features.views
    other = replace(system.features, views=(replace(view, version=view.version + 1),))
    labels = replace(system.samples, version=system.samples.version + 1, wait_ms=system.samples.wait_ms + 1_000)
    with open_desk(system) as desk, closing(Pool(system.postgres, size=1)) as pool:
        desk.workflows.apply(hand)
        with pool.transaction() as cursor:
            apply_definition(cursor, labels)
            apply_views(system, other, pool=pool, cursor=cursor, clock=system.clock)
    assert schedule(system) == hand.digest

    kept = keep_snapshot(system)
    assert kept not in (before, workflow_snapshot(system).snapshot), "the files are as they were"
    with closing(PostgresMetadataStore(system.postgres)) as store:
        (files,) = [each.files for each in store.snapshots() if each.snapshot == kept]
    assert parse_workflow(files["in-force/workflow-training.yaml"]).digest == hand.digest
    assert parse_definition(files["in-force/samples.yaml"]) == labels
    names = sorted(name for name in files if name.startswith("in-force/features"))
    views = [view for name in names for view in parse_definitions(files[name]).views]
    assert len(views) == len(system.features.views) + 1
    assert set(views) == {*system.features.views, *other.views}
    assert views.index(view) < views.index(other.views[0]), "the older is applied first"


def test_a_workflow_that_people_applied_is_in_the_metadata_with_its_nodes(dsn: str, tmp_path: Path) -> None:
    system = start(dsn, tmp_path, workflow=None)
    hand = replace(load_workflow(CONFIGS / "workflow.yaml"), concurrency=3)
    with open_desk(system) as desk, closing(PostgresMetadataStore(system.postgres)) as store:
        desk.workflows.apply(hand, also=entering(system, hand, by_hand=True))
        kept = store.snapshots()[0].snapshot
        jobs = {entry["name"] for entry in list_entries(store, "jobs")}
        (entered,) = [entry for entry in list_entries(store, "workflows") if entry["name"] == hand.name]
    assert {"training/base", "training/gate", "features/daily"} <= jobs
    assert (entered["body"]["snapshot"], entered["body"]["by_hand"]) == (kept, True)
    assert schedule(system) == hand.digest
    assert schedule(start(dsn, tmp_path, workflow=None)) == hand.digest, "a start does not replace it"


def test_a_node_or_a_workflow_that_is_gone_is_no_longer_in_the_metadata(dsn: str, tmp_path: Path) -> None:
    system = start(dsn, tmp_path, workflow=None)
    whole = load_workflow(CONFIGS / "workflow.yaml")
    left = replace(whole, nodes=whole.nodes[:1], rules=())
    with open_desk(system) as desk, closing(PostgresMetadataStore(system.postgres)) as store:

        def jobs() -> set[str]:
            return {entry["name"] for entry in list_entries(store, "jobs") if entry["name"].startswith("training/")}

        assert jobs() == {f"training/{node.name}" for node in whole.nodes}
        desk.workflows.apply(left, also=entering(system, left, by_hand=True))
        assert jobs() == {f"training/{whole.nodes[0].name}"}
        leave_workflow(store, "training")
        assert jobs() == set()
        assert [entry["name"] for entry in list_entries(store, "workflows")] == ["features", "main"]
