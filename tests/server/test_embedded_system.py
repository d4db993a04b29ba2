"""`up` and `down` on a data directory: what is started is stopped, a crash blocks nothing, two live side by side."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from rtrec_ray.embedded import jars, ports, process
from rtrec_ray.embedded.assembly import PARTS, EmbeddedOptions
from rtrec_ray.embedded.doctor import checks
from rtrec_ray.embedded.state import State, read_state
from rtrec_ray.embedded.system import Running, start, stop_other
from rtrec_ray.errors import AlreadyRunning, EmbeddedFailure, NotRunning

pytestmark = pytest.mark.server

_UP = """
import signal, sys, threading
from pathlib import Path
from rtrec_ray.embedded.assembly import EmbeddedOptions
from rtrec_ray.embedded.system import start

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
running = start(["postgres"], Path(sys.argv[1]), EmbeddedOptions(), on_step=lambda name, text: None)
running.note(ready=True)
ended.wait()
running.stop()
"""

_INTERRUPTED = """
import signal, sys
from pathlib import Path
from rtrec_ray.embedded.assembly import EmbeddedOptions
from rtrec_ray.embedded.system import start

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    start(["postgres", "kafka"], Path(sys.argv[1]), EmbeddedOptions(), on_step=lambda name, text: print(name, text))
except KeyboardInterrupt:
    sys.exit(130)
"""


@dataclass
class Up:
    """A system that another process started."""

    child: subprocess.Popen[bytes]
    state: State


@pytest.fixture
def steps() -> list[str]:
    return []


@pytest.fixture
def begin(tmp_path: Path, steps: list[str]) -> Iterator[Callable[..., Running]]:
    begun: list[Running] = []

    def begin(*parts: str, name: str = "data", options: EmbeddedOptions | None = None) -> Running:
        running = start(
            parts,
            tmp_path / name,
            options or EmbeddedOptions(),
            on_step=lambda name, text: steps.append(f"{name} {text}"),
        )
        begun.append(running)
        return running

    yield begin
    for running in begun:
        running.stop()


@pytest.fixture
def up(tmp_path: Path, eventually: Callable[..., Any]) -> Iterator[Up]:
    directory = tmp_path / "data"
    child = subprocess.Popen([sys.executable, "-c", _UP, str(directory)])

    def ready() -> State | None:
        state = read_state(directory)
        return state if state is not None and state.facts.get("ready") else None

    yield Up(child=child, state=eventually(ready, what="the other process to be up"))
    child.kill()
    child.wait()
    process.kill_all(lambda: _left(directory))


def _left(directory: Path) -> list[psutil.Process]:
    return process.family([], directories=[directory / name for name in PARTS])


def _number(dsn: str | None) -> object:
    assert dsn is not None
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS kept (number int); INSERT INTO kept VALUES (1)")
            cursor.execute("SELECT count(*) FROM kept")
            return cursor.fetchall()[0][0]
    finally:
        connection.close()


def test_a_second_up_says_what_runs_and_changes_nothing(up: Up, begin: Callable[..., Running]) -> None:
    with pytest.raises(AlreadyRunning, match=rf"postgres \(process {up.child.pid}\)"):
        begin("postgres", "kafka")
    assert _number(up.state.addresses.postgres_dsn) == 1


def test_down_stops_everything_another_process_started(up: Up, tmp_path: Path) -> None:
    assert _left(tmp_path / "data")
    assert stop_other(tmp_path / "data").parts == ("postgres",)
    assert up.child.wait(timeout=120) == 0
    assert _left(tmp_path / "data") == []
    assert read_state(tmp_path / "data") is None
    with pytest.raises(NotRunning):
        stop_other(tmp_path / "data")


def test_down_waits_for_a_lock_that_outlives_its_owner(up: Up, tmp_path: Path) -> None:
    up.child.kill()
    up.child.wait()
    with (tmp_path / "data" / "run" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        later = threading.Timer(1.0, fcntl.flock, [lock, fcntl.LOCK_UN])
        later.start()
        assert stop_other(tmp_path / "data").parts == ("postgres",)
        later.join()
    assert _left(tmp_path / "data") == []


def test_a_crash_of_up_does_not_block_the_next_one(up: Up, tmp_path: Path, begin: Callable[..., Running]) -> None:
    assert _number(up.state.addresses.postgres_dsn) == 1
    up.child.send_signal(signal.SIGKILL)
    up.child.wait()
    orphans = [process.identify(each.pid) for each in _left(tmp_path / "data")]
    state = read_state(tmp_path / "data")
    assert orphans
    assert state is not None
    assert not state.is_running()
    running = begin("postgres")
    assert [each.find() for each in orphans] == [None] * len(orphans)
    assert _number(running.addresses.postgres_dsn) == 2


def test_down_after_a_crash_stops_what_it_left(up: Up, tmp_path: Path) -> None:
    up.child.kill()
    up.child.wait()
    assert stop_other(tmp_path / "data").owner.pid == up.child.pid
    assert _left(tmp_path / "data") == []


def test_two_directories_run_side_by_side_and_end_alone(up: Up, tmp_path: Path, begin: Callable[..., Running]) -> None:
    other = begin("postgres", name="other")
    assert other.addresses.postgres_dsn != up.state.addresses.postgres_dsn
    assert _number(other.addresses.postgres_dsn) == 1
    assert _number(up.state.addresses.postgres_dsn) == 1
    stop_other(tmp_path / "data")
    assert _number(other.addresses.postgres_dsn) == 2


def test_another_port_is_found_when_the_preferred_one_is_taken(begin: Callable[..., Running]) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        running = begin("postgres", options=EmbeddedOptions(postgres_port=port))
        assert f"port={port}" not in str(running.addresses.postgres_dsn)
        assert _number(running.addresses.postgres_dsn) == 1


def test_the_preferred_port_is_taken_when_it_is_free(begin: Callable[..., Running]) -> None:
    port = ports.pick()
    running = begin("postgres", options=EmbeddedOptions(postgres_port=port))
    assert f"port={port} " in str(running.addresses.postgres_dsn)


def test_a_server_that_dies_is_reported_and_started_again(
    begin: Callable[..., Running], steps: list[str], eventually: Callable[..., Any]
) -> None:
    running = begin("postgres")
    assert _number(running.addresses.postgres_dsn) == 1
    running.watch()
    running.servers["postgres"].processes()[0].kill()
    eventually(lambda: "postgres restarted" in steps, what="a restart")
    assert steps.index("postgres ended") < steps.index("postgres restarted")
    assert _number(running.addresses.postgres_dsn) == 2
    state = read_state(running.directory)
    assert state is not None
    assert state.processes["postgres"].pid == running.servers["postgres"].processes()[0].pid


def test_an_interrupt_while_starting_leaves_nothing_even_when_it_comes_twice(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    directory = tmp_path / "data"
    child = subprocess.Popen([sys.executable, "-c", _INTERRUPTED, str(directory)], stdout=subprocess.DEVNULL)

    def started() -> bool:
        state = read_state(directory)
        return state is not None and "kafka" in state.processes

    eventually(started, what="Kafka's process to be recorded")
    for _ in range(2):
        child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=120) == 130
    assert _left(directory) == []
    assert read_state(directory) is None


def test_when_one_cannot_start_all_are_stopped_and_the_directory_is_free(
    begin: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "directory", lambda: tmp_path / "nowhere")
    with pytest.raises(EmbeddedFailure, match="jars of Kafka are missing"):
        begin("postgres", "kafka")
    assert _left(tmp_path / "data") == []
    assert read_state(tmp_path / "data") is None
    begin("postgres")


def test_an_unknown_part_is_refused(begin: Callable[..., Running], tmp_path: Path) -> None:
    with pytest.raises(EmbeddedFailure, match="unknown part redis"):
        begin("redis")
    assert read_state(tmp_path / "data") is None


def test_facts_of_the_application_are_kept_with_the_state(begin: Callable[..., Running]) -> None:
    running = begin("postgres")
    running.note(serve_url="http://x")
    running.note(ready=True)
    state = read_state(running.directory)
    assert state is not None
    assert state.facts == {"serve_url": "http://x", "ready": True}
    assert state.owner.pid == os.getpid()


def test_the_doctor_finds_all_that_the_suite_runs_on(tmp_path: Path) -> None:
    found = {check.name: check for check in checks(tmp_path / "not" / "there")}
    assert {name for name, check in found.items() if not check.ok} <= {"memory", "disk", "shared memory", "open files"}
    assert found["postgres"].detail.startswith("postgres (PostgreSQL) 18")
    assert all(check.mend == "" for check in found.values() if check.ok)


def test_the_doctor_names_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "directory", lambda: tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    found = {check.name: check for check in checks(tmp_path / "file" / "data")}
    assert found["kafka"].mend == "run `make setup`"
    assert "--data-dir" in found["data directory"].mend
    assert not (tmp_path / "nowhere").exists()
