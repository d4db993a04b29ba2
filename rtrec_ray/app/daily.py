"""History → static features: by hand, and once a day of event time by the workflow `features`.

Import this only when Ray's variables are set (`join_environment`): Ray reads some of them as it is imported.
"""

from __future__ import annotations

import datetime as dt
import uuid
from contextlib import closing

from actors.jobs.static_features import StaticOptions, correct_static_features
from rtrec_ray.app.snapshot import keep_snapshot
from rtrec_ray.app.system import System
from rtrec_ray.errors import LeaseHeld
from rtrec_ray.features.daily import complete_day
from rtrec_ray.metadata.base import JobRun
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.metadata.recording import recorded
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.stores.progress import read_stages
from rtrec_ray.stores.static.run import Progress, RunOrder, RunReport


def correct_static(
    system: System, *, days: tuple[dt.date, ...] = (), everything: bool = False, progress: Progress | None = None
) -> RunReport:
    """A run: the days for which something came, `days`, or all. Needs a Ray connection (`cluster.joined`).

    Raises BeyondRetention for a day that is not kept any more, LeaseHeld while another run goes on, LeaseLost,
    NotRunning, StoreUnavailable, RayUnavailable.
    """
    order = RunOrder(
        owner=f"daily-{uuid.uuid4().hex[:8]}", complete=last_complete(system), days=days, everything=everything
    )
    daily = system.settings.daily
    options = StaticOptions(
        postgres=system.postgres,
        history_uri=system.history_uri,
        tasks=daily.tasks,
        rows_per_task=daily.rows_per_task,
        keep_days=daily.keep_days,
    )
    run = JobRun(
        run_id=order.owner,
        job="static-features",
        kind="batch",
        started_ms=system.clock.now_ms(),
        snapshot=keep_snapshot(system),
    )
    try:
        with recorded(lambda: PostgresMetadataStore(system.postgres), run, clock=system.clock) as outcome:
            report = correct_static_features(options, order, progress or (lambda done, total: None))
            outcome |= {"days": [str(day) for day in report.days], "events": report.events}
        return report
    except LeaseHeld as error:
        raise LeaseHeld(
            f"another run goes on: {error.message}", mend="wait for its end; it takes up what came so far"
        ) from error


def last_complete(system: System) -> dt.date | None:
    """The last day that is over by the history's event time; None as long as that is not known."""
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        stage = read_stages(cursor).get("history")
    if stage is None or stage.watermark_ms is None:
        return None
    return complete_day(stage.watermark_ms)
