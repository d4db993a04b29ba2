"""Events through the notification service, on a PostgreSQL with fsync of its own.

    python benchmarks/bench_events.py [--events 20000] [--rate 200] [--log 10000000]

Sending: one after another (a transaction each), by 16 threads, without waiting (group commit), and 100 in a call. Then
1, 100 and 1,000 subscriptions on one switchboard, each to one of ten keys (so a tenth of them hears an event): how
many events a second are sent until every one was called back with all of its own, and, at `--rate` a second, the time
from `send_soon` until a callback runs. Then the log is filled up to `--log` events, and sending, following and
listing one rare key are measured again, each after a checkpoint: filling in bulk leaves the disk work that sending
does not. Sending is the median of three. Prints one JSON line; times in ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rtrec_ray.clock import monotonic_s
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.notification import Event, EventFilter, NewEvent, PostgresNotificationStore, Switchboard
from rtrec_ray.notification.tail import TailOptions
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.migrate import migrate

KEYS = 10
LISTENERS = (1, 100, 1_000)
PATIENCE_S = 120.0
FILL = """
INSERT INTO meta.events (event_offset, namespace, key, version, value, type, sender, time_ms, context)
SELECT %(first)s + n, 'filled', 'f' || n %% 1000, (%(first)s + n) / 1000 + 1, 'v', 'T', 's' || n %% 10,
       1700000000000 + %(first)s + n, '{}' FROM generate_series(0, %(rows)s - 1) AS n
"""


def new(number: int) -> NewEvent:
    """One of the events sent."""
    return NewEvent(key=f"k{number % KEYS}", value=str(number), type="BENCH", context={"sent_s": monotonic_s()})


def rate_of(count: int, send: Callable[[], object]) -> int:
    """Events a second."""
    begun_s = monotonic_s()
    send()
    return round(count / (monotonic_s() - begun_s))


def sending(store: PostgresNotificationStore, events: int) -> dict[str, int]:
    """Events a second, by how they are sent."""
    rounds = [_sending(store, events) for _ in range(3)]
    return {how: sorted(each[how] for each in rounds)[1] for how in rounds[0]}


def _sending(store: PostgresNotificationStore, events: int) -> dict[str, int]:
    few = min(events, 500)
    with ThreadPoolExecutor(16) as pool:
        many = rate_of(4 * few, lambda: list(pool.map(lambda n: store.send(new(n)), range(4 * few))))
    return {
        "one_after_another": rate_of(few, lambda: [store.send(new(n)) for n in range(few)]),
        "by_16_threads": many,
        "without_waiting": rate_of(
            events, lambda: [f.result() for f in [store.send_soon(new(n)) for n in range(events)]]
        ),
        "100_in_a_call": rate_of(
            events, lambda: [store.send_many([new(n) for n in range(100)]) for _ in range(events // 100)]
        ),
    }


class Ears:
    """Subscriptions that count, and note how late each event was, s."""

    def __init__(self, board: Switchboard, store: PostgresNotificationStore, listeners: int) -> None:
        self.heard = 0
        self.late_s: list[float] = []
        self._lock = threading.Lock()
        start = store.end_offset()
        self._all = [
            board.listen(self._hear, start=start, wanted=EventFilter(key=f"k{number % KEYS}", type="BENCH"))
            for number in range(listeners)
        ]
        self._per_key = [len(range(key, listeners, KEYS)) for key in range(KEYS)]

    def _hear(self, event: Event) -> None:
        late_s = monotonic_s() - event.context["sent_s"]
        with self._lock:
            self.heard += 1
            self.late_s.append(late_s)

    def wait(self, events: int) -> None:
        """Until every one of `events` events was heard by all that want it."""
        wanted = sum(self._per_key[number % KEYS] for number in range(events))
        until_s = monotonic_s() + PATIENCE_S
        while self.heard < wanted:
            assert monotonic_s() < until_s, f"{self.heard} of {wanted} calls after {PATIENCE_S} s"
            threading.Event().wait(0.001)
        assert self.heard == wanted, f"{self.heard} calls instead of {wanted}"

    def close(self, board: Switchboard) -> None:
        """Hear no more."""
        for each in self._all:
            board.forget(each)


def listening(store: PostgresNotificationStore, *, listeners: int, events: int, rate: int) -> dict[str, Any]:
    """Throughput and latency with so many subscriptions."""
    with closing(Switchboard(store)) as board:
        ears = Ears(board, store, listeners)
        count = min(events, 2_000 if listeners == 1_000 else events)

        def all_heard() -> None:
            for number in range(count):
                store.send_soon(new(number))
            ears.wait(count)

        found = {"events_per_s": rate_of(count, all_heard)}
        found["calls_per_s"] = round(found["events_per_s"] * ears.heard / count)
        ears.close(board)
        ears = Ears(board, store, listeners)
        _at_rate(store, ears, seconds=10, rate=rate)
        p50, p99 = 1_000 * np.percentile(ears.late_s, [50, 99])
        ears.close(board)
    return {**found, "p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}


def _at_rate(store: PostgresNotificationStore, ears: Ears, *, seconds: int, rate: int) -> None:
    begun_s, pause = monotonic_s(), threading.Event()
    for number in range(rate * seconds):
        pause.wait(max(0.0, begun_s + number / rate - monotonic_s()))
        store.send_soon(new(number))
    ears.wait(rate * seconds)


def lists(store: PostgresNotificationStore) -> dict[str, float]:
    """Ms of a list, the best of five."""
    asks = {
        "newest_of_a_rare_key": EventFilter(key="rare"),
        "newest_of_a_type": EventFilter(type="RARE"),
        "one_version": EventFilter(key="rare", namespace="default", version=1),
        "a_second_long_ago": EventFilter(from_ms=1_700_000_500_000, to_ms=1_700_000_501_000),
    }
    found = {}
    for name, wanted in asks.items():
        took = []
        for _ in range(5):
            begun_s = monotonic_s()
            store.list(wanted, limit=100)
            took.append(monotonic_s() - begun_s)
        found[name] = round(1_000 * min(took), 2)
    return found


def fill(options: PostgresOptions, upto: int) -> None:
    """Let the log have `upto` events; keys, senders and times spread."""
    with closing(connect(PostgresOptions(dsn=options.dsn, statement_timeout_ms=0))) as connection:
        with transaction(connection) as cur:
            cur.execute("SELECT value FROM meta.counters WHERE name = 'events'")
            ((last,),) = cur.fetchall()
        for first in range(last + 1, upto + 1, 500_000):
            with transaction(connection) as cur:
                rows = min(500_000, upto + 1 - first)
                cur.execute(FILL, {"first": first, "rows": rows})
                cur.execute("UPDATE meta.counters SET value = %s WHERE name = 'events'", (first + rows - 1,))
    settle(options)


def settle(options: PostgresOptions) -> None:
    """Do at once what the server does in time."""
    with closing(connect(PostgresOptions(dsn=options.dsn, statement_timeout_ms=0))) as connection:
        connection.autocommit = True
        with connection.cursor() as cur:
            cur.execute("VACUUM (ANALYZE) meta.events")
            cur.execute("CHECKPOINT")


@contextmanager
def server() -> Iterator[PostgresOptions]:
    """A PostgreSQL with fsync and the tables."""
    with tempfile.TemporaryDirectory(prefix="rtrec-") as folder:
        made = PostgresServer(PostgresServerOptions(directory=Path(folder) / "postgres"))
        made.start()
        try:
            made.create_database("bench")
            options = PostgresOptions(dsn=made.dsn("bench"))
            migrate(options)
            yield options
        finally:
            made.stop()


def main() -> None:
    """Start the server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--log", type=int, default=10_000_000)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "events"}
    with server() as options, closing(PostgresNotificationStore(options, tail=TailOptions())) as store:
        store.send(NewEvent(key="rare", value="1", type="RARE"))
        settle(options)
        report["sending"] = sending(store, arguments.events)
        report["listening"] = {
            count: listening(store, listeners=count, events=arguments.events, rate=arguments.rate)
            for count in LISTENERS
        }
        report["lists_ms"] = lists(store)
        report["log"] = store.end_offset()
        if arguments.log:
            fill(options, arguments.log)
            report[f"at_{arguments.log}"] = {
                "sending": sending(store, arguments.events),
                "listening": listening(store, listeners=100, events=arguments.events, rate=arguments.rate),
                "lists_ms": lists(store),
            }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
