"""The change log on real servers that die, lose its slot, forbid it, or are ahead of what they show."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner

from rtrec_ray.cli.main import root
from rtrec_ray.clock import monotonic_s
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.errors import ChangeRefused, StoreUnavailable
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.stores.changes.log import LogPlace
from rtrec_ray.stores.changes.postgres import PostgresChangeLog
from rtrec_ray.stores.changes.slots import drop_slot, list_slots, read_means
from tests.conftest import Eventually
from tests.sample_rows import put_samples, put_samples_in, sample_rows

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
Open = Callable[..., PostgresChangeLog]


@pytest.fixture
def dropping(dsn: str) -> Iterator[str]:
    yield dsn
    for slot in list_slots(PostgresOptions(dsn=dsn)):
        drop_slot(PostgresOptions(dsn=dsn), slot.name)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of this module's own: it is restarted, and gives a slot up after a segment or two."""
    options = PostgresServerOptions(
        directory=tmp_path_factory.mktemp("pg"), durable=False, slot_wal_keep="16MB", max_connections=30
    )
    server = PostgresServer(options)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def small(small_server: PostgresServer) -> Iterator[str]:
    small_server.create_database("small")
    dsn = small_server.dsn("small")
    migrate(PostgresOptions(dsn=dsn))
    yield dsn
    for slot in list_slots(PostgresOptions(dsn=dsn)):
        drop_slot(PostgresOptions(dsn=dsn), slot.name)
    small_server.drop_database("small")


def begun(dsn: str, place: LogPlace | None = None, *, name: str = "c") -> PostgresChangeLog:
    """A consumer of two columns, with its slot."""
    log = PostgresChangeLog(PostgresOptions(dsn=dsn), name=name, columns=("commit_seq", "features"))
    log.begin(place or LogPlace())
    assert log.poll(max_rows=1, timeout_s=0.0) is None
    return log


def take(log: PostgresChangeLog, *, upto: int, polls: int = 300) -> list[int]:
    numbers: list[int] = []
    for _ in range(polls):
        if log.place.commit_seq >= upto:
            return numbers
        try:
            changes = log.poll(max_rows=64, timeout_s=0.2)
        except StoreUnavailable:
            continue
        numbers += [] if changes is None else changes.rows["commit_seq"].to_list()
    pytest.fail(f"not delivered: {log.place}, {log.health}, {numbers[-5:]}")


def run(dsn: str, *statements: str) -> None:
    connection = psycopg2.connect(dsn)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


def forget_slots(dsn: str) -> None:
    """Write more log than a slot may keep."""
    for _ in range(6):
        run(dsn, "SELECT pg_logical_emit_message(true, 'fill', 'x')", "SELECT pg_switch_wal()")
    run(dsn, "CHECKPOINT")


@pytest.mark.slow
def test_a_consumer_killed_at_any_moment_misses_nothing_and_repeats_nothing(
    dropping: str, tmp_path: Path, eventually: Eventually
) -> None:
    file, dice, rows = tmp_path / "checkpoint.json", random.Random(7), 0
    begun(dropping, name="worker").close()

    def seen() -> int:
        return json.loads(file.read_text())["seq"] if file.exists() else 0

    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.server.change_log_worker", dropping, str(file)], cwd=ROOT
        )
        try:
            before = seen()
            for _ in range(6):
                put_samples(dropping, sample_rows(40, seed=rows, first=rows))
                rows += 40
            # Somewhere within what there is, so that it dies in the midst of reading, storing or acknowledging.
            wanted = dice.randint(before, rows - 1)
            eventually(lambda wanted=wanted: seen() > wanted, what="the worker got somewhere")
        finally:
            child.kill()
            child.wait()
    child = subprocess.Popen([sys.executable, "-m", "tests.server.change_log_worker", dropping, str(file)], cwd=ROOT)
    try:
        eventually(lambda: seen() == rows, what="the worker came to the end")
    finally:
        child.kill()
        child.wait()
    kept = json.loads(file.read_text())
    assert kept["numbers"] == list(range(1, rows + 1))
    assert (kept["features"], kept["fallbacks"]) == (rows, 0)


def test_a_transaction_that_began_first_and_commits_last_comes_last(dropping: str) -> None:
    log = begun(dropping)
    early = connect(PostgresOptions(dsn=dropping))
    cursor = early.cursor()
    cursor.execute("INSERT INTO meta.counters (name, value) VALUES ('other', 1)")  # has its number, is not committed
    put_samples(dropping, sample_rows(10))
    put_samples_in(cursor, sample_rows(10, seed=1, first=10))
    waiting = threading.Thread(target=put_samples, args=(dropping, sample_rows(10, seed=2, first=20)))
    waiting.start()  # behind the counter's lock
    assert take(log, upto=10) == list(range(1, 11))
    assert log.poll(max_rows=64, timeout_s=0.1) is None
    early.commit()
    early.close()
    waiting.join(10.0)
    assert take(log, upto=30) == list(range(11, 31))
    log.close()


def test_a_partition_made_on_the_way_is_in_the_stream(dropping: str) -> None:
    log = begun(dropping)
    put_samples(dropping, sample_rows(10))
    assert take(log, upto=10) == list(range(1, 11))
    put_samples(dropping, sample_rows(10, seed=1, first=10), days_later=3)
    changes = log.poll(max_rows=64, timeout_s=5.0)
    assert changes is not None
    assert changes.rows["commit_seq"].to_list() == list(range(11, 21))
    assert (changes.rows["features"].str.len_bytes() > 2).all()
    assert log.health.fallbacks == 0
    log.close()


def test_what_a_savepoint_took_back_does_not_come(dropping: str) -> None:
    log = begun(dropping)
    put_samples(dropping, sample_rows(10))
    put_samples(dropping, sample_rows(12))  # ten of them again: the first COPY is taken back
    found = take(log, upto=22)
    connection = connect(PostgresOptions(dsn=dropping))
    with transaction(connection) as cursor:
        cursor.execute("SELECT commit_seq FROM samples.revisions ORDER BY commit_seq")
        assert found == [number for (number,) in cursor.fetchall()]
    connection.close()
    assert len(found) == 12
    log.close()


def test_the_newest_consumer_of_a_name_ends_the_one_before(dropping: str) -> None:
    old = begun(dropping)
    put_samples(dropping, sample_rows(5))
    assert take(old, upto=5) == [1, 2, 3, 4, 5]
    new = begun(dropping, old.place)
    put_samples(dropping, sample_rows(5, seed=1, first=5))
    assert take(new, upto=10) == [6, 7, 8, 9, 10]
    with pytest.raises(StoreUnavailable):
        old.poll(max_rows=64, timeout_s=1.0)
    old.close()
    new.close()


def test_a_slot_keeps_the_log_of_what_was_not_acknowledged_and_no_more(dropping: str, eventually: Eventually) -> None:
    def acknowledged() -> int:
        return list_slots(PostgresOptions(dsn=dropping))[0].lsn

    log = begun(dropping)
    put_samples(dropping, sample_rows(10))
    take(log, upto=10)
    stored = log.place
    log.acknowledge(stored)
    eventually(lambda: acknowledged() == stored.lsn, what="the slot moved to the checkpoint")
    put_samples(dropping, sample_rows(10, seed=1, first=10))
    take(log, upto=20)
    log.close()
    assert acknowledged() == stored.lsn


def test_a_slot_that_was_dropped_under_a_consumer_is_made_anew(dropping: str) -> None:
    log = begun(dropping)
    put_samples(dropping, sample_rows(10))
    found = take(log, upto=10)
    drop_slot(PostgresOptions(dsn=dropping), list_slots(PostgresOptions(dsn=dropping))[0].name)
    put_samples(dropping, sample_rows(10, seed=1, first=10))
    found += take(log, upto=20)
    put_samples(dropping, sample_rows(10, seed=2, first=20))
    found += take(log, upto=30)
    assert found == list(range(1, 31))
    assert (log.health.followed_by, log.health.fallbacks, log.health.reason) == ("stream", 1, "slot gone")
    log.close()


def test_a_slot_that_fell_too_far_behind_is_replaced_and_nothing_is_missed(small: str) -> None:
    log = begun(small)
    put_samples(small, sample_rows(10))
    found = take(log, upto=10)
    place = log.place
    log.close()
    put_samples(small, sample_rows(10, seed=1, first=10))
    forget_slots(small)
    assert [slot.lost for slot in list_slots(PostgresOptions(dsn=small))] == [True]
    again = PostgresChangeLog(PostgresOptions(dsn=small), name="c", columns=("commit_seq", "features"))
    again.begin(place)
    put_samples(small, sample_rows(10, seed=2, first=20))
    found += take(again, upto=30)
    assert found == list(range(1, 31))
    assert again.health.fallbacks == 1
    assert again.health.reason == "slot lost: wal_removed"
    again.close()


def test_a_consumer_outlives_a_restart_of_the_server(small: str, small_server: PostgresServer) -> None:
    log = begun(small)
    put_samples(small, sample_rows(100))
    found = take(log, upto=100)  # none of it acknowledged, for which the server would wait
    ended = threading.Event()

    def poll_until_it_is_away() -> None:
        with suppress(StoreUnavailable):
            while log.poll(max_rows=64, timeout_s=0.5) is None:
                pass
            return  # rows, where none are expected
        ended.set()

    polling = threading.Thread(target=poll_until_it_is_away)
    polling.start()
    begun_s = monotonic_s()
    small_server.stop(timeout_s=60.0)
    took_s = monotonic_s() - begun_s
    polling.join(60.0)
    small_server.start()
    assert ended.is_set()
    assert took_s < 10.0
    put_samples(small, sample_rows(10, seed=1, first=100))
    found += take(log, upto=110)
    assert found == list(range(1, 111))
    assert log.health.fallbacks == 0
    log.close()


def test_a_commit_that_is_logged_but_not_yet_done_is_waited_for(small: str, eventually: Eventually) -> None:
    log = begun(small)
    run(small, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    writer = threading.Thread(target=put_samples, args=(small, sample_rows(10)))
    try:
        eventually(lambda: _setting(small, "synchronous_standby_names") == "nobody", what="commits wait for a standby")
        writer.start()
        eventually(lambda: _waits(small), what="the commit waits")
        assert log.poll(max_rows=64, timeout_s=0.5) is None
        assert log.place.commit_seq == 0
    finally:
        run(small, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        writer.join(20.0)
    assert take(log, upto=10) == list(range(1, 11))
    log.close()


def test_without_logical_wal_it_follows_by_number_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = PostgresServer(
        PostgresServerOptions(directory=tmp_path, durable=False, wal_level="replica", max_connections=30)
    )
    server.start()
    try:
        dsn = server.dsn()
        migrate(PostgresOptions(dsn=dsn))
        _follows_by_number(dsn, caplog, reason="wal_level")
    finally:
        server.stop()


def test_without_the_right_to_replicate_it_follows_by_number_and_says_so(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(
        dsn,
        "DROP ROLE IF EXISTS reader",
        "CREATE ROLE reader LOGIN PASSWORD 'reader'",
        "GRANT USAGE ON SCHEMA samples, meta TO reader",
        "GRANT SELECT ON ALL TABLES IN SCHEMA samples, meta TO reader",
    )
    connection = psycopg2.connect(dsn)
    at = connection.get_dsn_parameters()
    connection.close()
    other = f"host={at['host']} port={at['port']} dbname={at['dbname']} user=reader password=reader sslmode=disable"
    try:
        _follows_by_number(other, caplog, reason="permission denied", writer=dsn)
    finally:
        run(dsn, "DROP OWNED BY reader", "DROP ROLE reader")


def _follows_by_number(dsn: str, caplog: pytest.LogCaptureFixture, *, reason: str, writer: str = "") -> None:
    log = begun(dsn)
    put_samples(writer or dsn, sample_rows(10))
    found = take(log, upto=10)
    put_samples(writer or dsn, sample_rows(10, seed=1, first=10))
    found += take(log, upto=20)
    assert found == list(range(1, 21))
    assert (log.health.followed_by, log.place) == ("scan", LogPlace(commit_seq=20))
    assert reason in log.health.reason
    said = [record for record in caplog.records if record.message == "change_log_not_streamed"]
    assert len(said) == 1
    assert read_means(PostgresOptions(dsn=dsn)).no_stream
    log.close()


def test_the_commands_name_and_drop_what_keeps_the_log(dropping: str, tmp_path: Path) -> None:
    config = tmp_path / "rtrec.yaml"
    config.write_text(f'servers: {{postgres: {{dsn: "{dropping}"}}}}\n')

    def ask(*words: str) -> dict[str, Any]:
        where = ["--config", str(config), "--data-dir", str(tmp_path / "data"), "--json"]
        done = CliRunner().invoke(root, [*words, *where], catch_exceptions=False)
        return json.loads(done.stdout)

    assert ask("samples", "slots") == {"slots": [], "no_stream": "", "bound": "4GB"}
    begun(dropping).close()
    (slot,) = ask("samples", "slots")["slots"]
    assert slot["name"].endswith("_c")
    (check,) = [check for check in ask("doctor")["checks"] if check["name"] == "change log"]
    assert slot["name"] in check["detail"]
    assert ask("samples", "slots", "--drop", slot["name"])["slots"] == []


def test_a_change_of_what_was_written_is_refused_by_name(dropping: str) -> None:
    log = begun(dropping)
    put_samples(dropping, sample_rows(3))
    assert take(log, upto=3) == [1, 2, 3]
    run(
        dropping,
        "ALTER PUBLICATION rtrec_samples SET (publish = 'insert, update')",
        "UPDATE samples.revisions SET label = 0",
    )
    with pytest.raises(ChangeRefused, match="UPDATE"):
        take(log, upto=4)
    log.close()


def _setting(dsn: str, name: str) -> str:
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SHOW {name}")
            return cursor.fetchone()[0]
    finally:
        connection.close()


def _waits(dsn: str) -> bool:
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            return cursor.fetchone()[0] > 0
    finally:
        connection.close()
