"""A backfill as a Ray Data job: slices of event time side by side, each computed from the history and committed alone.

Killed and started again it goes on with the slices that are not committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, Final

import ray.data
from ray.data import TaskPoolStrategy

from actors.jobs.quiet import keep_quiet
from actors.jobs.translated import translated
from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import BackfillImpossible
from rtrec_ray.features.definition import Definitions
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.features.backfill import BackfillPlan, FeatureBackfill
from rtrec_ray.stores.features.open import open_features

_HISTORY_S: Final = 120.0  # the history commits every few seconds; longer, and it does not run


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillOptions:
    """Which view ("name" or "name@version"), which stretch of event time (ms UTC, None: all there is), from where.

    `tasks` of one logical CPU each run side by side, each with the tiles of a slice in memory, and half a million
    events or a minute's.
    """

    view: str
    from_ms: int | None
    to_ms: int | None
    definitions: Definitions
    postgres: PostgresOptions
    history_uri: str
    tasks: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillSummary:
    """What a run did. `slices` of event time, `already` of which were done before; `rows` of tiles.

    `complete_from_ms`: since when the view has all events now; `kept_from_ms`: since when tiles are kept, which may be
    later than was asked for.
    """

    view: str
    slices: int
    already: int
    rows: int
    complete_from_ms: int
    kept_from_ms: int
    seconds: float


def backfill(options: BackfillOptions, *, on_slice: Callable[[int, int], None]) -> BackfillSummary:
    """Fill a view; `on_slice` gets (done, total). Needs a Ray connection.

    Raises UnknownView, BackfillImpossible, StoreUnavailable, RayUnavailable.
    """
    begun_s = monotonic_s()
    keep_quiet()
    with _job(options) as job:
        plan = job.plan(options.view, from_ms=options.from_ms, to_ms=options.to_ms)
        _wait_for_history(job, plan)
        total, rows = plan.done + len(plan.todo), 0
        on_slice(plan.done, total)
        if plan.todo:
            slices = ray.data.from_items(
                [{"from_ms": start} for start in plan.todo], override_num_blocks=len(plan.todo)
            )
            tasks = TaskPoolStrategy(size=min(options.tasks, len(plan.todo)))
            filled = slices.map(partial(_fill, options, plan), num_cpus=1, compute=tasks)
            with translated("fills a slice"):
                for done, row in enumerate(filled.iter_rows(), start=plan.done + 1):
                    rows += row["rows"]
                    on_slice(done, total)
        complete_from_ms = job.complete(plan)
    return BackfillSummary(
        view=plan.view.id,
        slices=total,
        already=plan.done,
        rows=rows,
        complete_from_ms=complete_from_ms,
        kept_from_ms=plan.kept_from_ms,
        seconds=round(monotonic_s() - begun_s, 2),
    )


def _fill(options: BackfillOptions, plan: BackfillPlan, row: dict[str, Any]) -> dict[str, Any]:
    with _job(options) as job:
        return {**row, "rows": job.fill(plan, from_ms=row["from_ms"])}


@contextmanager
def _job(options: BackfillOptions) -> Iterator[FeatureBackfill]:
    with open_features(options.definitions, postgres=options.postgres, history_uri=options.history_uri) as opened:
        yield FeatureBackfill(opened.store, pool=opened.pool, past=opened.past)


def _wait_for_history(job: FeatureBackfill, plan: BackfillPlan) -> None:
    deadline, pause = monotonic_s() + _HISTORY_S, Event()
    while not job.reached(plan):
        if monotonic_s() > deadline:
            raise BackfillImpossible(
                "the history does not have all events before the view began",
                mend="`rtrec status` shows whether the stage history is up",
            )
        pause.wait(0.5)
