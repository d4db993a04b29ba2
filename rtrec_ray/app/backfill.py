"""Filling a new view out of the history, as a job on the Ray cluster.

Import this only when Ray's variables are set (`join_environment`): Ray reads some of them as it is imported.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.jobs.backfill import BackfillOptions, BackfillSummary, backfill
from rtrec_ray.app.system import System


def backfill_view(
    system: System, view: str, *, from_ms: int | None, to_ms: int | None, on_slice: Callable[[int, int], None]
) -> BackfillSummary:
    """Fill a view; `on_slice` gets (done, total). Needs a Ray connection (`cluster.joined`).

    Raises UnknownView, BackfillImpossible, StoreUnavailable.
    """
    options = BackfillOptions(
        view=view,
        from_ms=from_ms,
        to_ms=to_ms,
        definitions=system.features,
        postgres=system.postgres,
        history_uri=system.history_uri,
    )
    return backfill(options, on_slice=on_slice)
