"""The models and their step: what they answer before, while and after they learn."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from rtrec_ray.errors import ConfigInvalid, ModelRejected
from rtrec_ray.registry.artifact import ModelCard, read_card, write_card
from tests.sample_rows import sample_rows
from training.dataset import encode
from training.definition import DcnOptions, LogisticOptions, ModelDefinition, definition_from_json, load_definition
from training.loop import Learner
from training.metrics import auc
from training.publish import Exporter, load_state
from training.served import load_served

pytestmark = pytest.mark.slow  # importing TensorFlow takes about 8 s

SHIPPED = Path(__file__).parents[2] / "configs" / "model.yaml"


def small(family: str = "dcn", **changes: object) -> ModelDefinition:
    """The shipped definition, small and quick to learn."""
    shipped = load_definition(SHIPPED)
    return msgspec.structs.replace(
        shipped,
        family=family,
        batch_rows=128,
        dcn=DcnOptions(dim=4, cross_layers=1, hidden=(16,), learning_rate=0.01),
        logistic=LogisticOptions(learning_rate=0.3, l2=0.1),
        **changes,
    )


def batch_of(definition: ModelDefinition, count: int, *, seed: int = 0):
    return encode(sample_rows(count, seed=seed), definition.model_inputs, held_out_percent=0)


def learn(learner: Learner, batch, *, weight: float = 1.0) -> None:
    step = learner.share
    for start in range(0, len(batch), step):
        part = batch[start : start + step]
        learner.train(part.columns, part.label, np.full(len(part), weight))


@pytest.fixture(scope="module", params=["dcn", "logistic"])
def family(request):
    return request.param


def test_before_the_first_sample_everybody_gets_the_base_rate(family):
    definition = small(family)
    scores = Learner(definition, base_rate=0.005).score(batch_of(definition, 50).columns)
    np.testing.assert_allclose(scores, 0.005, rtol=1e-4)


def test_a_planted_truth_is_learnt(family):
    definition = small(family)
    learner = Learner(definition, base_rate=0.15)
    for _ in range(3):
        learn(learner, batch_of(definition, 4_000))
    exam = batch_of(definition, 2_000, seed=1)
    scores = learner.score(exam.columns)
    # Only gender × category tells: a model without crossings can but learn the items.
    assert auc(exam.label, scores) > (0.75 if family == "dcn" else 0.45)
    assert scores.sum() == pytest.approx(exam.label.sum(), rel=0.2)


def test_the_same_seed_and_samples_give_the_same_model_and_another_seed_another():
    states = []
    for seed in (17, 17, 18):
        learner = Learner(small(seed=seed), base_rate=0.15)
        learn(learner, batch_of(learner.definition, 500))
        states.append(learner.state())
    first, same, other = states
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_a_sample_is_scored_before_it_is_learnt(family):
    definition = small(family)
    learner = Learner(definition, base_rate=0.15)
    learn(learner, batch_of(definition, 512))
    batch = batch_of(definition, 128, seed=3)
    before = learner.score(batch.columns)
    result = learner.train(batch.columns, batch.label, np.ones(128))
    np.testing.assert_allclose(result.probability, before, rtol=1e-5)


def test_rows_of_weight_zero_teach_nothing(family):
    definition = small(family)
    with_padding, without = (Learner(definition, base_rate=0.15) for _ in range(2))
    batch = batch_of(definition, 128)
    weight = np.ones(128)
    weight[64:] = 0.0
    with_padding.train(batch.columns, batch.label, weight)
    half = batch[:64]
    without.train(half.columns, half.label, np.ones(64))
    ours, theirs = with_padding.state(), without.state()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_going_on_from_a_stored_state_is_as_never_having_stopped(family, tmp_path):
    definition = small(family)
    through = Learner(definition, base_rate=0.15)
    learn(through, batch_of(definition, 512))
    Exporter(definition, base_rate=0.15).write(tmp_path, through.state())
    learn(through, batch_of(definition, 512, seed=1))

    again = Learner(definition, base_rate=0.15)
    again.restore(load_state(tmp_path))
    learn(again, batch_of(definition, 512, seed=1))
    ours, theirs = through.state(), again.state()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_what_serves_scores_as_what_was_trained(family, tmp_path):
    definition = small(family)
    learner = Learner(definition, base_rate=0.15)
    learn(learner, batch_of(definition, 512))
    Exporter(definition, base_rate=0.15).write(tmp_path, learner.state())
    write_card(tmp_path, _card(definition))
    served = load_served(tmp_path)
    exam = batch_of(definition, 200, seed=1)
    np.testing.assert_allclose(served.score(exam.columns), learner.score(exam.columns), rtol=1e-4)
    assert definition_from_json(served.card.configuration) == definition


def test_an_artifact_that_is_not_whole_is_rejected_by_name(tmp_path):
    with pytest.raises(ModelRejected, match=r"model\.json"):
        load_served(tmp_path)
    write_card(tmp_path, _card(small()))
    assert read_card(tmp_path).model == "dcn"
    with pytest.raises(ModelRejected, match="does not load"):
        load_served(tmp_path)
    with pytest.raises(ModelRejected, match=r"weights\.npz"):
        load_state(tmp_path)


def test_a_gradient_that_is_no_number_is_not_applied(family):
    definition = small(family)
    learner = Learner(definition, base_rate=0.15)
    before = learner.state()
    batch = batch_of(definition, 128)
    label = batch.label.copy()
    label[5] = np.nan
    assert not learner.train(batch.columns, label, np.ones(128)).finite
    weights = {name: values for name, values in learner.state().items() if name.startswith("model/")}
    for name, values in weights.items():
        np.testing.assert_allclose(values, before[name], atol=1e-6)


def test_an_absent_position_counts_as_the_first():
    definition = small()
    learner = Learner(definition, base_rate=0.15)
    learn(learner, batch_of(definition, 1_000))
    columns = batch_of(definition, 40, seed=2).columns
    shown_first, unknown, second = ({**columns, "position": np.full(40, text, dtype=object)} for text in ("1", "", "2"))
    np.testing.assert_array_equal(learner.score(unknown), learner.score(shown_first))
    assert not np.allclose(learner.score(unknown), learner.score(second))


def test_an_item_in_a_list_is_the_item_of_the_category():
    """A learner that knows an item only as shown moves what a list with that item says."""
    definition = small()
    learner = Learner(definition, base_rate=0.15)
    inputs = definition.model_inputs
    rows = sample_rows(400)
    batch = encode(rows, inputs, held_out_percent=0)
    learn(learner, batch)
    item = int(rows["item_id"][0])
    bare = {name: column[:1].copy() for name, column in batch.columns.items()}
    bare["item_id"] = np.array([str(item)], dtype=object)
    table = learner.state()["model/00/embeddings"]
    from training.model import Lookup

    lookup = Lookup(definition)
    listed = {**bare, "user_last_items": np.array([[item, *([-1] * 9)]], dtype=np.int64)}
    as_category = lookup.categories(bare).numpy()[0]
    as_entry = lookup.ids(listed)[0].numpy()[0]
    place = [column.name for column in definition.of("category")].index("item_id")
    assert as_category[place] == as_entry[0]
    assert table.shape == (lookup.rows, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family: forest\ninputs: []", "forest"),
        ("family: dcn\ninputs: []", "at least one category"),
        ("family: dcn\ninputs: [{name: a, kind: category, bins: 4}, {name: a, kind: number}]", "a is given twice"),
        ("family: dcn\ninputs: [{name: a, kind: category}]", "category a needs bins"),
        (
            "family: dcn\ninputs: [{name: a, kind: category, bins: 2}, {name: b, kind: ids, table: c}]",
            "ids b needs a cat",
        ),
        ("family: dcn\nlayers: 3\ninputs: [{name: a, kind: category, bins: 2}]", "layers"),
        ("family: [", "model.yaml"),
    ],
)
def test_a_definition_that_is_wrong_names_the_key(tmp_path, text, message):
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=message) as caught:
        load_definition(path)
    assert "model.yaml" in str(caught.value)


def test_an_absent_definition_is_named(tmp_path):
    with pytest.raises(ConfigInvalid, match="nowhere"):
        load_definition(tmp_path / "nowhere.yaml")


def _card(definition: ModelDefinition) -> ModelCard:
    return ModelCard(
        model=definition.family,
        kind="base",
        inputs=definition.model_inputs,
        base_rate=0.15,
        created_ms=1,
        trained_to_ms=1,
        to_seq=1,
        configuration=definition.to_json(),
    )
