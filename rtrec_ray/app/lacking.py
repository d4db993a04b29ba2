"""Which live views lack something of their past that the history could give."""

from __future__ import annotations

import threading
from typing import Final

from rtrec_ray.app.system import System
from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import BackfillImpossible
from rtrec_ray.features.definition import NOT_BEGUN_MS, Definitions
from rtrec_ray.stores.features.backfill import FeatureBackfill
from rtrec_ray.stores.features.open import open_features
from rtrec_ray.stores.features.postgres import PostgresFeatureStore

# The stream looks for new views each third of its lease; just after `rtrec up` it has to start first.
BEGIN_S: Final = 60.0


def lacking_views(system: System, *, begin_s: float = BEGIN_S) -> tuple[str, ...]:
    """The views ("name@version") with something to fill, once all have begun; waits up to `begin_s` of wall time.

    Raises BackfillImpossible for views that have not begun then, NotRunning, StoreUnavailable.
    """
    with open_features(system.features, postgres=system.postgres, history_uri=system.history_uri) as opened:
        _wait_for_begin(opened.store, begin_s)
        job = FeatureBackfill(opened.store, pool=opened.pool, past=opened.past)
        # One that is not named here has had all events from the first one on.
        return tuple(view for view in opened.store.definitions.complete_from_ms if job.lacks(view))


def not_begun(live: Definitions) -> list[str]:
    """The views that some partition of the stream does not count yet."""
    return [view for view, since_ms in live.complete_from_ms.items() if since_ms == NOT_BEGUN_MS]


def _wait_for_begin(store: PostgresFeatureStore, begin_s: float) -> None:
    deadline, pause = monotonic_s() + begin_s, threading.Event()
    while views := not_begun(store.definitions):
        if monotonic_s() >= deadline:
            raise BackfillImpossible(
                f"{', '.join(views)} did not begin in every partition within {begin_s:g} s",
                mend="`rtrec status` shows whether the stage features is up; then try again",
            )
        pause.wait(0.5)
        store.refresh()
