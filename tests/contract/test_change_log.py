"""Every change log keeps these laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
import pytest

from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.changes.log import ChangeLog, Changes, LogPlace, MemoryChangeLog, MemorySlots
from rtrec_ray.stores.changes.postgres import PostgresChangeLog
from rtrec_ray.stores.changes.slots import drop_slot, list_slots
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.store import MemorySampleStore, SampleStore
from tests.sample_rows import correct_samples, put_samples, sample_rows

EMPTIED = "TRUNCATE samples.requests, samples.revisions; DELETE FROM meta.counters;"


@dataclass
class Backend:
    store: SampleStore
    open: Callable[..., ChangeLog]
    put: Callable[[pl.DataFrame], None]
    correct: Callable[[pl.DataFrame], None]
    lose_slot: Callable[[str], None]
    has_slot: Callable[[str], bool]


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer, template_database: str) -> Iterator[str]:
    postgres_server.create_database("contract_changes", template=template_database)
    yield postgres_server.dsn("contract_changes")
    postgres_server.drop_database("contract_changes")


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    logs: list[ChangeLog] = []
    made = _memory(logs) if request.param == "memory" else _postgres(request.getfixturevalue("database"), logs)
    yield made
    for log in logs:
        log.remove()
        log.close()


def _memory(logs: list[ChangeLog]) -> Backend:
    store, slots = MemorySampleStore(), MemorySlots()

    def open_log(name: str = "c", **how: object) -> ChangeLog:
        logs.append(MemoryChangeLog(store, slots, name=name, **how))
        return logs[-1]

    def correct(rows: pl.DataFrame) -> None:
        store.append(rows.with_columns(revision=1, old_label=pl.col("label"), label=1))

    return Backend(store, open_log, store.append, correct, slots.lost.add, slots.acknowledged.__contains__)


def _postgres(dsn: str, logs: list[ChangeLog]) -> Backend:
    options = PostgresOptions(dsn=dsn)
    connection = connect(options)
    with transaction(connection) as cursor:
        cursor.execute(EMPTIED)
    connection.close()

    def open_log(name: str = "c", **how: object) -> ChangeLog:
        logs.append(PostgresChangeLog(options, name=name, **how))
        return logs[-1]

    def named(name: str) -> list[str]:
        return [slot.name for slot in list_slots(options) if slot.name.endswith(f"_{name}")]

    def lose(name: str) -> None:
        drop_slot(options, named(name)[0])

    return Backend(
        PostgresSampleStore(options),
        open_log,
        lambda rows: put_samples(dsn, rows),
        lambda rows: correct_samples(dsn, rows),
        lose,
        lambda name: bool(named(name)),
    )


def take(log: ChangeLog, *, upto: int, max_rows: int = 1_000) -> list[Changes]:
    """What comes until `upto` is delivered, through outages."""
    found: list[Changes] = []
    for _ in range(200):
        if log.place.commit_seq >= upto:
            return found
        try:
            changes = log.poll(max_rows=max_rows, timeout_s=0.5)
        except StoreUnavailable:
            continue
        if changes is not None:
            found.append(changes)
    pytest.fail(f"not delivered: {log.place}, {log.health}")


def numbers(found: list[Changes]) -> list[int]:
    return [number for changes in found for number in changes.rows["commit_seq"].to_list()]


def started(backend: Backend, name: str = "c", **how: object) -> ChangeLog:
    """A consumer with its slot, at the ledger's end."""
    log = backend.open(name, **how)
    log.begin(LogPlace(commit_seq=backend.store.high_water()))
    assert log.poll(max_rows=10, timeout_s=0.0) is None
    return log


def test_every_revision_comes_once_in_order_and_as_the_ledger_has_it(backend: Backend) -> None:
    log = started(backend)
    assert log.health.followed_by == "stream"
    backend.put(sample_rows(40))
    backend.correct(sample_rows(40).filter(pl.col("label") == 0).head(3))
    backend.put(sample_rows(10, seed=1, first=40))
    end = backend.store.high_water()
    assert end == 53
    streamed = pl.concat([changes.rows for changes in take(log, upto=end)])
    scanned = pl.concat(list(backend.store.scan(to_seq=end)))
    assert streamed.schema == SAMPLE_SCHEMA
    same = [name for name in SAMPLE_SCHEMA if name not in ("features", "labels")]
    assert streamed.select(same).equals(scanned.select(same))
    for name in ("features", "labels"):
        assert (
            streamed[name]
            .str.json_decode(_shape(scanned[name]))
            .equals(scanned[name].str.json_decode(_shape(scanned[name])))
        )


def test_from_the_end_of_the_ledger_the_log_has_just_what_comes_after(backend: Backend) -> None:
    log = started(backend)
    backend.put(sample_rows(20))
    end = backend.store.end()
    assert (end.commit_seq, backend.store.end().commit_seq) == (20, 20)
    backend.put(sample_rows(10, seed=1, first=20))
    later = backend.store.end()
    assert end.lsn is not None
    assert later.lsn is not None
    assert (later.commit_seq, later.lsn > end.lsn) == (30, True)
    log.begin(end)
    assert numbers(take(log, upto=30)) == list(range(21, 31))
    assert (log.health.followed_by, log.health.fallbacks) == ("stream", 0)


def _shape(texts: pl.Series) -> pl.DataType:
    return texts.str.json_decode(infer_schema_length=None).dtype


def test_a_new_consumer_is_given_what_was_there_before_its_slot(backend: Backend) -> None:
    backend.put(sample_rows(20))
    log = backend.open()
    log.begin(LogPlace(commit_seq=5))
    backend.put(sample_rows(20, seed=1, first=20))
    assert numbers(take(log, upto=40)) == list(range(6, 41))
    assert log.health.fallbacks == 0


def test_no_more_rows_come_at_once_than_were_asked_for(backend: Backend) -> None:
    log = started(backend)
    backend.put(sample_rows(50))
    found = take(log, upto=50, max_rows=20)
    assert [changes.rows.height for changes in found] == [20, 20, 10]
    assert numbers(found) == list(range(1, 51))


def test_a_consumer_goes_on_from_any_checkpoint_without_gap_or_repetition(backend: Backend) -> None:
    log = started(backend)
    for step in range(3):
        backend.put(sample_rows(20, seed=step, first=20 * step))
    found = take(log, upto=60, max_rows=7)
    log.acknowledge(found[3].place)
    log.close()
    for checkpoint in (found[3].place, found[5].place):
        again = backend.open()
        again.begin(checkpoint)
        assert numbers(take(again, upto=60)) == list(range(checkpoint.commit_seq + 1, 61))
        assert again.health.fallbacks == 0
        again.close()


def test_a_consumer_may_go_back_to_an_earlier_place(backend: Backend) -> None:
    log = started(backend)
    backend.put(sample_rows(30))
    last = take(log, upto=30)[-1]
    log.acknowledge(last.place)
    log.begin(LogPlace(commit_seq=10))
    assert numbers(take(log, upto=30)) == list(range(11, 31))


def test_consumers_do_not_know_of_each_other(backend: Backend) -> None:
    one, other = started(backend, "one"), started(backend, "other")
    backend.put(sample_rows(10))
    one.acknowledge(take(one, upto=10)[-1].place)
    backend.put(sample_rows(10, seed=1, first=10))
    assert numbers(take(one, upto=20)) == list(range(11, 21))
    assert numbers(take(other, upto=20)) == list(range(1, 21))


def test_a_lost_slot_is_replaced_nothing_is_missed_and_it_is_said(backend: Backend) -> None:
    log = started(backend)
    backend.put(sample_rows(10))
    place = take(log, upto=10)[-1].place
    log.close()
    backend.lose_slot("c")
    backend.put(sample_rows(10, seed=1, first=10))
    again = backend.open()
    again.begin(place)
    backend.put(sample_rows(10, seed=2, first=20))
    assert numbers(take(again, upto=30)) == list(range(11, 31))
    assert (again.health.followed_by, again.health.fallbacks) == ("stream", 1)
    assert again.health.reason


def test_only_the_columns_asked_for_come(backend: Backend) -> None:
    log = started(backend, columns=("commit_seq", "label", "known_at_ms"))
    backend.put(sample_rows(5))
    assert take(log, upto=5)[0].rows.columns == ["commit_seq", "label", "known_at_ms"]


def test_a_removed_consumer_keeps_nothing(backend: Backend) -> None:
    log = started(backend)
    assert backend.has_slot("c")
    log.remove()
    assert not backend.has_slot("c")
    log.remove()
