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
from training.definition import (
    Cross,
    DcnOptions,
    FmOptions,
    InputColumn,
    LogisticOptions,
    ModelDefinition,
    definition_from_json,
    load_definition,
)
from training.loop import Learner
from training.metrics import auc
from training.model import Crossing, Factorised, Lookup
from training.publish import Exporter, load_state
from training.served import load_served

pytestmark = pytest.mark.slow  # importing TensorFlow takes about 8 s

SHIPPED = Path(__file__).parents[2] / "configs" / "model.yaml"
PAIR = (
    "family: dcn\n"
    "inputs: [{name: a, kind: category, bins: 2}, {name: b, kind: category, bins: 2}, {name: n, kind: number}]"
)
TASTE = Cross(of=("city", "item_id"), bins=64)


def small(family: str = "dcn", **changes: object) -> ModelDefinition:
    """The shipped definition, small and quick to learn."""
    shipped = load_definition(SHIPPED)
    return msgspec.structs.replace(
        shipped,
        family=family,
        batch_rows=128,
        dcn=DcnOptions(dim=4, cross_layers=1, hidden=(16,), learning_rate=0.01),
        fm=FmOptions(dim=4, learning_rate=0.01),
        logistic=LogisticOptions(learning_rate=0.3, l2=0.1),
        **changes,
    )


def batch_of(definition: ModelDefinition, count: int, *, seed: int = 0):
    return encode(sample_rows(count, seed=seed), definition.model_inputs, held_out_percent=0)


def tastes(family: str, *crosses: Cross, batch_rows: int = 16, **dcn: object) -> ModelDefinition:
    """A model of cities and items. Its network is held still by its clipping, unless `dcn` says otherwise."""
    return ModelDefinition(
        family=family,
        inputs=(
            InputColumn(name="city", kind="category", bins=64, missing="Agra"),
            InputColumn(name="item_id", kind="category", bins=64),
        ),
        crosses=crosses,
        batch_rows=batch_rows,
        logistic=LogisticOptions(learning_rate=0.3, l2=0.1),
        dcn=DcnOptions(**{"dim": 2, "cross_layers": 1, "hidden": (4,), "clip_norm": 1e-12, **dcn}),
    )


def impressions(count: int, *, seed: int = 0, flipped: bool = False):
    """Columns and labels: Pune clicks item 1 and Agra item 2 (`flipped`: the reverse), both equally often shown."""
    random = np.random.default_rng(seed)
    pune, first = random.random((2, count)) < 0.5
    columns = {"city": np.where(pune, "Pune", "Agra"), "item_id": np.where(first, "1", "2")}
    return columns, ((pune == first) ^ flipped).astype(np.float32)


def show(learner: Learner, *, steps: int, seed: int = 0, flipped: bool = False) -> None:
    for step in range(steps):
        columns, label = impressions(learner.share, seed=1_000 * seed + step, flipped=flipped)
        learner.train(columns, label, np.ones(learner.share))


def learn_all(learner: Learner, columns, label) -> None:
    for start in range(0, len(label), learner.share):
        part = slice(start, start + learner.share)
        learner.train({name: column[part] for name, column in columns.items()}, label[part], np.ones(learner.share))


def taste_auc(learner: Learner, *, flipped: bool = False) -> float:
    columns, label = impressions(400, seed=99, flipped=flipped)
    return auc(label, learner.score(columns))


def learn(learner: Learner, batch, *, weight: float = 1.0) -> None:
    step = learner.share
    for start in range(0, len(batch), step):
        part = batch[start : start + step]
        learner.train(part.columns, part.label, np.full(len(part), weight))


@pytest.fixture(scope="module", params=["dcn", "fm", "logistic"])
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
    assert auc(exam.label, scores) > (0.45 if family == "logistic" else 0.75)
    assert scores.sum() == pytest.approx(exam.label.sum(), rel=0.2)


def test_a_factorisation_machine_is_the_sum_over_all_pairs():
    definition = ModelDefinition(
        family="fm",
        inputs=(
            *(InputColumn(name=name, kind="category", bins=4) for name in "abc"),
            *(InputColumn(name=name, kind="number") for name in "xy"),
        ),
        fm=FmOptions(dim=5),
    )
    random = np.random.default_rng(3)
    machine = Factorised(definition)
    rows, numbers = random.normal(size=(7, 3, 6)).astype("float32"), random.normal(size=(7, 2)).astype("float32")
    machine(rows, numbers)
    of_numbers = random.normal(size=(2, 6)).astype("float32")
    machine.numbers.set_weights([of_numbers])
    machine.out.set_weights([np.ones((5, 1)), np.zeros(1)])
    terms = np.concatenate([rows, numbers[:, :, None] * of_numbers], axis=1)
    pairs = [terms[:, i, 1:] * terms[:, j, 1:] for i in range(5) for j in range(i)]
    expected = terms[:, :, 0].sum(axis=1) + sum(pair.sum(axis=1) for pair in pairs)
    np.testing.assert_allclose(machine(rows, numbers), expected, rtol=1e-4, atol=1e-5)


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
    lookup = Lookup(definition)
    listed = {**bare, "user_last_items": np.array([[item, *([-1] * 9)]], dtype=np.int64)}
    as_category = lookup.categories(lookup.hashes(bare)).numpy()[0]
    as_entry = lookup.ids(listed)[0].numpy()[0]
    place = [column.name for column in definition.of("category")].index("item_id")
    assert as_category[place] == as_entry[0]
    assert table.shape == (lookup.rows, 4)


def test_a_cross_learns_what_no_sum_of_its_parts_can(family):
    without, with_cross = (Learner(tastes(family, *crosses), base_rate=0.5) for crosses in ((), (TASTE,)))
    for learner in (without, with_cross):
        show(learner, steps=20)
    assert taste_auc(with_cross) == 1.0
    assert taste_auc(without) < 0.8


def test_a_cross_follows_a_flipped_taste_within_forty_small_steps(family):
    learner = Learner(tastes(family, TASTE), base_rate=0.5)
    show(learner, steps=10)
    assert taste_auc(learner, flipped=True) == 0.0
    show(learner, steps=40, seed=1, flipped=True)
    assert taste_auc(learner, flipped=True) == 1.0


def test_the_small_steps_of_increments_follow_a_flipped_taste_further_than_the_bases_on_the_same_samples():
    moving = msgspec.structs.replace(
        tastes("dcn", batch_rows=256, learning_rate=0.01, clip_norm=1.0), increment_batch_rows=16
    )
    base = Learner(moving, base_rate=0.5)
    for _ in range(60):
        learn_all(base, *impressions(1_024))
    assert taste_auc(base) == 1.0
    columns, label = impressions(1_024, seed=1, flipped=True)
    losses = []
    for definition in (moving, moving.for_increments()):
        learner = Learner(definition, base_rate=0.5)
        learner.restore(base.state())
        learn_all(learner, columns, label)
        losses.append(-np.log(np.abs(learner.score(columns) - (1.0 - label))).mean())
    assert losses[1] < 0.8 * losses[0]


def test_a_cross_takes_an_absent_value_for_the_one_that_stands_for_it(family):
    learner = Learner(tastes(family, TASTE), base_rate=0.5)
    show(learner, steps=10)
    items = np.array(["1", "2"])
    absent, agra, pune = (learner.score({"city": np.array([c, c]), "item_id": items}) for c in ("", "Agra", "Pune"))
    np.testing.assert_array_equal(absent, agra)
    assert not np.allclose(absent, pune)


def test_each_cross_has_rows_of_its_own_and_its_parts_have_an_order():
    crosses = (Cross(of=("a", "b"), bins=1_000), Cross(of=("b", "a"), bins=7), Cross(of=("c", "a", "b"), bins=2_000))
    inputs = tuple(InputColumn(name=name, kind="category", bins=4) for name in "abc")
    definition = ModelDefinition(family="dcn", inputs=inputs, crosses=crosses)
    texts = np.array([str(number) for number in range(300)])
    columns = {"a": texts, "b": texts[::-1], "c": texts}
    crossing = Crossing(definition)
    rows = crossing(Lookup(definition).hashes(columns)).numpy()
    swapped = crossing(Lookup(definition).hashes({**columns, "a": texts[::-1], "b": texts})).numpy()
    for place, (low, high) in enumerate(((0, 1_000), (1_000, 1_007), (1_007, 3_007))):
        assert low <= rows[:, place].min()
        assert rows[:, place].max() < high
    # 300 of 1,000 by chance: 259 different ones.
    assert 235 < len(np.unique(rows[:, 0])) < 280
    assert (rows[:, 0] == swapped[:, 0]).mean() < 0.05


def test_crosses_leave_the_first_step_of_the_network_as_it_was():
    """Their gradient has no part in the norm that the network's is clipped by, nor in its variables' names."""
    columns, label = impressions(16)
    states = []
    for crosses in ((), (TASTE,)):
        learner = Learner(tastes("dcn", *crosses, clip_norm=0.01), base_rate=0.5)
        learner.train(columns, label, np.ones(16))
        states.append({name: v for name, v in learner.state().items() if name.startswith("optimizer/")})
    without, with_cross = states
    assert list(without) == list(with_cross)
    for name, values in without.items():
        np.testing.assert_allclose(values, with_cross[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "groups", "model"),
    [
        ("dcn", {"model", "optimizer", "wide_optimizer"}, "embeddings kernel bias kernel bias kernel bias"),
        ("fm", {"model", "optimizer", "wide_optimizer"}, "embeddings kernel bias"),
        ("logistic", {"model", "optimizer"}, "embeddings kernel bias"),
    ],
)
def test_a_model_without_crosses_has_the_variables_it_always_had(family, groups, model):
    """Or versions stored before there were crosses would not load."""
    state, crossed = (Learner(tastes(family, *crosses), base_rate=0.5).state() for crosses in ((), (TASTE,)))
    own = [f"model/{index:02d}/{name}" for index, name in enumerate(model.split())]
    assert [name for name in state if name.startswith("model/")] == own
    assert [name for name in crossed if name.startswith("model/")] == [*own, f"model/{len(own):02d}/embeddings"]
    assert list(state)[len(own) : len(own) + 2] == ["optimizer/00/iteration", "optimizer/01/learning_rate"]
    assert len(state) == len(own) + 2 + 2 * len(own)
    assert {name.split("/")[0] for name in crossed} == groups


def test_a_definition_from_before_there_were_crosses_is_read_and_its_increments_step_as_the_base_did():
    text = '{"family":"dcn","inputs":[{"name":"city","kind":"category","bins":4}],"dcn":{"dim":4},"batch_rows":64}'
    definition = definition_from_json(text)
    assert definition.crosses == ()
    assert definition.for_increments() == definition


def test_increments_keep_their_own_rate_when_they_go_on_from_a_base():
    definition = tastes("dcn", TASTE, learning_rate=0.01, increment_learning_rate=0.03, clip_norm=1.0)
    base, increments = (Learner(each, base_rate=0.5) for each in (definition, definition.for_increments()))
    show(base, steps=3)
    increments.restore(base.state())
    before = base.state()["model/00/embeddings"]
    for learner in (base, increments):
        show(learner, steps=1, seed=1)
    moved, moved_further = (np.abs(each.state()["model/00/embeddings"] - before).max() for each in (base, increments))
    assert moved_further == pytest.approx(3.0 * moved, rel=0.01)
    assert increments.state()["optimizer/01/learning_rate"] == pytest.approx(0.03)


@pytest.fixture
def steady():
    """A taste learnt well by FTRL, whose increments move crosses at a constant rate: the base, and its definition."""
    definition = tastes("dcn", TASTE)
    logistic = msgspec.structs.replace(definition.logistic, increment_learning_rate=0.1)
    base = Learner(msgspec.structs.replace(definition, logistic=logistic), base_rate=0.5)
    show(base, steps=60)
    return base


def test_a_constant_rate_follows_a_flipped_taste_sooner_than_a_rate_that_fell(steady):
    columns, label = impressions(1_024, seed=1, flipped=True)
    losses = []
    for definition in (steady.definition, steady.definition.for_increments()):
        learner = Learner(definition, base_rate=0.5)
        learner.restore(steady.state())
        learn_all(learner, columns, label)
        losses.append(-np.log(np.abs(learner.score(columns) - (1.0 - label))).mean())
    assert losses[1] < 0.8 * losses[0]


def test_a_constant_rate_moves_a_weight_by_the_rate_times_the_sum_of_its_errors(steady):
    learner = Learner(steady.definition.for_increments(), base_rate=0.5)
    learner.restore(steady.state())
    before = steady.state()
    columns = {"city": np.array(["Agra"] * 3), "item_id": np.array(["1"] * 3)}
    wide = max(name for name in before if name.startswith("model/"))
    result = learner.train(columns, np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]))
    moved = learner.state()[wide] - before[wide]
    assert moved[moved != 0.0] == pytest.approx([0.1 * (1.0 - result.probability[:2].sum())], rel=1e-4)


def test_increments_go_on_with_their_own_optimizers_and_keep_what_adam_knew_of_the_base(steady):
    first, second = (Learner(steady.definition.for_increments(), base_rate=0.5) for _ in range(2))
    first.restore(steady.state())
    of_adam = {name: value for name, value in steady.state().items() if name.startswith("optimizer/")}
    for name, value in of_adam.items():
        np.testing.assert_array_equal(first.state()[name], value)
    show(first, steps=3, seed=2)
    second.restore(first.state())
    for name, value in first.state().items():
        np.testing.assert_array_equal(second.state()[name], value)
    assert int(second.state()["wide_descent/00/iteration"]) == 3


def test_a_state_of_another_model_is_refused(steady):
    with pytest.raises(ValueError, match="other variables"):
        Learner(tastes("dcn"), base_rate=0.5).restore(steady.state())


def test_the_shipped_rows_of_on_off_and_absent_differ():
    definition = load_definition(SHIPPED)
    place = [column.name for column in definition.of("category")].index("realtime")
    columns = {column.name: np.array(["on", "off", ""]) for column in definition.of("category")}
    lookup = Lookup(definition)
    assert len(set(lookup.categories(lookup.hashes(columns)).numpy()[:, place])) == 3


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
        (f"{PAIR}\ncrosses: [{{of: [a, c], bins: 4}}]", r"cross \[a, c\] needs categories, which 'c' is not"),
        (f"{PAIR}\ncrosses: [{{of: [a, n], bins: 4}}]", "which 'n' is not"),
        (f"{PAIR}\ncrosses: [{{of: [a], bins: 4}}]", r"cross \[a\] needs at least two"),
        (f"{PAIR}\ncrosses: [{{of: [a, b, a], bins: 4}}]", r"cross \[a, b, a\] has a twice"),
        (f"{PAIR}\ncrosses: [{{of: [a, b], bins: 0}}]", r"cross \[a, b\] needs bins of at least 1, not 0"),
        (f"{PAIR}\nincrement_batch_rows: -1", "increment_batch_rows must be at least 0, not -1"),
        (f"{PAIR}\ndcn: {{increment_learning_rate: -0.5}}", "dcn.increment_learning_rate must be at least 0, not -0.5"),
        (f"{PAIR}\nlogistic: {{increment_learning_rate: -1}}", "logistic.increment_learning_rate must be at least 0"),
        (f"{PAIR}\nlogistic: {{increment_learning_rate: 0.1}}", "must be below 0.0078125 with 1024 rows a step"),
        (f"{PAIR}\nlogistic: {{optimizer: sgd}}", "logistic.optimizer is ftrl for a base"),
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
