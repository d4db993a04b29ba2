"""A scheduler process for fault tests: its jobs claim their run and succeed at once. Usage: ... DSN."""

from __future__ import annotations

import sys
import threading

from actors.job_runner import MemoryJobRunner
from actors.scheduler import SchedulerLoop, SchedulerOptions
from actors.workflow_log import sending
from rtrec_ray.clock import REAL
from rtrec_ray.notification import PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.workflow.postgres import PostgresWorkflowStore

ENDS = {"one": "succeeded", "pair": "succeeded", "third": "succeeded"}

if __name__ == "__main__":
    postgres = PostgresOptions(dsn=sys.argv[1])
    log = PostgresNotificationStore(postgres)
    store = PostgresWorkflowStore(postgres, sending(log))
    options = SchedulerOptions(lease_ttl_ms=2_000, look_every_s=0.1, lost_after_ms=300, most_events=20)
    runner = MemoryJobRunner(store, ends=ENDS)  # type: ignore[arg-type]
    SchedulerLoop(store, log, runner, clock=REAL, options=options).run(threading.Event())
