"""The servers of a system fit each other: ports differ, addresses agree, socket paths are short enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtrec_ray.embedded.assembly import PARTS, EmbeddedOptions, addresses, build
from rtrec_ray.embedded.mlflow import store_uri
from rtrec_ray.embedded.ray import RayServer, RayServerOptions

# HAProxy's own limit, and what Serve puts between our folder and the file: a node's number of 56 digits.
_SOCKET_PATH = 97
_NODE = 1 + 56


def test_mlflow_brings_postgres_along_unless_it_is_told_of_another(tmp_path: Path) -> None:
    assert list(build(["mlflow"], tmp_path, EmbeddedOptions())) == ["postgres", "mlflow"]
    assert list(build(["mlflow"], tmp_path, EmbeddedOptions(mlflow_store="host=db dbname=m"))) == ["mlflow"]


def test_no_two_servers_get_the_same_port(tmp_path: Path) -> None:
    same = EmbeddedOptions(kafka_port=20_999, postgres_port=20_999, mlflow_port=20_999, dashboard_port=20_999)
    found = addresses(build(PARTS, tmp_path, same))
    ports = [str(found.kafka_bootstrap), str(found.mlflow_url), str(found.ray_dashboard)]
    assert len({text.rpartition(":")[2] for text in ports} | {str(found.postgres_dsn).split()[1][5:]}) == 4


def test_absent_parts_have_no_address(tmp_path: Path) -> None:
    found = addresses(build(["kafka"], tmp_path, EmbeddedOptions()))
    assert found.kafka_bootstrap is not None
    assert (found.postgres_dsn, found.mlflow_url, found.ray_address, found.ray_dashboard) == (None,) * 4


def test_a_long_data_directory_does_not_make_socket_paths_too_long(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    server = RayServer(RayServerOptions(directory=directory))
    server._prepare()
    path = server._environment()["RAY_SERVE_HAPROXY_SOCKET_PATH"]
    server._clean()
    assert len(path) + _NODE <= _SOCKET_PATH
    assert not Path(path).parent.parent.exists()


def test_the_token_is_the_owners_alone_and_stays_the_same(tmp_path: Path) -> None:
    server = RayServer(RayServerOptions(directory=tmp_path))
    server._prepare()
    first = server.token_path.read_text()
    server._clean()
    server._prepare()
    server._clean()
    assert server.token_path.read_text() == first
    assert server.token_path.stat().st_mode & 0o777 == 0o600
    assert len(first) == 64


@pytest.mark.parametrize(
    ("dsn", "uri"),
    [
        ("host=db port=1 dbname=m user=u password='a/b@c'", "postgresql+psycopg2://u:a%2Fb%40c@db:1/m"),
        ("dbname=m sslmode=require", "postgresql+psycopg2:///m?sslmode=require"),
    ],
)
def test_a_connection_string_becomes_a_uri(dsn: str, uri: str) -> None:
    assert store_uri(dsn) == uri
