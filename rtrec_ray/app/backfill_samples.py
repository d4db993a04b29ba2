"""`rtrec features backfill VIEW --samples`: past samples get a view's features, out of the history."""

from __future__ import annotations

from contextlib import closing

from rtrec_ray.app.system import System
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.stores.features.as_of import AsOfReader, Progress
from rtrec_ray.stores.features.past import past_of
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.samples.backfill import SamplesBackfill, SamplesBackfillSummary


def backfill_samples(
    system: System, view: str, *, from_ms: int | None, to_ms: int | None, progress: Progress
) -> SamplesBackfillSummary:
    """Fill samples of requests of [from_ms, to_ms). Raises UnknownView, BackfillImpossible, StoreUnavailable."""
    with (
        closing(Pool(system.postgres, size=1)) as pool,
        closing(past_of(system.history_uri, system.postgres)) as past,
    ):
        store = PostgresFeatureStore(system.features, pool=pool)
        store.refresh()
        reader = AsOfReader(store=store, past=past)
        return SamplesBackfill(reader, pool=pool).fill(view, from_ms=from_ms, to_ms=to_ms, progress=progress)
