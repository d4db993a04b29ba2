"""Everything a server started is found and ended, whatever it did to hide; nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rtrec_ray.embedded import process

# A child in the tree; a daemon in a session of its own; one that wiped its environment but stayed in the session.
_FAMILY = """
import os, subprocess, sys, time
wait = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(wait), subprocess.Popen(wait, start_new_session=True), subprocess.Popen(wait, env={})]
print(*[child.pid for child in children], flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
os._exit(0)
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def _start(directory: Path, *, stay: bool, eventually: Callable[..., Any]) -> tuple[process.ProcessId, set[int]]:
    arguments = [sys.executable, "-c", _FAMILY, "stay" if stay else "leave"]
    log = directory / "log"
    child = process.spawn(process.Command(arguments=arguments, directory=directory, log=log, environment={}))
    identity = process.identify(child.pid)
    eventually(lambda: log.exists() and log.read_text().endswith("\n"), what="the family to start")
    if not stay:
        child.wait()
    return identity, {int(pid) for pid in log.read_text().split()}


@pytest.mark.parametrize("stay", [True, False], ids=["its parent lives", "its parent crashed"])
def test_the_whole_family_ends_and_no_stranger(
    tmp_path: Path, stranger: subprocess.Popen[bytes], stay: bool, eventually: Callable[..., Any]
) -> None:
    identity, children = _start(tmp_path, stay=stay, eventually=eventually)
    family = process.family([identity], directories=[tmp_path])
    assert {each.pid for each in family} == children | ({identity.pid} if stay else set())
    process.kill_all(lambda: process.family([identity], directories=[tmp_path]))
    assert process.family([identity], directories=[tmp_path]) == []
    assert stranger.poll() is None


def test_a_directory_inside_another_is_a_stranger(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    identity, _ = _start(inner, stay=True, eventually=eventually)
    assert process.family([], directories=[tmp_path]) == []
    process.kill_all(lambda: process.family([identity], directories=[inner]))


def test_a_number_given_to_another_process_is_not_found() -> None:
    ours = process.identify(os.getpid())
    assert ours.find() == psutil.Process()
    assert process.ProcessId(pid=ours.pid, created_s=ours.created_s - 3600).find() is None


def test_one_that_ignores_the_request_is_killed(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    child = process.spawn(
        process.Command(arguments=[sys.executable, "-c", code], directory=tmp_path, log=log, environment={})
    )
    eventually(lambda: log.read_text(), what="the process to start")
    process.end([psutil.Process(child.pid)], timeout_s=0.1)
    assert child.wait(timeout=120) == -signal.SIGKILL


def test_a_failure_names_the_log_and_quotes_its_end(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    log.write_text("\n".join(f"line {number}" for number in range(9_999)))
    error = process.failure("kafka", "ended while starting", log=log)
    assert "line 9998" in error.message
    assert "line 9993" not in error.message
    assert str(log) in error.mend
