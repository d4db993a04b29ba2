"""From an event to the committed order of a rule that it meets, with many active rules.

    python benchmarks/bench_workflow.py [--rate 1000] [--rules 1000] [--seconds 20]

PostgreSQL is of its own, with fsync. Events come from a process apart, ten in a transaction, over as many keys as there
are rules; each rule is met by the tenth event of its key and starts a node of its own, which then goes on. The time
goes from the event's own (whole ms, before its transaction's end) until the transaction with the order is over. Jobs
are not started. Prints one JSON line; the goal is 100 ms at the 99th percentile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np

from actors.job_runner import JobState
from actors.scheduler import SchedulerLoop
from actors.workflow_log import sending
from rtrec_ray.clock import REAL, monotonic_s, wall_ms
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.notification import NewEvent, PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.stores.workflow.postgres import PostgresSchedulerSession, PostgresWorkflowStore
from rtrec_ray.workflow.conditions import Count, EventIs
from rtrec_ray.workflow.definition import Action, Node, Rule, Workflow
from rtrec_ray.workflow.nodes import Order
from rtrec_ray.workflow.state import Changes

EACH = 10  # events in a transaction, and to meet a rule


class Nowhere:
    """A job server that starts nothing."""

    def start(self, order: Order, /) -> None: ...

    def stop(self, run_id: str, /) -> None: ...

    def look(self, run_ids: object, /) -> dict[str, JobState]:
        return dict.fromkeys(run_ids, "going")  # type: ignore[call-overload]

    def log(self, run_id: str, /) -> str:
        return ""


class TimedSession(PostgresSchedulerSession):
    """Notes when each order was committed."""

    committed: dict[int, int]

    def commit(self, changes: Changes, /) -> None:
        super().commit(changes)
        now = wall_ms()
        self.committed.update({order.cause.by[-1]: now for order in changes.orders})


class TimedStore(PostgresWorkflowStore):
    """Hands out timed sessions."""

    def __init__(self, options: PostgresOptions, send: object) -> None:
        super().__init__(options, send)  # type: ignore[arg-type]
        self.committed: dict[int, int] = {}

    def open_session(self, *, owner: str, ttl_ms: int) -> PostgresSchedulerSession:
        session = super().open_session(owner=owner, ttl_ms=ttl_ms)
        session.__class__ = TimedSession
        session.committed = self.committed  # type: ignore[attr-defined]
        return session


def many_rules(count: int) -> Workflow:
    nodes = tuple(Node(name=f"n{at}", command=("true",)) for at in range(count))
    rules = tuple(
        Rule(
            name=f"r{at}",
            when=Count(n=EACH, term=EventIs(key=f"k{at}", type="T")),
            then=(Action(do="start", node=f"n{at}"),),
        )
        for at in range(count)
    )
    return Workflow(name="many", nodes=nodes, rules=rules)


def send(options: PostgresOptions, rate: int, rules: int, seconds: int) -> None:
    """Runs in a process of its own."""
    rng, pause = random.Random(0), threading.Event()
    log = PostgresNotificationStore(options)
    with closing(log), closing(connect(options)) as connection:
        begun = monotonic_s()
        for batch in range(rate * seconds // EACH):
            pause.wait(max(0.0, begun + batch * EACH / rate - monotonic_s()))
            with transaction(connection) as cur:
                for _ in range(EACH):
                    log.send_in(cur, NewEvent(key=f"k{rng.randrange(rules)}", value="", type="T"))


def measure(options: PostgresOptions, rate: int, rules: int, seconds: int) -> dict[str, object]:
    log = PostgresNotificationStore(options)
    store, stop = TimedStore(options, sending(log)), threading.Event()
    store.apply(many_rules(rules))
    loop = threading.Thread(target=SchedulerLoop(store, log, Nowhere(), clock=REAL).run, args=(stop,))
    loop.start()
    while not store.load().workflows:
        stop.wait(0.1)
    sender = multiprocessing.get_context("spawn").Process(target=send, args=(options, rate, rules, seconds))
    begun = monotonic_s()
    sender.start()
    sender.join()
    sent_s = monotonic_s() - begun
    while store.load().position < log.end_offset():
        stop.wait(0.1)
    stop.set()
    loop.join()
    events = {}
    while page := log.list(after_offset=max(events, default=0), limit=10_000):
        events.update({event.offset: event.time_ms for event in page})
    log.close()
    store.close()
    waits = np.array([at - events[offset] for offset, at in store.committed.items()])
    return {
        "events": len(events) - 1,
        "events_per_s": round((len(events) - 1) / sent_s),
        "rules": rules,
        "orders": len(waits),
        "p50_ms": float(np.percentile(waits, 50)),
        "p99_ms": float(np.percentile(waits, 99)),
        "max_ms": int(waits.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--rules", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=20)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rtrec-") as directory:
        server = PostgresServer(PostgresServerOptions(directory=Path(directory) / "postgres"))
        server.start()
        try:
            options = PostgresOptions(dsn=server.dsn("postgres"))
            migrate(options)
            print(json.dumps(measure(options, chosen.rate, chosen.rules, chosen.seconds)))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
