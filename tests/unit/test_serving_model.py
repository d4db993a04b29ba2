"""A version that training publishes is one that serving can score with, and gives the same probabilities."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtrec_ray.errors import ModelRejected
from rtrec_ray.registry.artifact import CARD, SAVED_MODEL
from rtrec_ray.registry.base import Draft
from rtrec_ray.registry.memory import MemoryModelCenter
from serving.connect import Registry
from serving.model import fetch, load
from serving.rank import columns_of, score

pytestmark = pytest.mark.slow  # TensorFlow's import

ROOT = Path(__file__).parents[2]
DRAFT = Draft(kind="base", model="dcn", from_seq=1, to_seq=9, trained_to_ms=1_700_000_000_000, created_ms=1)

SHARED = {"user_id": 7, "page_id": 3, "country": "CN", "user_5m_view": 4, "user_last_items": [5, 9], "unknown": "x"}
ROWS = [{"item_id": i, "item_category": str(i % 3), "item_recently_viewed": i % 2} for i in range(50)]


@pytest.fixture(scope="module")
def learner():
    # TensorFlow takes seconds to import, and most tests of serving do without.
    from training.definition import load_definition
    from training.loop import Learner

    learner = Learner(load_definition(ROOT / "configs" / "model.yaml"), base_rate=0.01)
    columns = columns_of(learner.definition.model_inputs, shared=SHARED, rows=ROWS)
    for _ in range(3):
        # Weights that no item shares with another, or equal scores would prove nothing.
        learner.train(columns, np.arange(len(ROWS)) % 2, np.ones(len(ROWS)))
    return learner


@pytest.fixture(scope="module")
def center(learner, tmp_path_factory):
    from training.publish import Exporter, publish

    center = MemoryModelCenter(tmp_path_factory.mktemp("registry"))
    publish(center, Exporter(learner.definition, base_rate=0.01), learner.state(), DRAFT)
    return center


def test_serving_scores_a_published_version_as_training_does(learner, center):
    model = fetch(center, "1")
    served = score(model, shared=SHARED, rows=ROWS)
    trained = learner.score(columns_of(learner.definition.model_inputs, shared=SHARED, rows=ROWS))
    np.testing.assert_allclose(served, trained, rtol=1e-4)
    assert len(set(served.round(9))) > 10
    assert (model.version, model.trained_to_ms) == ("1", DRAFT.trained_to_ms)


def test_a_request_without_any_feature_is_scored(center):
    assert score(fetch(center, "1"), shared={}, rows=[{}]).shape == (1,)


@pytest.mark.parametrize("broken", [CARD, f"{SAVED_MODEL}/saved_model.pb", f"{SAVED_MODEL}/variables"])
def test_a_damaged_artifact_is_rejected_by_name(center, tmp_path, broken):
    directory = center.download("1", tmp_path)
    victim = directory / broken
    if victim.is_dir():
        for file in victim.iterdir():
            file.unlink()
    else:
        victim.write_bytes(b"\x00\xffgarbage")
    with pytest.raises(ModelRejected):
        load(directory, version="1")


def test_the_base_that_arms_are_given_is_at_the_root_of_the_champions_chain(tmp_path):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    center = MemoryModelCenter(tmp_path / "center")
    registry = Registry(lambda: center)
    assert (registry.champion(), registry.base()) == (None, None)
    center.log_version(artifact, DRAFT)
    for parent in ("1", "2"):
        center.log_version(artifact, replace(DRAFT, kind="increment", parent=parent, base="1"))
    found = []
    for version in ("1", "2", "3"):
        center.set_champion(version)
        found.append((registry.champion(), registry.base()))
    assert found == [("1", "1"), ("2", "1"), ("3", "1")]
