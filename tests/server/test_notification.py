"""The event log on a real PostgreSQL: many senders, lost connections, a server that goes away."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psycopg2
import pytest

from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.notification import (
    NOW,
    Event,
    EventFilter,
    Listener,
    NewEvent,
    PostgresNotificationStore,
    Retention,
    Switchboard,
)
from rtrec_ray.notification.tail import TailOptions
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction

pytestmark = pytest.mark.server

SENDERS, EACH = 6, 40


class _UndoneError(Exception):
    """Ends a sender's transaction without a commit."""


@pytest.fixture
def options(dsn: str) -> PostgresOptions:
    return PostgresOptions(dsn=dsn)


@pytest.fixture
def store(options: PostgresOptions) -> Iterator[PostgresNotificationStore]:
    # Without the looks that need no NOTIFY, so that the tests see whether the NOTIFY works.
    with closing(PostgresNotificationStore(options, tail=TailOptions(look_every_s=60.0))) as made:
        yield made


def _send_many(options: PostgresOptions, store: PostgresNotificationStore, sender: int) -> int:
    """Send amid other work; a third of the transactions is rolled back. Answers how many were sent."""
    rng, sent = random.Random(sender), 0
    with closing(connect(options)) as connection:
        for number in range(EACH):
            try:
                with transaction(connection) as cur:
                    store.send_in(cur, NewEvent(key=f"k{rng.randrange(3)}", value=str(number), sender=str(sender)))
                    cur.execute("SELECT pg_sleep(%s)", (rng.random() / 500,))
                    if rng.random() < 1 / 3:
                        raise _UndoneError
                    sent += 1
            except _UndoneError:
                continue
    return sent


def _read_along(store: PostgresNotificationStore, done: threading.Event) -> list[Event]:
    """What a reader by offset sees that looks all the time."""
    seen: list[Event] = []
    while True:
        finished = done.is_set()
        new = store.list(after_offset=seen[-1].offset if seen else 0, limit=7)
        seen += new
        if finished and not new:
            return seen


def test_readers_miss_nothing_and_versions_have_no_gaps_under_concurrent_senders(
    options: PostgresOptions, store: PostgresNotificationStore
) -> None:
    done = threading.Event()
    listener = Listener(store, start=NOW)
    with ThreadPoolExecutor(SENDERS + 1) as pool:
        reader = pool.submit(_read_along, store, done)
        counts = list(pool.map(lambda sender: _send_many(options, store, sender), range(SENDERS)))
        done.set()
        seen = reader.result()
    truth = store.list(after_offset=0, limit=10_000)
    assert len(truth) == sum(counts) > SENDERS * EACH / 2
    assert tuple(seen) == truth
    assert [event.offset for event in truth] == list(range(1, len(truth) + 1))
    versions = defaultdict(list)
    for event in truth:
        versions[event.key].append(event.version)
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())
    heard: list[Event] = []
    while len(heard) < len(truth) and (new := list(listener.poll(timeout_s=10.0))):
        heard += new
    assert tuple(heard) == truth


def test_an_event_of_a_rolled_back_transaction_never_was(
    options: PostgresOptions, store: PostgresNotificationStore
) -> None:
    listener = Listener(store, start=0)
    with closing(connect(options)) as connection:
        with suppress(_UndoneError), transaction(connection) as cur:
            store.send_in(cur, NewEvent(key="k", value="undone"))
            raise _UndoneError
        with transaction(connection) as cur:
            store.send_in(cur, NewEvent(key="k", value="done"))
            store.ack_in(cur, "cursor", 1)
    assert [(event.value, event.offset, event.version) for event in listener.poll(timeout_s=10.0)] == [("done", 1, 1)]
    assert store.cursor("cursor") == 1


def test_a_listener_whose_connection_is_ended_misses_nothing(
    options: PostgresOptions, store: PostgresNotificationStore, eventually: Callable[..., None]
) -> None:
    heard: list[str] = []
    board = Switchboard(store, threads=2)
    board.listen(lambda event: heard.append(event.value), start="away")
    store.send(NewEvent(key="k", value="before"))
    eventually(lambda: heard == ["before"])
    with closing(connect(options, application="hangman")) as other:
        for round_ in range(3):
            with transaction(other) as cur:
                cur.execute(
                    "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'rtrec-events'"
                )
                PostgresNotificationStore.send_in(store, cur, NewEvent(key="k", value=str(round_)))
            wanted = ["before", *map(str, range(round_ + 1))]
            eventually(lambda wanted=wanted: heard == wanted and store_answers(store), what=str(wanted))
    eventually(lambda: store.cursor("away") == 4)
    board.close()
    assert heard == ["before", "0", "1", "2"]


def store_answers(store: PostgresNotificationStore) -> bool:
    """Whether the store's pool has noticed that its connections are gone and has new ones."""
    try:
        store.end_offset()
    except StoreUnavailable:
        return False
    return True


def test_listeners_outlive_a_restart_of_the_server(
    postgres_server: PostgresServer, store: PostgresNotificationStore, eventually: Callable[..., None]
) -> None:
    heard: list[str] = []
    now = Listener(store, start=NOW)
    board = Switchboard(store, threads=2)
    board.listen(lambda event: heard.append(event.value), start="durable")
    store.send(NewEvent(key="k", value="1"))
    assert [event.value for event in now.poll(timeout_s=10.0)] == ["1"]
    eventually(lambda: store.cursor("durable") == 1)
    postgres_server.kill()
    try:
        assert list(now.poll(timeout_s=0.3)) == []
        with pytest.raises(StoreUnavailable):
            store.send(NewEvent(key="k", value="lost"))
    finally:
        postgres_server.start()
    eventually(lambda: store_answers(store))
    sent = store.send(NewEvent(key="k", value="2"))
    assert (sent.offset, sent.version) == (2, 2)
    eventually(lambda: heard == ["1", "2"])
    assert [event.value for event in now.poll(timeout_s=10.0)] == ["2"]
    eventually(lambda: store_answers(store) and store.cursor("durable") == 2)
    board.close()


def test_a_thousand_listeners_share_one_waiting_connection(
    options: PostgresOptions, store: PostgresNotificationStore
) -> None:
    listeners = [Listener(store, start=NOW, wanted=EventFilter(key=f"k{number % 10}")) for number in range(1_000)]
    store.send(NewEvent(key="k3", value="x"))
    assert all([event.value for event in listener.poll(timeout_s=10.0)] == ["x"] for listener in listeners[3::10])
    assert not any(list(listener.poll(timeout_s=0.0)) for listener in listeners[4::10])
    with closing(connect(options, application="counter")) as other, transaction(other) as cur:
        cur.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'rtrec-events'"
        )
        assert cur.fetchone() == (2,)  # the one that waits, and the one that sent


def test_a_listener_behind_what_is_kept_in_memory_reads_the_table(options: PostgresOptions) -> None:
    with closing(PostgresNotificationStore(options, tail=TailOptions(keep=3))) as store:
        early = Listener(store, start=NOW)
        assert list(early.poll(timeout_s=0.2)) == []
        for number in range(20):
            store.send(NewEvent(key="odd" if number % 2 else "even", value=str(number)))
        late = Listener(store, start=NOW)
        store.send(NewEvent(key="even", value="20"))
        assert [event.value for event in late.poll(timeout_s=10.0)] == ["20"]
        odd = Listener(store, start=0, wanted=EventFilter(key="odd"))
        heard = [event.value for event in odd.poll(timeout_s=10.0)]
        assert heard == [str(number) for number in range(20) if number % 2]
        heard = [event.value for event in early.poll(timeout_s=10.0)]
        while len(heard) < 21 and (new := [event.value for event in early.poll(timeout_s=10.0)]):
            heard += new
        assert heard == [str(number) for number in range(21)]


def test_a_thousand_subscriptions_hear_through_a_handful_of_threads(
    store: PostgresNotificationStore, eventually: Callable[..., None]
) -> None:
    before = threading.active_count()
    board = Switchboard(store, threads=4)
    heard: dict[int, list[str]] = {number: [] for number in range(1_000)}
    for number in heard:
        wanted = EventFilter(key=f"k{number % 10}")
        board.listen(lambda event, number=number: heard[number].append(event.value), start=0, wanted=wanted)
    for number in range(50):
        store.send(NewEvent(key=f"k{number % 10}", value=str(number)))
    assert threading.active_count() - before <= 7  # the board's five, the log's tail and the sender
    wanted_values = {n: [str(number) for number in range(50) if number % 10 == n % 10] for n in heard}
    eventually(lambda: heard == wanted_values)
    board.close()


def test_senders_that_wait_share_a_transaction(options: PostgresOptions, store: PostgresNotificationStore) -> None:
    with closing(connect(options)) as holder:
        with transaction(holder) as cur:
            store.send_in(cur, NewEvent(key="k", value="first"))  # holds the counter, so that the others wait
            futures = [store.send_soon(NewEvent(key="k", value=str(number))) for number in range(100)]
        offsets = [future.result(timeout=120).offset for future in futures]
        with transaction(holder) as cur:
            cur.execute("SELECT count(DISTINCT xmin::text) FROM meta.events")
            ((transactions,),) = cur.fetchall()
    assert offsets == list(range(2, 102))
    assert transactions <= 3  # the first; what the sender had gathered by then; all the rest


def test_an_event_that_the_table_refuses_takes_no_other_along(
    options: PostgresOptions, store: PostgresNotificationStore
) -> None:
    unfit = NewEvent(key="".join(random.Random(0).choices("abcdefghij", k=100_000)), value="too long for an index")
    with closing(connect(options)) as holder, transaction(holder) as cur:
        store.send_in(cur, NewEvent(key="k", value="1"))
        futures = [
            store.send_soon(event) for event in (NewEvent(key="k", value="2"), unfit, NewEvent(key="k", value="3"))
        ]
    assert [futures[index].result(timeout=120).offset for index in (0, 2)] == [2, 3]
    with pytest.raises(psycopg2.OperationalError):
        futures[1].result(timeout=120)


def test_a_closed_log_sends_what_waits_and_takes_nothing_more(options: PostgresOptions) -> None:
    store = PostgresNotificationStore(options)
    futures = [store.send_soon(NewEvent(key="k", value=str(number))) for number in range(20)]
    store.close()
    assert [future.result(timeout=0.0).offset for future in futures] == list(range(1, 21))
    with pytest.raises(StoreUnavailable):
        store.send(NewEvent(key="k", value="late"))


def test_nothing_is_trimmed_that_the_scheduler_of_workflows_has_not_read(
    options: PostgresOptions, store: PostgresNotificationStore
) -> None:
    sent = [store.send(NewEvent(key="k", value=str(number))) for number in range(5)]
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        cursor.execute(
            "INSERT INTO meta.workflow_position (event_offset, time_ms) VALUES (%s, 0)"
            " ON CONFLICT (one) DO UPDATE SET event_offset = EXCLUDED.event_offset",
            (sent[1].offset,),
        )
    assert store.trim(Retention(keep_ms=None, keep_events=1)) == 2
    assert [event.offset for event in store.list()] == [event.offset for event in sent[2:]]
