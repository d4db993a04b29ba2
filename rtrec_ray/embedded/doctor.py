"""What this machine lacks for the embedded servers: `rtrec doctor`."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from rtrec_ray.embedded import jars, kafka, ports, postgres, ray, unprivileged
from rtrec_ray.embedded.assembly import EmbeddedOptions
from rtrec_ray.embedded.state import read_state
from rtrec_ray.errors import EmbeddedFailure

_SETUP = "run `make setup`"
_MEMORY_BYTES = 5_000_000_000
_DISK_BYTES = 3_000_000_000
_FILES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing the embedded servers need. `mend` is empty when it is there."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def checks(directory: Path, options: EmbeddedOptions | None = None) -> list[Check]:
    """Look at everything, change nothing. Takes about a second."""
    options = options or EmbeddedOptions()
    directory = directory.expanduser().absolute()
    return [
        _python(),
        _memory(),
        _disk(directory),
        _writable(directory),
        _jars(),
        _runs("java", kafka.java, "-version"),
        _runs("postgres", lambda: postgres.binaries() / "postgres", "--version"),
        _root(),
        _proxy(),
        _ports(directory, options),
        _shared_memory(options),
        _files(),
    ]


def _check(name: str, detail: str, *, ok: bool, mend: str) -> Check:
    return Check(name=name, ok=ok, detail=detail, mend="" if ok else mend)


def _python() -> Check:
    version = sys.version_info
    ok = (3, 11) <= version[:2] <= (3, 12)
    return _check("python", f"{version.major}.{version.minor}.{version.micro}", ok=ok, mend="use Python 3.11 or 3.12")


def _memory() -> Check:
    total = psutil.virtual_memory().total
    cores = psutil.cpu_count() or 1
    detail = f"{total / 1e9:.1f} GB on {cores} cores"
    return _check("memory", detail, ok=total >= _MEMORY_BYTES, mend="the whole system takes about 5 GB")


def _disk(directory: Path) -> Check:
    free = shutil.disk_usage(_existing(directory)).free
    mend = "make room, or choose another --data-dir"
    return _check("disk", f"{free / 1e9:.1f} GB free for {directory}", ok=free >= _DISK_BYTES, mend=mend)


def _writable(directory: Path) -> Check:
    place = _existing(directory)
    ok = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return _check("data directory", str(directory), ok=ok, mend="choose another --data-dir, or make it writable")


def _jars() -> Check:
    absent = jars.missing()
    detail = f"{len(jars.pinned()) - len(absent)} of {len(jars.pinned())} jars in {jars.directory()}"
    return _check("kafka", detail, ok=not absent, mend=_SETUP)


def _runs(name: str, program: Callable[[], Path], argument: str) -> Check:
    try:
        done = subprocess.run([program(), argument], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, EmbeddedFailure) as error:
        return Check(name=name, ok=False, detail=str(error), mend=_SETUP)
    said = (done.stdout + done.stderr).partition("\n")[0]
    return _check(name, said, ok=done.returncode == 0, mend=_SETUP)


def _root() -> Check:
    if os.geteuid() != 0:
        return Check(name="user", ok=True, detail="not root")
    with tempfile.TemporaryDirectory() as directory:
        # An empty program: only the way there is of interest.
        command = [sys.executable, "-I", "-S", unprivileged.__file__, directory, sys.executable, "-I", "-S", "-c", ""]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    detail = "root, PostgreSQL runs as another user" if done.returncode == 0 else f"root: {done.stderr.strip()}"
    return _check("user", detail, ok=done.returncode == 0, mend=postgres.ROOT_MEND)


def _proxy() -> Check:
    found = ray.haproxy()
    detail = str(found) if found else "no HAProxy binary: requests take ten times as long"
    return _check("serve's fast path", detail, ok=found is not None, mend=_SETUP)


def _ports(directory: Path, options: EmbeddedOptions) -> Check:
    state = read_state(directory)
    if state is not None and state.is_running():
        return Check(name="ports", ok=True, detail=f"the system is running as process {state.owner.pid}")
    wanted = (options.kafka_port, options.postgres_port, options.mlflow_port, options.dashboard_port)
    taken = [str(port) for port in wanted if not ports.is_free(port)]
    # Not a fault: others are found.
    return Check(name="ports", ok=True, detail=f"in use, others will be taken: {', '.join(taken)}" if taken else "free")


def _shared_memory(options: EmbeddedOptions) -> Check:
    place = Path("/dev/shm")
    free = shutil.disk_usage(place).free if place.is_dir() else 0
    mend = "give the container more shared memory (--shm-size=2g), or Ray keeps its objects on disk"
    return _check("shared memory", f"{free / 1e9:.1f} GB", ok=free >= options.object_store_bytes, mend=mend)


def _files() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = hard == resource.RLIM_INFINITY or hard >= _FILES
    return _check("open files", f"up to {hard}", ok=ok, mend=f"raise the hard limit (ulimit -Hn) to {_FILES}")


def _existing(directory: Path) -> Path:
    return next(place for place in (directory, *directory.parents) if place.exists())
