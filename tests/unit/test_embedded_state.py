"""One owner per data directory; its state is whole or absent; a directory that cannot serve says why and what to do."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rtrec_ray.embedded import process
from rtrec_ray.embedded.state import Addresses, State, claim, read_state, state_path, write_state
from rtrec_ray.embedded.system import stop_other
from rtrec_ray.errors import AlreadyRunning, DirectoryUnusable, NotRunning

_ON_TMPFS = """
import sys
from pathlib import Path
from rtrec_ray.embedded.state import claim
from rtrec_ray.errors import RtrecError
try:
    claim(Path(sys.argv[1]))
except RtrecError as error:
    print(type(error).__name__, error.line())
"""


def _state(**change: object) -> State:
    fields: dict[str, object] = {
        "owner": process.identify(os.getpid()),
        "started_ms": 1,
        "parts": ("kafka",),
        "addresses": Addresses(kafka_bootstrap="127.0.0.1:1"),
        "processes": {"kafka": process.ProcessId(pid=2, created_s=3.5)},
        "facts": {"serve_url": "u", "parts": ["pipeline"]},
    }
    return State(**{**fields, **change})  # type: ignore[arg-type]


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    with_lock = claim(tmp_path)
    write_state(tmp_path, _state())
    assert read_state(tmp_path) == _state()
    assert stat.S_IMODE(state_path(tmp_path).stat().st_mode) == 0o600
    with_lock.close()
    assert read_state(tmp_path) is None


def test_a_state_of_another_version_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    state_path(tmp_path).write_text('{"owner": 7}')
    assert read_state(tmp_path) is None


def test_a_dead_owner_is_not_running(tmp_path: Path) -> None:
    assert _state().is_running()
    ours = process.identify(os.getpid())
    assert not _state(owner=process.ProcessId(pid=ours.pid, created_s=ours.created_s - 60)).is_running()


def test_the_second_owner_is_told_what_runs(tmp_path: Path) -> None:
    first = claim(tmp_path)
    write_state(tmp_path, _state())
    with pytest.raises(AlreadyRunning, match=rf"kafka \(process {os.getpid()}\)") as caught:
        claim(tmp_path)
    assert "rtrec down" in caught.value.mend
    first.close()
    claim(tmp_path).close()


@pytest.mark.parametrize("place", ["file/data", "/proc/rtrec"])
def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryUnusable, match="cannot be written") as caught:
        claim(tmp_path / place)
    assert "--data-dir" in caught.value.mend


@pytest.mark.parametrize(
    ("options", "said"),
    [("size=32k", "is full"), ("size=8m", "MB free"), ("ro", "cannot be written: Read-only file system")],
)
def test_a_full_or_read_only_disk_says_so(tmp_path: Path, options: str, said: str) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    script = f'mount -t tmpfs -o {options} none "$0" && exec "$1" -c "$2" "$0"'
    command = [unshare, "-Urm", "sh", "-c", script, str(tmp_path), sys.executable, _ON_TMPFS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "DirectoryUnusable" in done.stdout, done
    assert said in done.stdout
    assert "--data-dir" in done.stdout


@pytest.mark.parametrize("used_before", [False, True])
def test_nothing_to_stop_is_an_error_that_names_the_start(tmp_path: Path, used_before: bool) -> None:
    if used_before:
        claim(tmp_path / "data").close()
    with pytest.raises(NotRunning, match="nothing runs") as caught:
        stop_other(tmp_path / "data")
    assert "rtrec up" in caught.value.mend
    assert (tmp_path / "data").exists() == used_before
