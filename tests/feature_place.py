"""The tables of a feature store, in memory or in PostgreSQL, and what is put into them by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import polars as pl
import pytest

from rtrec_ray.features.compute import TILE_SCHEMA
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.stores.features.memory import MemoryFeatureStore, MemoryFeatureTables
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import FeatureStore, TaskOutput

DEFINITIONS = load_definitions(Path(__file__).parents[1] / "configs" / "features.yaml")
BASE = 1_767_225_600_000
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000


class Place:
    """One store's tables, and how to open it and a transaction on it."""

    def __init__(self, pool: Pool | None) -> None:
        self.pool = pool
        self.tables = MemoryFeatureTables()

    def transaction(self):
        return nullcontext(None) if self.pool is None else self.pool.transaction()

    def store(self, definitions: Definitions = DEFINITIONS, *, new: tuple[str, ...] | None = None) -> FeatureStore:
        """A store of its own over the same tables, with the definitions entered, of which `new` are new to it."""
        found: FeatureStore
        if self.pool is None:
            found = MemoryFeatureStore(definitions, tables=self.tables)
        else:
            found = PostgresFeatureStore(definitions, pool=self.pool)
        with self.transaction() as cursor:
            added = found.apply(cursor)
        assert new in (None, added)
        found.refresh()
        return found

    def append(self, store: FeatureStore, *, partition: int = 0, **parts) -> None:
        with self.transaction() as cursor:
            store.begin(cursor, partition=partition, next_offset=0, complete_from_ms=None)
            store.append(cursor, TaskOutput(**{"partition": partition, "watermark_ms": None, **parts}))


@pytest.fixture
def pool(dsn: str) -> Iterator[Pool]:
    """Connections to the test's own database."""
    with closing(Pool(PostgresOptions(dsn=dsn), size=3)) as found:
        yield found


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def place(request) -> Iterator[Place]:
    if request.param == "memory":
        yield Place(None)
        return
    pool = Pool(PostgresOptions(dsn=request.getfixturevalue("dsn")), size=2)
    yield Place(pool)
    pool.close()


def tiles(*rows):
    return pl.DataFrame(list(rows), schema=TILE_SCHEMA, orient="row")
