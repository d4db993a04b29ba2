"""Filling a new view out of the history, as a job on the Ray cluster.

Import this only when Ray's variables are set (`join_environment`): Ray reads some of them as it is imported.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from actors.jobs.backfill import BackfillOptions, BackfillSummary, backfill
from rtrec_ray.app.snapshot import keep_snapshot
from rtrec_ray.app.system import System
from rtrec_ray.metadata.base import JobRun
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.metadata.recording import recorded


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
        tasks=system.settings.daily.tasks,
    )
    run = JobRun(
        run_id=f"backfill-{uuid.uuid4().hex[:12]}",
        job="backfill",
        kind="batch",
        started_ms=system.clock.now_ms(),
        context={"view": view, "from_ms": from_ms, "to_ms": to_ms},
        snapshot=keep_snapshot(system),
    )
    with recorded(lambda: PostgresMetadataStore(system.postgres), run, clock=system.clock) as outcome:
        summary = backfill(options, on_slice=on_slice)
        outcome |= {"slices": summary.slices, "rows": summary.rows}
    return summary
