"""The world before anybody comes: who and what there is, what is true, what drifts, and what the documentation says."""

import ast
import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.events import ITEM, PROFILE
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode, encode
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.simulate.world.experiment import (
    ARMS,
    EXPLORATION,
    MIDNIGHT_MS,
    PUBLISH_S,
    STEP_S,
    Schedule,
    unskewed,
    world_options,
)
from rtrec_ray.simulate.world.options import Drift, TasteOptions, VisitOptions, WorldOptions
from rtrec_ray.simulate.world.play import PLACES
from rtrec_ray.simulate.world.truth import Asked, regret
from rtrec_ray.simulate.world.world import make_world
from rtrec_ray.simulate.world.yesterday import DayOptions, first_items, new_items

ROOT = Path(__file__).parents[2]
CHANGE_MS = 1_000
PLAIN = TasteOptions(quality=0.0, age_and_category=0.0, intent=0.0)
"""Nothing but favourites, so that they are the best items in their order."""


def world_with(*kinds, seed=0, **options):
    """Drifts of these kinds at CHANGE_MS, 2 · CHANGE_MS and so on."""
    drifts = tuple(Drift(kind=kind, at_ms=CHANGE_MS * number) for number, kind in enumerate(kinds, start=1))
    return make_world(WorldOptions(seed=seed, drifts=drifts, **options))


def ask(world, *, at_ms, users=None, pages=None, intent=None):
    """Each of the users on each of the pages; users come for all categories in turn, or for `intent`."""
    users = np.arange(len(world.people)) if users is None else np.asarray(users)
    pages = np.arange(len(world.options.pages)) if pages is None else np.asarray(pages)
    user, page = (grid.ravel() for grid in np.meshgrid(users, pages, indexing="ij"))
    came_for = user % world.options.categories + 1 if intent is None else np.full(len(user), intent)
    return Asked(user=user, page=page, intent=came_for, ts_ms=np.full(len(user), at_ms))


def each_item(world, asked):
    """True P(click), (n, items), of every item on the first place."""
    items = np.arange(len(world.goods))
    return np.hstack([world.truth.probability(asked, np.full((len(asked), 1), item)) for item in items])


def favorites(world, *, at_ms):
    """(city, gender, page, place): indexes, of a world with PLAIN tastes."""
    people, places = world.people, len(world.options.tastes.favorites)
    asked = ask(world, at_ms=at_ms)
    best = world.truth.best(asked, places=places)
    out = np.full((len(people.cities), len(people.genders), len(world.options.pages), places), -1)
    out[people.city[asked.user], people.gender[asked.user], asked.page] = best
    return out


def first_of(world, city, *, at_ms):
    """The id of what men of that city like best on page 100."""
    place = [name for _, name in world.people.cities].index(city)
    index = favorites(world, at_ms=at_ms)[place, world.people.genders.index("m"), world.options.pages.index(100), 0]
    return int(world.goods.item_id[index])


# --- who and what there is --------------------------------------------------------------------------------------------


def test_the_same_options_make_the_same_world_and_other_seeds_make_others():
    worlds = [world_with("trend", "parting", seed=seed) for seed in (3, 3, 4)]
    answers = [each_item(world, ask(world, at_ms=2 * CHANGE_MS, users=range(50))) for world in worlds]
    profiles = [world.people.records(ts_ms=0) for world in worlds]
    assert np.array_equal(answers[0], answers[1])
    assert profiles[0].equals(profiles[1])
    assert not np.isclose(answers[0], answers[2]).all(axis=1).any()
    assert not profiles[0].equals(profiles[2])


def test_users_spread_over_all_segments():
    people = world_with().people
    cells = np.unique(np.stack([people.city, people.gender, people.age]), axis=1, return_counts=True)[1]
    assert len(cells) == 4 * 2 * 4
    assert cells.sum() == len(people) == len(set(people.ids().tolist()))
    assert cells.min() > 0.6 * cells.mean()


def test_every_city_belongs_to_its_country():
    people = world_with(cities={"CN": ("Shanghai",), "IN": ("Mumbai", "Delhi"), "FR": ("Paris",)}).people
    assert people.country_of_city.tolist() == [0, 1, 1, 2]
    countries = {"Shanghai": "CN", "Mumbai": "IN", "Delhi": "IN", "Paris": "FR"}
    said = {people.profile(index)["city"]: people.profile(index)["country"] for index in range(len(people))}
    assert said == countries


def test_the_records_of_the_users_say_what_their_profiles_say():
    people = world_with(users=50).people
    rows = people.records(ts_ms=5).to_dicts()
    assert [row["user_id"] for row in rows] == people.ids().tolist()
    assert rows == [{"user_id": index + 1, "ts": 5, **people.profile(index)} for index in range(50)]


def test_profiles_and_items_keep_the_contract_of_their_topics():
    world = world_with()
    for topic, frame in (
        (PROFILE, world.people.records(ts_ms=5)),
        (ITEM, pl.concat([first_items(world, ts_ms=5), new_items(world, ts_ms=6)])),
    ):
        decoded = decode(record_batch(topic, 0, encode(topic, frame)[1]), latest_ms=lambda _: 10)
        assert decoded.dead == []
        assert decoded.frame.drop("offset").equals(frame)


def test_ids_are_unique_and_found_again():
    goods = world_with().goods
    assert len(set(goods.item_id.tolist())) == len(goods)
    shown = np.array([[3, 1], [51, 40]])
    assert np.array_equal(goods.index_of(goods.item_id[shown]), shown)


def test_an_item_of_another_world_is_an_error_that_names_it():
    with pytest.raises(KeyError, match="1999"):
        world_with().goods.index_of([2001, 1999])


def test_the_catalogue_is_the_first_items_and_the_new_ones():
    world = world_with()
    first, new = first_items(world, ts_ms=0), new_items(world, ts_ms=0)
    assert (first.height, new.height) == (48, 4)
    assert set(first["item_id"]) | set(new["item_id"]) == set(world.goods.item_id.tolist())
    assert first["item_type"].value_counts(sort=True).rows() == [("ad", 40), ("product", 8)]
    assert set(new["item_type"]) == {"ad"}
    assert first.group_by("item_type", "category_id").len().group_by("item_type").agg(pl.col("len").n_unique())[
        "len"
    ].to_list() == [1, 1]  # each category has as many


# --- what is true -----------------------------------------------------------------------------------------------------


def test_every_click_is_possible_and_none_is_certain():
    world = world_with("trend", "parting", "new_items")
    for at_ms in (0, 3 * CHANGE_MS):
        chance = each_item(world, ask(world, at_ms=at_ms, users=range(300)))
        assert chance.min() > 0.0
        assert chance.max() < 1.0


def test_there_is_much_to_win_and_clicks_are_the_exception():
    worlds = [world_with("new_items", seed=seed) for seed in range(20)]
    for at_ms, of_random, of_best in ((0, 0.05, 0.26), (CHANGE_MS, 0.056, 0.32)):
        questions = [(world.truth, ask(world, at_ms=at_ms, users=range(500))) for world in worlds]
        best = [truth.probability(asked, truth.best(asked, places=PLACES)) for truth, asked in questions]
        random = [truth.random(asked, places=PLACES) for truth, asked in questions]
        assert np.mean(random) == pytest.approx(of_random, abs=0.005)
        assert np.mean(best) == pytest.approx(of_best, abs=0.02)


def test_a_lower_place_gets_fewer_clicks():
    world = world_with()
    asked = ask(world, at_ms=0, users=range(100))
    for item in (0, 17, 45):
        chance = world.truth.probability(asked, np.full((len(asked), PLACES), item))
        assert (np.diff(chance, axis=1) < 0).all()


def test_the_fifth_place_has_about_six_tenths_of_the_clicks_of_the_first():
    tastes = dataclasses.replace(PLAIN, favorites=())
    world = world_with(tastes=tastes)
    chance = world.truth.probability(ask(world, at_ms=0, users=[0], pages=[0]), np.zeros((1, PLACES), dtype=np.int64))
    assert chance[0, 0] == pytest.approx(0.032, abs=0.001)
    assert chance[0, 4] / chance[0, 0] == pytest.approx(0.6, abs=0.04)


def test_who_came_for_a_category_clicks_its_items_more_and_others_as_before():
    world = world_with()
    one, two = (each_item(world, ask(world, at_ms=0, users=range(20), intent=category)) for category in (1, 2))
    category = world.goods.category
    assert (one > two)[:, category == 1].all()
    assert (one < two)[:, category == 2].all()
    assert np.array_equal(one[:, category > 2], two[:, category > 2])


def test_random_is_the_mean_over_random_slates():
    world, rng = world_with("new_items"), np.random.default_rng(1)
    for at_ms in (0, CHANGE_MS):  # what is not there yet is on no slate
        asked = ask(world, at_ms=at_ms, users=[7], pages=[1])
        there = np.flatnonzero(world.truth.there(asked.ts_ms)[0])
        slates = rng.permuted(np.tile(there, (20_000, 1)), axis=1)[:, :PLACES]
        many = asked[np.zeros(len(slates), dtype=np.int64)]
        drawn = world.truth.probability(many, slates).mean(axis=1)
        error = drawn.std() / np.sqrt(len(drawn))
        assert abs(drawn.mean() - world.truth.random(asked, places=PLACES)[0]) < 4 * error


def test_regret_is_nothing_for_the_best_and_what_random_slates_lose_for_random_ones():
    world, rng = world_with(), np.random.default_rng(2)
    asked = ask(world, at_ms=0)
    best = world.truth.best(asked, places=PLACES)
    assert (regret(world.truth, asked, best) == 0.0).all()
    slates = rng.permuted(np.tile(np.arange(48), (len(asked), 1)), axis=1)[:, :PLACES]
    best_rate = world.truth.probability(asked, best).mean()
    lost = best_rate - world.truth.random(asked, places=PLACES).mean()
    assert regret(world.truth, asked, slates).mean() == pytest.approx(lost, rel=0.02)


def test_an_ad_is_found_as_often_as_its_odds_say_and_a_product_never():
    world = world_with()
    asked = ask(world, at_ms=0, users=[11], pages=[0])
    found = world.truth.find(asked[np.zeros(40_000, dtype=np.int64)], np.random.default_rng(3))
    chance = each_item(world, asked)[0]
    odds = np.where(world.goods.is_ad(), chance / (1.0 - chance), 0.0)
    expected = len(found) * odds / odds.sum()
    count = np.bincount(found, minlength=len(world.goods))
    assert (np.abs(count - expected) <= 5.0 * np.sqrt(expected) + 1.0).all()
    assert count[~world.goods.is_ad()].sum() == 0


# --- what drifts ------------------------------------------------------------------------------------------------------


def test_a_world_without_drifts_is_the_same_at_all_times():
    world = world_with()
    answers = [each_item(world, ask(world, at_ms=at_ms, users=range(50))) for at_ms in (-(2**50), 0, 2**50)]
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])


@pytest.mark.parametrize("kind", ["trend", "parting", "new_items"])
def test_a_drift_changes_nothing_before_its_time_and_something_from_it_on(kind):
    world, still = world_with(kind), world_with()
    before, at = (ask(world, at_ms=CHANGE_MS + step, users=range(100)) for step in (-1, 0))
    assert np.array_equal(each_item(world, before), each_item(still, before))
    assert not np.array_equal(each_item(world, at), each_item(still, at))


def test_a_trend_takes_its_share_of_contexts_in_all_cities_of_a_country_alike():
    world = world_with("trend", tastes=PLAIN, pages=tuple(range(1, 201)), users=500)
    before, after = (favorites(world, at_ms=at_ms) for at_ms in (0, CHANGE_MS))
    of_country = world.people.country_of_city
    for found in (before, after):
        assert np.array_equal(found[of_country == 0][0], found[of_country == 0][1])
        assert np.array_equal(found[of_country == 1][0], found[of_country == 1][1])
        assert not np.array_equal(found[0], found[2])
    changed = (before != after).any(axis=-1)[[0, 2]]
    assert changed.mean() == pytest.approx(world.options.trend_share, abs=0.06)  # 800 contexts: 4 deviations are 0.04


def test_a_parting_makes_the_first_two_cities_of_a_country_differ_and_no_others():
    cities = {"CN": ("Shanghai", "Beijing", "Chengdu"), "FR": ("Paris",), "IN": ("Mumbai", "Delhi")}
    world = world_with("parting", tastes=PLAIN, cities=cities)
    before, after = (favorites(world, at_ms=at_ms) for at_ms in (0, CHANGE_MS))
    names = [name for _, name in world.people.cities]
    for first, second in (("Shanghai", "Beijing"), ("Mumbai", "Delhi")):
        one, two = names.index(first), names.index(second)
        assert np.array_equal(before[one], before[two])
        assert (after[one] != after[two]).any(axis=-1).all()
    for name in ("Chengdu", "Paris"):
        assert np.array_equal(before[names.index(name)], after[names.index(name)])


@pytest.mark.parametrize("seed", range(5))
def test_the_talks_example_happens_in_every_world(seed):
    world = world_with("trend", "parting", tastes=PLAIN, seed=seed)
    told = [[first_of(world, city, at_ms=at_ms) for city in ("Shanghai", "Beijing")] for at_ms in (0, 1_000, 2_000)]
    assert told == [[2002, 2002], [2001, 2001], [2002, 2011]]


@pytest.mark.parametrize(
    "other",
    [{"pages": (1, 2)}, {"genders": ("x",)}, {"cities": {"FR": ("Paris",)}}, {"ads": 9}],
    ids=" ".join,
)
def test_a_world_without_the_examples_places_does_without_the_example(other):
    world = world_with("trend", "parting", tastes=PLAIN, **other)
    for at_ms in (0, CHANGE_MS, 2 * CHANGE_MS):
        found = favorites(world, at_ms=at_ms)
        assert 0 <= found.min() <= found.max() < world.options.ads


def test_a_newcomer_is_never_clicked_before_it_is_there():
    world = world_with("trend", "new_items")
    before, after = (ask(world, at_ms=2 * CHANGE_MS + step) for step in (-1, 0))
    new = world.goods.is_new()
    assert each_item(world, before)[:, new].max() < 1e-8
    assert not np.isin(world.truth.best(before, places=PLACES), np.flatnonzero(new)).any()
    assert not world.truth.there(before.ts_ms)[:, new].any()
    assert world.truth.there(after.ts_ms).all()
    assert np.isin(world.truth.best(after, places=PLACES), np.flatnonzero(new)).any()


def test_each_newcomer_is_liked_by_one_age_band():
    world = world_with("new_items", tastes=PLAIN)
    asked = ask(world, at_ms=CHANGE_MS, users=range(200))
    liked = each_item(world, asked)[:, world.goods.is_new()] > 0.1
    assert np.array_equal(np.nonzero(liked)[1], world.people.age[asked.user])


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_drifting_or_not_a_world_is_the_same_until_the_first_drift():
    schedule = Schedule()
    drifting = make_world(world_options(schedule, seed=1))
    still = make_world(world_options(dataclasses.replace(schedule, drifting=False), seed=1))
    for at_ms in (schedule.from_ms - schedule.yesterday_ms, schedule.from_ms, schedule.first_drift_ms - 1):
        asked = ask(still, at_ms=at_ms, users=range(50))
        assert np.array_equal(each_item(drifting, asked), each_item(still, asked))
    begin, end = (ask(still, at_ms=at_ms, users=range(50)) for at_ms in (schedule.from_ms, schedule.to_ms))
    assert np.array_equal(each_item(still, begin), each_item(still, end))


def test_yesterdays_trends_are_yesterdays_and_todays_drifts_come_one_by_one():
    schedule = Schedule(from_ms=MIDNIGHT_MS + 3_600_000)  # live it begins when there is a model to serve
    assert [drift.kind for drift in schedule.earlier] == ["trend"] * 5
    assert all(MIDNIGHT_MS - schedule.yesterday_ms < drift.at_ms < MIDNIGHT_MS for drift in schedule.earlier)
    assert schedule.earlier == Schedule().earlier
    times = [schedule.from_ms, *(drift.at_ms for drift in schedule.drifts), schedule.to_ms]
    assert times == sorted(set(times))
    assert [drift.kind for drift in schedule.drifts] == ["trend", "parting", "new_items"]
    assert schedule.first_drift_ms == schedule.drifts[0].at_ms


def test_speed_is_how_much_event_time_passes_in_wall_time():
    slow, fast = Schedule(speed=30.0), Schedule(speed=60.0)
    assert (slow.to_ms - slow.from_ms) * 2 == fast.to_ms - fast.from_ms
    assert slow.per_s == 2 * fast.per_s
    assert fast.per_s * (fast.to_ms - fast.from_ms) / 1_000 == pytest.approx(fast.per_wall_s * fast.minutes * 60)


def test_positives_come_no_sooner_than_negatives_and_nothing_else_changes():
    definition = SampleDefinition(wait_ms=7, horizon_ms=8)
    assert unskewed(definition) == dataclasses.replace(definition, emit="on_close")


# --- the documentation ------------------------------------------------------------------------------------------------


def constants(path):
    """Names that a file gives an annotated, literal value."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(node.target): node.value.value for node in nodes if isinstance(node.value, ast.Constant)}


def defaults(options, *, of, but=()):
    names = [field.name for field in dataclasses.fields(options) if field.name not in but]
    return {f"{of}.{name}": getattr(options, name) for name in names}


def known():
    """What docs/world.md must say: every parameter by name."""
    day = {field.name: field.default for field in dataclasses.fields(DayOptions)}
    return {
        **defaults(WorldOptions(), of="world", but=("tastes", "visits", "drifts", "seed")),
        **defaults(TasteOptions(), of="tastes"),
        **defaults(VisitOptions(), of="visits"),
        **defaults(Schedule(), of="schedule", but=("drifting",)),
        "day.chance": day["chance"],
        "PLACES": PLACES,
        "ARMS": tuple(ARMS),
        "EXPLORATION": EXPLORATION,
        "STEP_S": STEP_S,
        "PUBLISH_S": PUBLISH_S,
        "ONLINE_WALL_S": constants(ROOT / "benchmarks" / "effect.py")["ONLINE_WALL_S"],
    }


def plain(value):
    """As it may stand in a cell: numbers and words."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, dict):
        parts = [name for names in parts.values() for name in names]
    return [word(part) for part in (parts if isinstance(parts, list | tuple) else [parts])]


def word(part):
    try:
        return float(Fraction(part.replace(" ", "") if isinstance(part, str) else part))
    except ValueError:
        return str(part).strip()


def test_the_documentation_names_every_parameter_with_its_value():
    lines = (ROOT / "docs" / "world.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    said = {row[0].strip("`"): plain(row[1]) for row in rows}
    assert said == {name: plain(value) for name, value in known().items()}
    assert all(row[2] for row in rows)


@pytest.mark.parametrize("ads", [3, 101])
def test_a_world_whose_ids_or_favourites_would_collide_is_refused(ads: int) -> None:
    with pytest.raises(ConfigInvalid, match=f"not {ads}"):
        WorldOptions(ads=ads)
