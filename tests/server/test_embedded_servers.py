"""The embedded servers are the real ones: they keep their data, their ports and their secrets."""

from __future__ import annotations

import stat
from pathlib import Path

import psycopg2
import pytest

from rtrec_ray.embedded.postgres import PostgresServer

pytestmark = pytest.mark.server


def test_the_dsn_goes_to_psycopg2_as_it_is_and_shows_no_password(dsn: str, postgres_server: PostgresServer) -> None:
    connection = psycopg2.connect(dsn)
    with connection.cursor() as cursor:
        cursor.execute("SHOW wal_level")
        assert cursor.fetchone() == ("logical",)
    connection.close()
    password = postgres_server.passfile.read_text().strip().rpartition(":")[2]
    assert password not in dsn
    assert stat.S_IMODE(Path(postgres_server.passfile).stat().st_mode) == 0o600


def test_kafka_answers(kafka_bootstrap: str) -> None:
    assert kafka_bootstrap
