"""All embedded servers at once, and a second Ray beside them: closed to strangers, and gone without a trace."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from rtrec_ray.embedded import process
from rtrec_ray.embedded.assembly import PARTS, EmbeddedOptions
from rtrec_ray.embedded.ray import RayServer, RayServerOptions
from rtrec_ray.embedded.system import Running, start

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow]

_OBJECTS = 100_000_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Longer than what a unix socket's path may have, with a home that has nothing in it.
    place = tmp_path_factory.mktemp("whole") / ("long name " * 12)
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        running = start(PARTS, place, EmbeddedOptions(object_store_bytes=_OBJECTS), on_step=lambda name, text: None)
    yield running
    running.stop()
    assert list(home.iterdir()) == []


@pytest.fixture(scope="module")
def second_ray(whole: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    directory = tmp_path_factory.mktemp("second")
    server = RayServer(RayServerOptions(directory=directory, object_store_bytes=_OBJECTS))
    server.start()
    yield server
    server.stop()


def _ask(server: RayServer, path: str, *, body: object = None, token: str | None = None) -> Any:
    secret = server.token_path.read_text() if token is None else token
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    with urlopen(Request(server.dashboard + path, data=data, headers=headers), timeout=30) as answer:
        return json.load(answer)


def _ray(running: Running) -> RayServer:
    server = running.servers["ray"]
    assert isinstance(server, RayServer)
    return server


def test_all_are_up_and_listen_on_loopback_only(whole: Running) -> None:
    assert whole.health() == dict.fromkeys(PARTS, True)
    pids = {each.pid for server in whole.servers.values() for each in server.processes()}
    listening = [each for each in psutil.net_connections() if each.pid in pids and each.status == psutil.CONN_LISTEN]
    assert len({each.pid for each in listening}) > len(PARTS)
    assert {each.laddr.ip.removeprefix("::ffff:") for each in listening} == {"127.0.0.1"}


def test_mlflow_keeps_artifacts_under_the_data_directory(whole: Running) -> None:
    url = f"{whole.addresses.mlflow_url}/api/2.0/mlflow-artifacts/artifacts/1/a/model.txt"
    with urlopen(Request(url, data=b"weights", method="PUT"), timeout=30) as answer:
        assert answer.status == 200
    with urlopen(url, timeout=30) as answer:
        assert answer.read() == b"weights"
    assert (whole.directory / "mlflow" / "artifacts" / "1" / "a" / "model.txt").read_bytes() == b"weights"


def test_ray_lets_nobody_in_without_its_token(whole: Running, second_ray: RayServer) -> None:
    for token in ("", "guess", second_ray.token_path.read_text()):
        with pytest.raises(HTTPError, match=r"40[13]"):
            _ask(_ray(whole), "/api/jobs/", token=token)


def test_a_submitted_job_runs_in_this_environment(whole: Running, eventually: Callable[..., Any]) -> None:
    code = "import os, rtrec_ray, sys; print(sys.prefix, os.environ['RAY_ADDRESS'], 'seen')"
    job = _ask(_ray(whole), "/api/jobs/", body={"entrypoint": f'python -c "{code}"'})["submission_id"]

    def ended() -> str | None:
        status = _ask(_ray(whole), f"/api/jobs/{job}")["status"]
        return status if status in ("SUCCEEDED", "FAILED", "STOPPED") else None

    status = eventually(ended, what="the job to end")
    logs = _ask(_ray(whole), f"/api/jobs/{job}/logs")["logs"]
    assert status == "SUCCEEDED", logs
    assert f"{whole.addresses.ray_address} seen" in logs


def test_a_second_ray_ends_without_the_first(whole: Running, second_ray: RayServer) -> None:
    assert second_ray.address != whole.addresses.ray_address
    short = second_ray._short.readlink()
    assert short.is_dir()
    second_ray.stop()
    assert process.family([], directories=[second_ray.directory]) == []
    assert not short.exists()
    assert list((second_ray.directory / "logs").glob("raylet.*"))
    assert _ask(_ray(whole), "/api/version")["ray_version"]


def test_after_stop_nothing_is_left(whole: Running) -> None:
    short = _ray(whole)._short.readlink()
    whole.stop()
    assert process.family([], directories=[whole.directory / name for name in PARTS]) == []
    assert not short.exists()
    assert whole.health() == dict.fromkeys(PARTS, False)
