"""The scheduler: a shell around the decisions of rtrec_ray/workflow. It never ends.

Two threads. One reads the log, decides and commits, under the lease. The other carries out the orders that stand in the
store and looks after the runs; it may do so twice, or late, as the runs' rows make sure that each works once.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from actors.job_runner import JobRunner
from actors.workflow_log import occurred
from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import Clock, monotonic_s, wall_ms
from rtrec_ray.errors import LeaseHeld, LeaseLost, ServerUnavailable
from rtrec_ray.notification.base import Event, EventFilter, NotificationStore
from rtrec_ray.stores.workflow.store import Run, SchedulerSession, WorkflowStore
from rtrec_ray.workflow.events import WORKFLOW_REQUESTED
from rtrec_ray.workflow.nodes import Order
from rtrec_ray.workflow.scheduler import Scheduler
from rtrec_ray.workflow.state import Changes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """Durations in wall time. `look_every_s`: at orders, runs and watermarks; `tick_every_s`: the longest between two
    looks at the clock; `lost_after_ms`: so long a run may be unknown to the job server before it counts as lost.
    """

    owner: str = "scheduler"
    lease_ttl_ms: int = 10_000
    tick_every_s: float = 0.5
    look_every_s: float = 1.0
    lost_after_ms: int = 10_000
    most_events: int = 500


class SchedulerLoop:
    """Decides for all workflows as long as it has the lease; another one waits for it.

    `watermarks`: tells each stage's watermark, ms, or nothing for a stage that has none yet.
    """

    def __init__(
        self,
        store: WorkflowStore,
        events: NotificationStore,
        runner: JobRunner,
        *,
        clock: Clock,
        options: SchedulerOptions | None = None,
        watermarks: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._store, self._events, self._runner = store, events, runner
        self._clock, self._watermarks = clock, watermarks
        self._options = options or SchedulerOptions()
        self._silent: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._ordered, self._leading = threading.Event(), threading.Event()
        self._fault: Exception | None = None
        self.trouble = ""

    def run(self, stop: threading.Event) -> None:
        """See Work."""
        carrier = threading.Thread(target=self._carry_out, args=(stop,), name="workflow-orders", daemon=True)
        carrier.start()
        failures, backoff = 0, Backoff()
        while not stop.is_set():
            try:
                session = self._store.open_session(owner=self._options.owner, ttl_ms=self._options.lease_ttl_ms)
                try:
                    self._decide(session, stop)
                finally:
                    self._leading.clear()
                    session.close()
                failures = 0
            except (LeaseHeld, LeaseLost, ServerUnavailable) as error:
                failures += 1
                self.trouble = error.message
                log.warning("scheduler_waits", extra={"failures": failures, "cause": error.message})
                stop.wait(backoff.wait_s(failures))
        self._ordered.set()
        carrier.join()

    def _decide(self, session: SchedulerSession, stop: threading.Event) -> None:
        """One session: from what is committed until something fails."""
        loaded = self._store.load()
        scheduler = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)
        stored, told = loaded.position, dict[str, int]()
        renewed = looked = monotonic_s()
        self.trouble = ""
        self._leading.set()
        self._ordered.set()
        while not stop.is_set():
            if self._read(scheduler):  # silences and schedules must not be decided ahead of events that wait
                scheduler.tick(now_ms=self._clock.now_ms(), wall_ms=wall_ms())
            if monotonic_s() - looked >= self._options.look_every_s:
                looked = monotonic_s()
                self._look_at_watermarks(scheduler, told)
            self._hear_silences(scheduler)
            changes = scheduler.changes()
            if _worth_storing(changes, stored):
                session.commit(changes)
                stored, renewed = changes.position, monotonic_s()
                if changes.orders:
                    self._ordered.set()
            elif (monotonic_s() - renewed) * 3_000 >= self._options.lease_ttl_ms:
                session.renew()
                renewed = monotonic_s()

    def _read(self, scheduler: Scheduler) -> bool:
        """Handle what is there; answers whether that was all."""
        if self._fault is not None:
            raise self._fault  # nobody would carry out what is decided
        wait_s = self._options.tick_every_s
        due_ms = scheduler.next_ms()
        if due_ms is not None:
            ahead_s = (due_ms - self._clock.now_ms()) / 1_000 / self._clock.speed
            wait_s = min(wait_s, max(0.0, ahead_s))
        limit = self._options.most_events
        step = self._events.step(EventFilter(), after_offset=scheduler.position, timeout_s=wait_s, limit=limit)
        for event in step.events:
            self._fetch_definition(scheduler, event)
            scheduler.handle(occurred(event), now_ms=self._clock.now_ms(), wall_ms=wall_ms())
        return len(step.events) < limit

    def _fetch_definition(self, scheduler: Scheduler, event: Event) -> None:
        if event.type == WORKFLOW_REQUESTED and event.value == "apply":
            definition = self._store.definition(str(event.context.get("digest")))
            if definition is not None:
                scheduler.know(definition)

    def _look_at_watermarks(self, scheduler: Scheduler, told: dict[str, int]) -> None:
        for stage, value_ms in self._watermarks().items():
            if told.get(stage) != value_ms:
                told[stage] = value_ms
                scheduler.move_watermark(stage, value_ms, now_ms=self._clock.now_ms(), wall_ms=wall_ms())

    def _hear_silences(self, scheduler: Scheduler) -> None:
        while not self._silent.empty():
            run = self._silent.get()
            scheduler.silent(run.workflow, run.node, run.run_id, wall_ms=wall_ms())

    # --- the second thread

    def _carry_out(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                self._ordered.wait(self._options.look_every_s)
                self._ordered.clear()
                if self._leading.is_set():
                    self._carry_all(stop)
        except Exception as error:
            log.exception("orders_crashed")
            self._fault = error

    def _carry_all(self, stop: threading.Event) -> None:
        try:
            for order in self._store.open_orders():
                self._carry(order)
            self._look_after_runs()
            self.trouble = ""
        except ServerUnavailable as error:  # the orders stand in the store: they are tried again
            self.trouble = error.message
            log.warning("orders_wait", extra={"cause": error.message})
            stop.wait(self._options.look_every_s)

    def _carry(self, order: Order) -> None:
        if order.do == "start":
            self._runner.start(order)
        else:
            self._store.request_stop(order.run)
            self._runner.stop(order.run)
        self._store.carried(order.id)
        log.info("order_carried_out", extra={"order": order.id, "rule": order.cause.rule})

    def _look_after_runs(self) -> None:
        going = self._store.runs_going()
        open_runs = {order.run for order in self._store.open_orders()}
        states = self._runner.look([run.run_id for run in going])
        for run in going:
            state = states.get(run.run_id, "unknown")
            # The heartbeat says more than the job server, which may just have been started anew.
            lost = state == "unknown" and run.silent_ms >= self._options.lost_after_ms
            if run.run_id not in open_runs and (state == "ended" or lost):
                self._end(run, "ended without a word" if state == "ended" else "lost by the job server")
            elif run.state == "running" and run.heartbeat_ms is not None and run.silent_ms >= run.heartbeat_ms:
                self._silent.put(run)

    def _end(self, run: Run, reason: str) -> None:
        """A job that is gone and has not said how it ended; when it just did, this changes nothing."""
        self._store.finish(run.run_id, "stopped" if run.stop_requested else "failed", reason=reason)


def _worth_storing(changes: Changes, stored_position: int) -> bool:
    """Time that passed without consequence is not stored: what it would have led to is decided again."""
    states = changes.workflows or changes.rules or changes.nodes
    return bool(changes.position > stored_position or states or changes.orders or changes.announcements)
