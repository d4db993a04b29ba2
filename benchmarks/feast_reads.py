"""Feast as the other side of `bench_reads.py`: the same values in its online store, read the way it is quickest.

One table a feature view and one row a feature, as Feast makes them. What it is given so as not to be slowed down: a
connection that stays open, a registry in memory that never expires, features by a FeatureService resolved beforehand,
keys by column, and all views of a request in one statement (its own doing).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

# Read when the package is imported: nothing is to leave the machine.
os.environ["FEAST_USAGE"] = "False"

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Int64, String

from rtrec_ray.features.merge import Value

FEAST_VERSION: Final = version("feast")
COUNTS: Final = ("view", "click", "favorite", "cart", "consult", "comment", "search", "dwell_ms")

USER: Final = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
CATEGORY: Final = Entity(name="category", join_keys=["category_id"], value_type=ValueType.INT64)


class FeastReads:
    """Values of users (`user_browse_5m`) and of categories (`category_top_items_10m`) in a Feast online store."""

    def __init__(self, directory: Path, *, address: Mapping[str, str | int]) -> None:
        """`address`: host, port, database, user and password of PostgreSQL. Registry and sources are in `directory`."""
        self._store = FeatureStore(
            config=RepoConfig(
                project="reads",
                provider="local",
                registry={"path": str(directory / "registry.db"), "cache_ttl_seconds": 0},  # 0: it never expires
                online_store={"type": "postgres", "sslmode": "disable", **address},
                entity_key_serialization_version=3,
            )
        )
        self._users = _view("user", USER, [*_fields(COUNTS, Int64), *_user_lists()], directory)
        self._categories = _view("category", CATEGORY, _fields(("top_items", "top_clicks"), Array(Int64)), directory)
        self._services: dict[tuple[bool, bool], FeatureService] = {
            (True, False): FeatureService(name="of_users", features=[self._users]),
            (False, True): FeatureService(name="of_categories", features=[self._categories]),
            (True, True): FeatureService(name="of_both", features=[self._users, self._categories]),
        }
        self._store.apply([USER, CATEGORY, self._users, self._categories, *self._services.values()])

    def put(self, users: Mapping[int, Value], categories: Mapping[int, Value]) -> None:
        """Write values by user_id and by category_id."""
        now = pd.Timestamp.now(tz="UTC")
        rows = [{"user_id": key, "event_timestamp": now, **_of_user(value)} for key, value in users.items()]
        self._store.write_to_online_store("user", df=pd.DataFrame(rows))
        rows = [
            {"category_id": key, "event_timestamp": now, **_of_category(value)} for key, value in categories.items()
        ]
        self._store.write_to_online_store("category", df=pd.DataFrame(rows))

    def request(self, users: Sequence[int], categories: Sequence[int]) -> dict[str, Any]:
        """The words of a request for these users, or these categories, or one user and some categories."""
        keys: dict[str, list[int]] = {}
        if users:
            keys["user_id"] = [*users] * (len(categories) or 1)
        if categories:
            keys["category_id"] = [*categories]
        return {"features": self._services[(bool(users), bool(categories))], "entity_rows": keys}

    def get(self, request: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What was asked for, by column; a column of each key and each feature."""
        columns: dict[str, list[Any]] = self._store.get_online_features(**request).to_dict()
        return columns

    def has(self, users: Mapping[int, Value], categories: Mapping[int, Value]) -> bool:
        """Whether it answers these values by user_id and by category_id."""
        wanted = [_of_user(value) for value in users.values()]
        if not _same(self.get(self.request([*users], ())), wanted):
            return False
        return _same(self.get(self.request((), [*categories])), [_of_category(value) for value in categories.values()])

    def close(self) -> None:
        """Drop its tables."""
        self._store.teardown()


def _same(answer: Mapping[str, Sequence[Any]], wanted: Sequence[Mapping[str, Any]]) -> bool:
    # An empty list comes back as null.
    return all(
        (answer[name][at] or type(value)()) == value for at, row in enumerate(wanted) for name, value in row.items()
    )


def _view(name: str, entity: Entity, fields: list[Field], directory: Path) -> FeatureView:
    # Feast wants a source even where values are only pushed; this one is never read.
    source = FileSource(
        name=f"{name}_source", path=str(directory / f"{name}.parquet"), timestamp_field="event_timestamp"
    )
    return FeatureView(name=name, entities=[entity], ttl=None, schema=fields, source=source, online=True)


def _fields(names: Sequence[str], kind: Any) -> list[Field]:
    return [Field(name=name, dtype=kind) for name in names]


def _user_lists() -> list[Field]:
    return [Field(name="view_by_type", dtype=String), Field(name="last_items", dtype=Array(Int64))]


def _of_user(value: Value) -> dict[str, Any]:
    counts = {name: value[name] for name in COUNTS}
    return {**counts, "view_by_type": json.dumps(value["view_by_type"]), "last_items": value["last_items"]}


def _of_category(value: Value) -> dict[str, Any]:
    return {"top_items": [item for item, _ in value["top"]], "top_clicks": [clicks for _, clicks in value["top"]]}
