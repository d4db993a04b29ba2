"""Arms of an experiment get what they are defined to get, through the same code."""

import random
from pathlib import Path

import pytest

from rtrec_ray.clock import ManualClock
from rtrec_ray.events import CatalogItem, ProfileVersion
from rtrec_ray.features.file import load_definitions
from serving.memory import LinearScorer, MemoryServers
from serving.options import Arm, ServingOptions
from tests.unit.test_recommend import NOW_MS, Stage, event, items

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
ARMS = {"static": Arm(model="base", realtime=False), "features": Arm(model="base"), "training": Arm()}
ITEMS = 30
UNLISTED = 5_000  # an item of a real-time list that the catalogue does not have


@pytest.fixture
def servers():
    """A user with behaviour of the last minute, on every kind of list."""
    servers = MemoryServers(DEFINITIONS, clock=ManualClock(now_ms=NOW_MS))
    servers.put_items(
        CatalogItem(item_id=i, ts=i, item_type="product" if i % 2 else "video", category_id=i % 3)
        for i in range(1, ITEMS + 1)
    )
    servers.put_profile(ProfileVersion(user_id=1, ts=0, country="CN", gender="f", city="Shanghai"))
    servers.put_events([event(n, item_id=n, page_id=7) for n in (3, 6, 8)])
    servers.put_list("top_viewed_30m", "video", {"top": [[8, 9], [UNLISTED, 8]]})
    servers.put_list("category_top_items_10m", "0", {"top": [[6, 9], [UNLISTED + 1, 8]]})
    servers.put_list("segment_page_top_ads", "CN|f|7", {"top": [[3, 9], [UNLISTED + 2, 8]], "last": [UNLISTED + 3]})
    return servers


@pytest.fixture
def make_stage(servers):
    made = []

    def make(**options):
        stage = Stage(servers, ServingOptions(**{"exploration": 0.0, "arms": ARMS, **options}))
        made.append(stage)
        return stage.ready()

    yield make
    servers.store.answers.set()
    for stage in made:
        stage.replica.close()


def have(servers, champion, *, roots=None, missing=()):
    """Model n was trained n seconds ago."""
    servers.models = {
        str(n): LinearScorer(version=str(n), trained_to_ms=NOW_MS - 1_000 * n)
        for n in range(1, 6)
        if str(n) not in missing
    }
    servers.champion, servers.roots = champion, roots or {}


def exchange(stage, champion):
    stage.servers.champion = champion
    stage.replica.reloading.step()


def versions(stage):
    return {arm: stage.ask(arm=arm)["model_version"] for arm in ARMS}


def test_users_keep_their_arm_and_are_spread_over_all(make_stage, eventually):
    # A restart, and a file that names the same arms in another order.
    stages = [make_stage(), make_stage(arms=dict(reversed(ARMS.items())))]
    for stage in stages:
        for user in range(60):
            stage.ask(user_id=user, k=1)
    records = eventually(lambda: len(got := stages[0].logged()) == 120 and got)
    pairs = {(record["user_id"], record["arm"]) for record in records}
    assert len(pairs) == 60
    assert min(sum(arm == given for _, given in pairs) for arm in ARMS) > 8


def test_the_arm_of_a_request_goes_before_the_users_own(servers, make_stage, eventually):
    have(servers, "2", roots={"2": "1"})
    stage = make_stage(arms={"static": ARMS["static"]})
    given = [stage.ask(arm=arm)["model_version"] for arm in (None, "static", "unheard of")]
    assert given == ["1", "1", "2"]
    records = eventually(lambda: len(got := stage.logged()) == 3 and got)
    assert [(record["arm"], record["features"]["realtime"]) for record in records] == [
        ("static", "off"),
        ("static", "off"),
        ("unheard of", "on"),
    ]


def test_without_real_time_no_value_of_a_view_is_used_though_the_store_has_it(make_stage, eventually):
    stage = make_stage()
    for arm in ("static", "training"):
        stage.ask(arm=arm, candidates=[3, 6, 8], k=3)
    static, training = eventually(lambda: len(got := stage.logged()) == 2 and got)
    own = {name: value for name, value in static["features"].items() if value not in (0, [])}
    assert own == {"country": "CN", "gender": "f", "city": "Shanghai", "age_band": "", "realtime": "off"}
    for item in static["items"]:
        counts = {name: value for name, value in item["features"].items() if name not in ("item_category", "item_type")}
        assert set(counts.values()) == {0}, counts
    # The same store, asked with real time: each of these has a value there.
    assert (training["features"]["realtime"], training["features"]["user_5m_view"]) == ("on", 3)
    of_item = {item["item_id"]: item["features"] for item in training["items"]}
    assert of_item[8]["item_type_views_30m"] == of_item[6]["item_category_clicks_10m"] == 9
    assert [of_item[i]["item_category_recently_viewed"] for i in (3, 6, 8)] == [2, 2, 1]


def test_without_real_time_candidates_are_the_catalogue_in_its_order(make_stage):
    stage = make_stage()
    assert items(stage.ask(arm="static", k=100)) == list(range(ITEMS, 0, -1))
    assert set(items(stage.ask(arm="training", k=100))) == {*range(1, ITEMS + 1), *range(UNLISTED, UNLISTED + 4)}


def test_without_real_time_an_answer_without_a_model_is_in_the_order_of_the_catalogue(make_stage):
    stage = make_stage()
    assert items(stage.ask(arm="static", candidates=[2, 6, 9, 8])) == [9, 8, 6, 2]
    assert items(stage.ask(arm="training", candidates=[2, 6, 9, 8])) == [6, 8, 9, 2]


def test_without_real_time_a_large_catalogue_gives_its_newest_items_and_a_draw(make_stage):
    stage = make_stage(recalled_items=10)
    stage.replica.service.recommender.rng = random.Random(3)
    answers = [items(stage.ask(arm="static", k=10)) for _ in range(60)]
    assert all(len(answer) == 10 and {30, 29, 28} <= set(answer) for answer in answers)
    assert set().union(*answers) == set(range(1, ITEMS + 1))


def test_without_real_time_the_profile_is_all_that_is_read(make_stage):
    stage = make_stage()
    assert "store_unavailable" not in stage.ask(arm="static")["degraded"]
    stage.servers.store.up = False
    # The profile is kept for seconds, so nothing is left to ask the store for.
    assert "store_unavailable" not in stage.ask(arm="static")["degraded"]
    assert "store_unavailable" in stage.ask(arm="features")["degraded"]


def test_freshness_is_of_what_was_used(servers, make_stage):
    have(servers, "2", roots={"2": "1"})
    stage = make_stage()
    assert {arm: stage.ask(arm=arm)["freshness"] for arm in ARMS} == {
        "static": {"feature_age_ms": None, "model_age_ms": 1_000},
        "features": {"feature_age_ms": 1_000, "model_age_ms": 1_000},
        "training": {"feature_age_ms": 1_000, "model_age_ms": 2_000},
    }
    ages = stage.metric("rtrec_model_age_seconds") | stage.metric("rtrec_base_model_age_seconds")
    assert ages == {"rtrec_model_age_seconds": 2.0, "rtrec_base_model_age_seconds": 1.0}


def test_the_base_goes_on_scoring_while_increments_go_online(servers, make_stage):
    have(servers, "1", roots={"2": "1", "3": "1"})
    stage = make_stage()
    assert versions(stage) == {"static": "1", "features": "1", "training": "1"}
    for increment in ("2", "3"):
        exchange(stage, increment)
        assert versions(stage) == {"static": "1", "features": "1", "training": increment}


@pytest.mark.parametrize("champion", ["4", "5"], ids=["the base itself", "an increment of it"])
def test_a_new_base_is_taken_when_the_champion_stands_on_it(servers, make_stage, champion):
    have(servers, "2", roots={"2": "1", "5": "4"})
    stage = make_stage()
    exchange(stage, champion)
    assert versions(stage) == {"static": "4", "features": "4", "training": champion}


def test_a_base_that_does_not_load_costs_its_arms_the_model_and_the_champions_nothing(servers, make_stage):
    have(servers, "2", roots={"2": "1"}, missing=["1"])
    stage = make_stage()
    assert versions(stage) == {"static": "none", "features": "none", "training": "2"}
    answer = stage.ask(arm="features", k=2)
    assert (items(answer), answer["degraded"]) == ([6, 8], ["no_model"])
    assert stage.ask(arm="training")["degraded"] == []
    ready = stage.client.get("/readyz")
    assert (ready.status_code, ready.json()["missing"], ready.json()["model_version"]) == (503, ["no_model"], "2")


def test_a_new_base_that_does_not_work_is_refused_and_the_old_one_goes_on(servers, make_stage):
    class HatesSeventeen(LinearScorer):
        def predict(self, columns, /):
            if "17" in columns["item_id"]:
                raise RuntimeError("no kernel")
            return super().predict(columns)

    have(servers, "2", roots={"2": "1", "5": "4"})
    servers.models["4"] = HatesSeventeen(version="4")
    stage = make_stage()
    # A new base is tried on what the old one was asked.
    stage.ask(arm="features", candidates=[17])
    exchange(stage, "5")
    assert versions(stage) == {"static": "1", "features": "1", "training": "5"}
    assert list(stage.replica.reloaders["base"].refused()) == ["4"]


def test_a_version_is_loaded_once_for_all_arms_and_a_base_only_when_one_asks(servers, make_stage):
    have(servers, "1", roots={"2": "1"})
    stage = make_stage()
    assert servers.loads == ["1"]
    exchange(stage, "2")
    exchange(stage, "1")
    assert servers.loads == ["1", "2"]
    servers.loads.clear()
    servers.champion = "2"
    make_stage(arms={"training": Arm()})
    assert servers.loads == ["2"]


def test_only_the_champion_is_said_to_be_deployed(servers, make_stage):
    have(servers, "2", roots={"2": "1"})
    stage = make_stage()
    exchange(stage, "3")
    assert [(event.type, event.value) for event in servers.events.list()] == [
        ("MODEL_DEPLOYED", "2"),
        ("MODEL_DEPLOYED", "3"),
    ]
    assert stage.metric("rtrec_model_info") == {
        'rtrec_model_info{role="champion",version="3"}': 1.0,
        'rtrec_model_info{role="base",version="3"}': 1.0,
    }
