"""Every metadata store keeps these laws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rtrec_ray.errors import ConfigInvalid, MetadataConflict, MetadataInvalid, MetadataUnknown, RtrecError
from rtrec_ray.metadata import (
    Dataset,
    Entity,
    EntityKind,
    JobRun,
    MemoryMetadataStore,
    MetadataStore,
    ModelLineage,
    PostgresMetadataStore,
    list_entries,
    show_entry,
    system_datasets,
    take_snapshot,
)
from rtrec_ray.metadata.readers import Places, open_dataset
from rtrec_ray.postgres.connection import PostgresOptions

SAMPLES = Dataset(name="samples", address="samples.current", format="postgresql", columns={"label": "smallint"})
RUN = JobRun(run_id="r1", job="train-base", kind="batch", started_ms=1_000, context={"rows": 3})


def _model(version: str, parent: str | None, *, at_ms: int = 0) -> ModelLineage:
    return ModelLineage(
        version=version,
        kind="dcn",
        parent=parent,
        run_id="r1",
        from_seq=1,
        to_seq=9,
        feature_version="f1",
        label_version="l1",
        created_ms=at_ms,
    )


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest) -> Iterator[MetadataStore]:
    made: MetadataStore
    if request.param == "memory":
        made = MemoryMetadataStore()
    else:
        made = PostgresMetadataStore(PostgresOptions(dsn=request.getfixturevalue("dsn")))
    yield made
    made.close()


def test_a_datasets_version_rises_only_when_it_changes(store: MetadataStore) -> None:
    assert store.dataset("samples") is None
    assert store.put_dataset(SAMPLES) == replace(SAMPLES, version=1)
    assert store.put_dataset(SAMPLES).version == 1
    changed = store.put_dataset(replace(SAMPLES, columns={"label": "smallint", "arm": "text"}))
    assert changed.version == 2
    assert store.dataset("samples") == changed


def test_the_systems_datasets_come_back_by_name(store: MetadataStore) -> None:
    known = system_datasets(history_uri="s3://bucket/history", topics="k:9092")
    for dataset in known:
        store.put_dataset(dataset)
    assert [dataset.name for dataset in store.datasets()] == sorted(dataset.name for dataset in known)
    found = store.dataset("behavior-history")
    assert found is not None
    assert (found.address, found.columns["raw"]) == ("s3://bucket/history/topic=behavior", "Binary")


def test_an_entity_is_taken_out_of_the_version_that_was_seen(store: MetadataStore) -> None:
    project = Entity(kind="projects", name="shop", body={})
    assert not store.drop_entity("projects", "shop")
    store.put_entity(project)
    with pytest.raises(MetadataConflict):
        store.drop_entity("projects", "shop", expected=2)
    assert store.drop_entity("projects", "shop", expected=1)
    assert store.entities("projects") == ()
    assert store.put_entity(project).version == 1
    assert store.drop_entity("projects", "shop")


def test_a_run_ends_once(store: MetadataStore) -> None:
    store.start_run(RUN)
    store.start_run(replace(RUN, job="another"))
    assert store.run("r1") == RUN
    store.end_run("r1", state="failed", ended_ms=2_000, context={"reason": "no samples"})
    store.end_run("r1", state="succeeded", ended_ms=3_000)
    ended = replace(RUN, state="failed", ended_ms=2_000, context={"rows": 3, "reason": "no samples"})
    assert store.run("r1") == ended
    store.start_run(replace(RUN, run_id="r2", started_ms=1_500))
    assert [run.run_id for run in store.runs()] == ["r2", "r1"]
    assert [run.run_id for run in store.runs(limit=1)] == ["r2"]


def test_lineage_is_written_once_and_followed_to_the_base(store: MetadataStore) -> None:
    for version, parent in [("1", None), ("2", "1"), ("3", "2"), ("9", "8")]:
        store.put_lineage(_model(version, parent, at_ms=int(version)))
    store.put_lineage(_model("3", None))
    assert [one.version for one in store.ancestry("3")] == ["3", "2", "1"]
    assert [one.version for one in store.ancestry("9")] == ["9"]
    assert store.lineage("3") == _model("3", "2", at_ms=3)
    assert store.lineage("7") is None
    assert [one.version for one in store.lineages(limit=2)] == ["9", "3"]


def test_ancestry_ends_even_when_two_versions_name_each_other(store: MetadataStore) -> None:
    store.put_lineage(_model("1", "2"))
    store.put_lineage(_model("2", "1"))
    assert [one.version for one in store.ancestry("1")] == ["1", "2"]


def test_what_is_shown_is_plain_and_what_is_unknown_is_named(store: MetadataStore) -> None:
    store.put_lineage(_model("1", None))
    store.put_lineage(_model("2", "1"))
    assert [entry["version"] for entry in list_entries(store, "models")] == ["1", "2"]
    assert [one["version"] for one in show_entry(store, "models", "2")["ancestors"]] == ["1"]
    with pytest.raises(RtrecError, match="no 'x' among the datasets"):
        show_entry(store, "datasets", "x")
    with pytest.raises(RtrecError, match="'things'"):
        list_entries(store, "things")


SHOP = EntityKind(
    name="shops", schema={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)


def test_a_change_made_to_an_older_version_is_refused(store: MetadataStore) -> None:
    first = store.put_dataset(SAMPLES, expected=0)
    second = store.put_dataset(replace(SAMPLES, address="a"), expected=first.version)
    assert second.version == 2
    for expected in (0, 1, 3):
        with pytest.raises(MetadataConflict, match=f"'samples' is at version 2, not {expected}"):
            store.put_dataset(replace(SAMPLES, address="b"), expected=expected)
    assert store.dataset("samples") == second
    with pytest.raises(MetadataConflict, match="version 0, not 4"):
        store.put_dataset(replace(SAMPLES, name="other"), expected=4)
    assert store.dataset("other") is None


def test_entities_of_own_kinds_follow_their_schema(store: MetadataStore) -> None:
    with pytest.raises(MetadataUnknown, match="'shops'"):
        store.put_entity(Entity(kind="shops", name="s", body={"city": "Bern"}))
    assert store.put_kind(SHOP).version == 1
    made = store.put_entity(Entity(kind="shops", name="s", body={"city": "Bern"}))
    assert store.entities("shops") == (made,) == store.entities("shops", name="s")
    with pytest.raises(MetadataInvalid, match="shops 's': city: 7 is not of type 'string'"):
        store.put_entity(Entity(kind="shops", name="s", body={"city": 7}))
    moved = store.put_entity(replace(made, body={"city": "Basel"}), expected=made.version)
    assert moved.version == 2
    with pytest.raises(MetadataConflict):
        store.put_entity(replace(made, body={"city": "Chur"}), expected=made.version)
    assert list_entries(store, "shops") == [{"kind": "shops", "name": "s", "body": {"city": "Basel"}, "version": 2}]


@pytest.mark.parametrize(
    "kind",
    [EntityKind(name="runs", schema={}), EntityKind(name="x", schema={"required": 1})],
    ids=["reserved", "schema"],
)
def test_a_kind_that_cannot_be_is_refused(store: MetadataStore, kind: EntityKind) -> None:
    with pytest.raises(MetadataInvalid):
        store.put_kind(kind)


def test_a_schema_makes_nobody_fetch_an_address(store: MetadataStore, tmp_path: Path) -> None:
    (tmp_path / "any.json").write_text("{}")
    store.put_kind(EntityKind(name="far", schema={"$ref": (tmp_path / "any.json").as_uri()}))
    with pytest.raises(MetadataInvalid, match="refers to what is not in it"):
        store.put_entity(Entity(kind="far", name="f", body={}))


def test_a_snapshot_is_kept_once_by_its_content(store: MetadataStore) -> None:
    first = take_snapshot("shop", "main", {"features.yaml": "views: []"}, created_ms=1)
    again = take_snapshot("shop", "main", {"features.yaml": "views: []"}, created_ms=9)
    other = take_snapshot("shop", "main", {"features.yaml": "views: [x]"}, created_ms=5)
    for snapshot in (first, again, other):
        store.put_snapshot(snapshot)
    assert store.snapshots() == (other, first)
    assert store.snapshots(snapshot=first.snapshot) == (first,)
    assert show_entry(store, "snapshots", other.snapshot)["files"] == {"features.yaml": "views: [x]"}


def test_a_run_alone_ends_those_before_it(store: MetadataStore) -> None:
    store.start_run(RUN)
    store.start_run(replace(RUN, run_id="r0", job="other"))
    store.start_run(replace(RUN, run_id="r2", started_ms=5_000), alone=True)
    states = {run.run_id: (run.state, run.ended_ms) for run in store.runs()}
    assert states == {"r1": ("failed", 5_000), "r0": ("running", None), "r2": ("running", None)}


def test_a_dataset_that_nothing_reads_is_named(store: MetadataStore) -> None:
    store.put_dataset(replace(SAMPLES, format="csv"))
    with pytest.raises(ConfigInvalid, match="'csv'"):
        open_dataset(store, "samples", Places())
    store.put_dataset(SAMPLES)
    with pytest.raises(ConfigInvalid, match="address was not given"):
        open_dataset(store, "samples", Places())
    with pytest.raises(MetadataUnknown, match="'x'"):
        open_dataset(store, "x", Places())
