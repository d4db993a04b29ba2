"""Every metadata store keeps these laws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from rtrec_ray.errors import RtrecError
from rtrec_ray.metadata import (
    Dataset,
    JobRun,
    MemoryMetadataStore,
    MetadataStore,
    ModelLineage,
    PostgresMetadataStore,
    list_entries,
    show_entry,
    system_datasets,
)
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
