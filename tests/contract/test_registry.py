"""Every model center keeps these laws."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from rtrec_ray.errors import ModelRejected, RegistryUnavailable
from rtrec_ray.metadata import MemoryMetadataStore
from rtrec_ray.notification import MemoryNotificationStore
from rtrec_ray.registry.base import Draft, ModelCenter, rollback
from rtrec_ray.registry.changes import MemoryChangeBook
from rtrec_ray.registry.lifecycle import LifeCycle
from rtrec_ray.registry.memory import MemoryModelCenter
from rtrec_ray.registry.mlflow import MlflowModelCenter
from rtrec_ray.registry.options import RegistryOptions

DRAFT = Draft(
    kind="increment",
    model="dcn",
    from_seq=11,
    to_seq=20,
    trained_to_ms=1_700_000_000_000,
    created_ms=1_700_000_001_000,
    parent="3",
    base="1",
    job="incremental-1",
    definitions="model=0a1b",
    parameters={"seed": "17"},
    metrics={"log_loss": 0.25},
)


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=[pytest.mark.server, pytest.mark.slow])])
def center(request: pytest.FixtureRequest, tmp_path: Path) -> ModelCenter:
    if request.param == "memory":
        return MemoryModelCenter(tmp_path / "center")
    name = f"rtrec-{uuid.uuid4().hex[:8]}"  # the server is shared by the session
    options = RegistryOptions(url=request.getfixturevalue("mlflow_url"), model_name=name, experiment=name)
    return MlflowModelCenter(options)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "saved_model").mkdir(parents=True)
    (folder / "model.json").write_text('{"model": "dcn"}')
    (folder / "saved_model" / "graph.pb").write_bytes(bytes(range(256)))
    return folder


def test_a_version_comes_back_with_all_that_made_it(center: ModelCenter, artifact: Path) -> None:
    made = center.log_version(artifact, DRAFT)
    assert (made.status, made.draft, made.champion_ms) == ("generated", DRAFT, None)
    assert center.get(made.version) == made
    assert center.list() == [made]


def test_the_artifact_comes_back_byte_by_byte(center: ModelCenter, artifact: Path, tmp_path: Path) -> None:
    version = center.log_version(artifact, DRAFT).version
    folder = center.download(version, tmp_path / "there")
    assert (folder / "model.json").read_text() == '{"model": "dcn"}'
    assert (folder / "saved_model" / "graph.pb").read_bytes() == bytes(range(256))


def test_versions_are_listed_newest_first_up_to_the_limit(center: ModelCenter, artifact: Path) -> None:
    made = [center.log_version(artifact, DRAFT).version for _ in range(3)]
    assert [version.version for version in center.list(limit=2)] == made[:0:-1]


def test_nothing_serves_before_a_version_is_champion(center: ModelCenter, artifact: Path) -> None:
    first, second = (center.log_version(artifact, DRAFT).version for _ in range(2))
    assert center.champion() is None
    center.set_champion(first)
    champion = center.champion()
    assert champion is not None
    assert (champion.version, champion.status) == (first, "validated")
    center.set_champion(second)
    champion = center.champion()
    assert champion is not None
    assert champion.version == second


def test_a_rejected_version_keeps_its_reason_and_leaves_the_champion(center: ModelCenter, artifact: Path) -> None:
    champion, bad = (center.log_version(artifact, DRAFT).version for _ in range(2))
    center.set_champion(champion)
    center.reject(bad, reason="its log loss is 'above' the champion's ü")
    rejected, still = center.get(bad), center.champion()
    assert rejected is not None
    assert (rejected.status, rejected.reason) == ("rejected", "its log loss is 'above' the champion's ü")
    assert still is not None
    assert still.version == champion


def test_rollback_goes_to_the_version_that_served_before(center: ModelCenter, artifact: Path) -> None:
    first, unused, second = (center.log_version(artifact, DRAFT).version for _ in range(3))
    center.set_champion(first)
    center.set_champion(second)
    center.reject(unused, reason="worse")
    back = rollback(center, reason="clicks fell")
    assert back is not None
    assert back.version == first
    rejected, champion = center.get(second), center.champion()
    assert rejected is not None
    assert (rejected.status, rejected.reason) == ("rejected", "clicks fell")
    assert champion is not None
    assert champion.version == first


def test_without_an_earlier_champion_rollback_changes_nothing(center: ModelCenter, artifact: Path) -> None:
    only = center.log_version(artifact, DRAFT).version
    center.set_champion(only)
    assert rollback(center, reason="why not") is None
    champion = center.champion()
    assert champion is not None
    assert champion.status == "validated"


def test_an_unknown_version_is_absent_and_cannot_serve(center: ModelCenter, tmp_path: Path) -> None:
    assert center.get("999") is None
    with pytest.raises(ModelRejected, match="no model version 999"):
        center.set_champion("999")
    with pytest.raises(ModelRejected, match="no model version 999"):
        center.download("999", tmp_path)


def test_a_versions_stage_follows_its_life_and_its_status_is_the_gates_word(
    center: ModelCenter, artifact: Path
) -> None:
    version = center.log_version(artifact, DRAFT)
    assert version.stage == "generated"
    assert center.set_champion(version.version).stage == "validated"
    center.mark(version.version, "deployed")
    found = center.get(version.version)
    assert found is not None
    assert (found.stage, found.status) == ("deployed", "validated")
    assert center.reject(version.version, reason="bad").stage == "rejected"


def test_an_alias_set_by_hand_is_noticed_and_told_once(center: ModelCenter, artifact: Path) -> None:
    events = MemoryNotificationStore()
    life = LifeCycle(center, MemoryChangeBook(events, MemoryMetadataStore()))
    first, second = (center.log_version(artifact, DRAFT).version for _ in range(2))
    life.choose(first, sender="gate")
    if isinstance(center, MlflowModelCenter):
        center._client.set_registered_model_alias(center._name, "champion", second)
    else:
        assert isinstance(center, MemoryModelCenter)
        center.set_alias(second)
    assert [life.notice() for _ in range(2)] == [True, False]
    assert [(event.type, event.value, event.sender) for event in events.list()] == [
        ("MODEL_VALIDATED", first, "gate"),
        ("MODEL_VALIDATED", second, "mlflow"),
        ("MODEL_DEPRECATED", first, "mlflow"),
    ]


def test_a_run_takes_points_over_time(center: ModelCenter) -> None:
    run = center.open_run("incremental", parameters={"publish_every_s": "60"})
    center.log_metrics(run, {"log_loss": 0.5, "auc": float("nan")}, step=10)
    center.log_metrics(run, {"log_loss": 0.4}, step=20)
    center.close_run(run)


def test_an_absent_server_is_named_within_seconds() -> None:
    with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:9"):
        MlflowModelCenter(RegistryOptions(url="http://127.0.0.1:9", max_retries=0))
