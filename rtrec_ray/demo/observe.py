"""What every show reads of its system when it is over."""

from __future__ import annotations

from contextlib import closing

from rtrec_ray.app.training import INCREMENTAL
from rtrec_ray.clock import ScaledClock
from rtrec_ray.demo.record import ProgressPoint, TimeLine
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.training import PostgresTrainingBook


def time_line(clock: ScaledClock, *, began_ms: int) -> TimeLine:
    """The clock of events over a run that began at `began_ms`, wall time."""
    return TimeLine(
        clock_s=(clock.origin_wall_ms - began_ms) / 1_000.0, event_ms=clock.origin_event_ms, speed=clock.speed
    )


def progress_points(postgres: PostgresOptions, *, began_ms: int) -> tuple[ProgressPoint, ...]:
    """The incremental run's progressive losses. Raises StoreUnavailable."""
    with closing(PostgresTrainingBook(postgres)) as book:
        points = book.progress(INCREMENTAL)
    return tuple(
        ProgressPoint(
            at_s=(point.at_ms - began_ms) / 1_000.0,
            event_time_ms=point.event_time_ms,
            rows=point.rows,
            positives=point.positives,
            log_loss=point.log_loss,
            base_log_loss=point.base_log_loss,
            lag_rows=point.lag_rows,
            base=point.base_version,
        )
        for point in points
    )
