"""What a command or a job of the features works with, opened and closed together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from rtrec_ray.features.definition import Definitions
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.stores.features.past import HistoryPast, past_of
from rtrec_ray.stores.features.postgres import PostgresFeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """`store`: with what is live now; `pool`: of one connection; `past`: the history."""

    store: PostgresFeatureStore
    pool: Pool
    past: HistoryPast


@contextmanager
def open_features(definitions: Definitions, *, postgres: PostgresOptions, history_uri: str) -> Iterator[Opened]:
    """The feature store and the history below `history_uri`; while nothing is live the views are `definitions`.

    Raises StoreUnavailable.
    """
    with closing(Pool(postgres, size=1)) as pool, closing(past_of(history_uri, postgres)) as past:
        store = PostgresFeatureStore(definitions, pool=pool, past=past)
        store.refresh()
        yield Opened(store=store, pool=pool, past=past)
