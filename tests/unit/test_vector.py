"""Raw features become the same columns wherever they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rtrec_ray.events import CatalogItem, ProfileVersion
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.request import (
    Recent,
    item_asks,
    item_features,
    recently_viewed,
    request_asks,
    request_features,
    trends,
)
from rtrec_ray.features.vector import ModelInput, assemble
from training.definition import load_definition

CONFIGS = Path(__file__).parents[2] / "configs"
CATEGORY = ModelInput(name="x", kind="category")
NUMBER = ModelInput(name="x", kind="number")
IDS = ModelInput(name="x", kind="ids", length=2)
INPUTS = {each.name: each for each in load_definition(CONFIGS / "model.yaml").model_inputs}
PROFILE = ProfileVersion(user_id=1, ts=0, country="CN", gender="f", city="Shanghai", age_band="20")
ITEM = CatalogItem(item_id=5, ts=0, item_type="ad", category_id=3)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (CATEGORY, "Delhi", "Delhi"),
        (CATEGORY, 7, "7"),
        (CATEGORY, 7.0, "7"),
        (CATEGORY, True, "true"),
        (CATEGORY, None, ""),
        (CATEGORY, float("nan"), ""),
        (CATEGORY, [1], ""),
        (NUMBER, 3, 3.0),
        (NUMBER, True, 1.0),
        (NUMBER, None, 0.0),
        (NUMBER, "3", 0.0),
        (NUMBER, float("nan"), 0.0),
        (NUMBER, float("-inf"), 0.0),
        (NUMBER, 10**400, np.float32(3e38)),
        (NUMBER, -1e300, np.float32(-3e38)),
        (IDS, [7, 8, 9], [7, 8]),
        (IDS, [7, None, "8", True, 2**63, 9], [7, 9]),
        (IDS, None, [-1, -1]),
        (IDS, 7, [-1, -1]),
    ],
)
def test_whatever_was_logged_has_a_value_for_the_model(column, value, expected):
    (got,) = assemble([column], [{"x": value}])["x"].tolist()
    assert got == pytest.approx(expected) if column is NUMBER else got == expected


def test_columns_have_the_promised_types_and_shapes_also_without_rows():
    for rows in ([], [{}], [{}, {"x": "é"}]):
        columns = [assemble([each], rows)["x"] for each in (CATEGORY, NUMBER, IDS)]
        assert [column.dtype.kind for column in columns] == ["U", "f", "i"]
        assert [column.shape for column in columns] == [(len(rows),), (len(rows),), (len(rows), 2)]


def test_the_shipped_model_asks_for_every_feature_of_a_request_in_its_length():
    browsed = {"last_items": list(range(100)), "pages": list(range(100)), "items": list(range(100))}
    values = {ViewKey(view=view, key="1"): browsed for view in ("user_browse_5m", "user_browse_1m")}
    request = request_features(values, None, user_id=1, realtime=True)
    item = item_features(ITEM, trends({}, None, page_id=None), recent=Recent())
    assert {*request, *item} <= {*INPUTS}
    lists = {name: len(value) for name, value in request.items() if isinstance(value, list)}
    assert lists == {name: each.length for name, each in INPUTS.items() if each.kind == "ids"}


def test_what_was_logged_as_json_gives_the_same_columns_as_what_was_served():
    values = {ViewKey(view="user_browse_5m", key="1"): {"view": 2, "dwell_ms": 7, "last_items": list(range(50))}}
    served = request_features(values, PROFILE, user_id=1, realtime=True)
    logged = json.loads(json.dumps(served))
    a, b = (assemble(INPUTS.values(), [row]) for row in (served, logged))
    assert a.keys() == INPUTS.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert served["user_last_items"] == list(range(10))
    assert (served["user_5m_view"], served["user_5m_click"], served["city"]) == (2, 0, "Shanghai")


def test_an_item_has_its_counts_on_the_lists_of_its_category_type_and_segments():
    values = {
        ViewKey(view="category_top_items_10m", key="3"): {"top": [[5, 9]]},
        ViewKey(view="category_top_items_10m", key="4"): {"top": [[5, 100]]},
        ViewKey(view="top_viewed_30m", key="ad"): {"top": [[6, 8], [5, 7]]},
        ViewKey(view="segment_page_top_ads", key="CN|f|2"): {"top": [[5, 4]], "last": [5]},
        ViewKey(view="segment_page_top_ads", key="CN|f|Shanghai|2"): None,
        ViewKey(view="segment_page_top_ads", key="CN|f|3"): {"top": [[5, 100]], "last": [5]},
    }
    found = item_features(
        ITEM, trends(values, PROFILE, page_id=2), recent=Recent(items=frozenset([9, 5]), by_category={"3": 2, "4": 7})
    )
    assert found == {
        "item_category": "3",
        "item_type": "ad",
        "item_category_clicks_10m": 9,
        "item_type_views_30m": 7,
        "item_segment_clicks_10m": 4,
        "item_city_segment_clicks_10m": 0,
        "item_recently_viewed": 1,
        "item_category_recently_viewed": 2,
    }


def test_the_newest_ten_items_viewed_count_for_their_category_and_those_without_one_for_none():
    viewed = [CatalogItem(item_id=i, ts=0, category_id=3 if i < 12 else None) for i in (12, *range(12))]
    recent = recently_viewed(viewed)
    bare = CatalogItem(item_id=99, ts=0)
    found = [item_features(item, trends({}, None, page_id=None), recent=recent) for item in (ITEM, bare, viewed[-1])]
    assert [each["item_category_recently_viewed"] for each in found] == [9, 0, 9]
    # Whether the very item was viewed is known of all that the view keeps.
    assert [each["item_recently_viewed"] for each in found] == [1, 0, 1]


def test_only_keys_that_can_have_data_are_asked_for():
    assert [ask.key for ask in request_asks(user_id=1, profile=PROFILE, page_id=2)] == [
        "1",
        "1",
        "CN|f|2",
        "CN|f|Shanghai|2",
    ]
    nowhere = ProfileVersion(user_id=1, ts=0, country="CN", gender="f")
    assert [ask.key for ask in request_asks(user_id=1, profile=nowhere, page_id=2)] == ["1", "1", "CN|f|2"]
    assert len(request_asks(user_id=1, profile=PROFILE, page_id=None)) == 2
    assert item_asks([CatalogItem(item_id=1, ts=0)]) == []
