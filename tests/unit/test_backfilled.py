"""What a base learns where a sample lacks a feature that was computed afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

from rtrec_ray.stores.samples.store import MemorySampleStore
from training.definition import InputColumn, ModelDefinition
from training.reading import PREFIX, LedgerReader

VIEWS = InputColumn(name="user_5m_view", kind="number")
CITY = InputColumn(name="city", kind="category", bins=4)


class Desk:
    """A store with one sample; its city was logged, its views were not."""

    def samples(self) -> MemorySampleStore:
        store = MemorySampleStore()
        features = {"features": orjson.dumps({"city": "Delhi"}).decode()}
        later = {"backfilled": orjson.dumps({"city": "Oslo", "user_5m_view": 7}).decode()}
        sample = {"request_id": "r", "item_id": 1, "user_id": 2, "event_time_ms": 3, "revision": 0, "label": 1}
        store.append(pl.DataFrame([{**sample, **features, **later}, {**sample, "item_id": 2, **features}]))
        return store


def read(*, backfilled: bool) -> Mapping[str, Any]:
    definition = ModelDefinition(family="logistic", inputs=(CITY, VIEWS), backfilled=backfilled)
    connections: Any = Desk()
    reader = LedgerReader(connections=connections, definition=definition, held_out_percent=0, to_seq=2)
    (block,) = reader({"after": np.array([0]), "upto": np.array([2])})
    return block


@pytest.mark.parametrize(("backfilled", "views"), [(True, [7.0, 0.0]), (False, [0.0, 0.0])])
def test_a_feature_computed_afterwards_stands_in_for_one_that_was_not_logged_where_the_model_says_so(backfilled, views):
    block = read(backfilled=backfilled)
    assert block[f"{PREFIX}user_5m_view"].tolist() == views
    assert block[f"{PREFIX}city"].tolist() == ["Delhi", "Delhi"]
