"""The embedded servers are the real ones: they keep their data, their ports and their secrets."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from rtrec_ray.embedded import jars
from rtrec_ray.embedded.kafka import KafkaServer, KafkaServerOptions
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.embedded.server import Server
from rtrec_ray.embedded.unprivileged import ordinary_user
from rtrec_ray.errors import EmbeddedFailure

pytestmark = pytest.mark.server


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(PostgresServerOptions(directory=tmp_path / "it's, a folder", durable=False))
    yield server
    server.kill()


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    server = KafkaServer(KafkaServerOptions(directory=tmp_path / "a, földer", quick_start=True))
    yield server
    server.kill()


def _listeners(server: Server) -> set[str]:
    pids = {process.pid for process in server.processes()}
    listening = [each for each in psutil.net_connections() if each.pid in pids and each.status == psutil.CONN_LISTEN]
    return {each.laddr.ip.removeprefix("::ffff:") for each in listening}


def _query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def _produce(bootstrap: str, topic: str, value: bytes) -> Message:
    answers: list[tuple[KafkaError | None, Message]] = []
    producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": 10_000_000, "log_level": 0})
    producer.produce(topic, value, partition=0, on_delivery=lambda error, message: answers.append((error, message)))
    producer.flush(20)
    ((error, message),) = answers
    if error is not None:
        raise KafkaException(error)
    return message


def test_the_dsn_goes_to_psycopg2_as_it_is_and_shows_no_password(dsn: str, postgres_server: PostgresServer) -> None:
    assert _query(dsn, "SHOW wal_level") == [("logical",)]
    assert _query(dsn, "SHOW max_connections") == [("200",)]
    password = postgres_server.passfile.read_text().strip().rpartition(":")[2]
    assert len(password) > 20
    assert password not in dsn
    assert stat.S_IMODE(postgres_server.passfile.stat().st_mode) == 0o600


def test_postgres_lets_nobody_in_without_the_password(dsn: str, tmp_path: Path) -> None:
    other = tmp_path / "passfile"
    other.write_text("*:*:*:rtrec:guess\n")
    other.chmod(0o600)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(f"{dsn} passfile={other}")


def test_text_orders_by_code_point(dsn: str) -> None:
    assert _query(dsn, "SELECT word FROM unnest(ARRAY['b', 'Z', 'ä', 'a']) AS word ORDER BY 1") == [
        (word,) for word in sorted("bZäa")
    ]


def test_postgres_keeps_its_data_and_its_address_through_stop_and_crash(postgres: PostgresServer) -> None:
    postgres.start()
    _query(postgres.dsn(), "CREATE TABLE kept AS SELECT 7 AS number")
    assert _listeners(postgres) == {"127.0.0.1"}
    for end in (postgres.stop, postgres.kill):
        end()
        assert not postgres.alive()
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(postgres.dsn())
        postgres.start()
        assert _query(postgres.dsn(), "TABLE kept") == [(7,)]


def test_a_lock_file_that_names_a_stranger_does_not_stop_postgres(postgres: PostgresServer) -> None:
    postgres.start()
    postgres.kill()
    lock = postgres.directory / "data" / "postmaster.pid"
    _, _, rest = lock.read_text().partition("\n")
    lock.write_text(f"{os.getppid()}\n{rest}")
    postgres.start()
    assert _query(postgres.dsn(), "SELECT 1") == [(1,)]


def test_a_second_server_on_the_same_data_is_refused(postgres_server: PostgresServer) -> None:
    second = PostgresServer(PostgresServerOptions(directory=postgres_server.directory))
    with pytest.raises(EmbeddedFailure, match="already runs on") as caught:
        second._clear_stale_lock()
    assert "rtrec down" in caught.value.mend


def test_a_directory_of_another_postgres_is_refused(postgres: PostgresServer) -> None:
    (postgres.directory / "data").mkdir(parents=True)
    (postgres.directory / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedFailure, match="made by PostgreSQL 17"):
        postgres.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user needs neither way")
@pytest.mark.parametrize("way", ["_enter_namespace", "_change_user"])
def test_root_becomes_an_ordinary_user_and_still_reaches_closed_folders(tmp_path: Path, way: str) -> None:
    closed = tmp_path / "closed"
    (closed / "data").mkdir(parents=True)
    closed.chmod(0o700)
    forced = "u._enter_namespace = lambda user: False;" if way == "_change_user" else ""
    program = "import os; print(os.geteuid()); open('made', 'w'); print(os.stat('made').st_uid == os.geteuid())"
    code = f"import sys; from rtrec_ray.embedded import unprivileged as u; {forced} u.main(sys.argv[1:])"
    arguments = [str(closed / "data"), sys.executable, "-c", program]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=closed / "data",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(ordinary_user().pw_uid), "True"], done
    assert (closed / "data" / "made").exists()


def test_kafka_keeps_its_records_and_its_address_through_stop_and_crash(kafka: KafkaServer) -> None:
    kafka.start()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    admin.create_topics([NewTopic("kept", 1)])["kept"].result()
    assert _produce(kafka.bootstrap, "kept", b"0").offset() == 0
    assert _listeners(kafka) == {"127.0.0.1"}
    for expected, end in enumerate((kafka.stop, kafka.kill), start=1):
        end()
        kafka.start()
        assert _produce(kafka.bootstrap, "kept", b"%d" % expected).offset() == expected


def test_kafka_stamps_records_itself_and_refuses_large_ones(kafka_bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap, "log_level": 0})
    admin.create_topics([NewTopic("embedded-stamps", 1)])["embedded-stamps"].result()
    assert _produce(kafka_bootstrap, "embedded-stamps", b"1").timestamp()[0] == TIMESTAMP_LOG_APPEND_TIME
    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        _produce(kafka_bootstrap, "embedded-stamps", bytes(5_000_000))


def test_kafka_makes_no_topic_by_itself(kafka_bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap, "log_level": 0})
    found = admin.list_topics("embedded-absent", timeout=10).topics["embedded-absent"]
    assert found.error is not None
    assert found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def test_a_server_that_cannot_start_names_its_log(postgres: PostgresServer, postgres_server: PostgresServer) -> None:
    second = PostgresServer(PostgresServerOptions(directory=postgres.directory, port=postgres_server.port))
    with pytest.raises(EmbeddedFailure, match=r"ended while starting; its last lines: .*in use") as caught:
        second.start()
    assert str(second.log) in caught.value.mend
    assert not second.alive()


def test_without_jars_kafka_says_what_to_run(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "directory", lambda: tmp_path / "nowhere")
    with pytest.raises(EmbeddedFailure, match="missing") as caught:
        kafka.start()
    assert "make setup" in caught.value.mend
