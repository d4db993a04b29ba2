"""`rtrec features backfill VIEW --samples`: past samples get a view's features, out of the history."""

from __future__ import annotations

from rtrec_ray.app.system import System
from rtrec_ray.stores.features.as_of import AsOfReader, Progress
from rtrec_ray.stores.features.open import open_features
from rtrec_ray.stores.samples.backfill import SamplesBackfill, SamplesBackfillSummary


def backfill_samples(
    system: System, view: str, *, from_ms: int | None, to_ms: int | None, progress: Progress
) -> SamplesBackfillSummary:
    """Fill samples of requests of [from_ms, to_ms). Raises UnknownView, BackfillImpossible, StoreUnavailable."""
    with open_features(system.features, postgres=system.postgres, history_uri=system.history_uri) as opened:
        reader = AsOfReader(store=opened.store, past=opened.past)
        return SamplesBackfill(reader, pool=opened.pool).fill(view, from_ms=from_ms, to_ms=to_ms, progress=progress)
