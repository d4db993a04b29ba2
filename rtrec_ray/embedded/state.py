"""What runs on a data directory: `run/state.json`, written whole by the one process that holds the lock beside it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from rtrec_ray.embedded.files import write_whole
from rtrec_ray.embedded.process import ProcessId
from rtrec_ray.errors import AlreadyRunning, DirectoryUnusable

_FREE_BYTES = 500_000_000
_OTHER_DIRECTORY = "choose another with --data-dir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the servers are; None for one that is not part of this system."""

    kafka_bootstrap: str | None = None
    postgres_dsn: str | None = None
    mlflow_url: str | None = None
    ray_address: str | None = None
    ray_dashboard: str | None = None
    ray_token_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One running system. `facts` is for what the servers know nothing of: parts of the pipeline, the HTTP address."""

    owner: ProcessId
    started_ms: int
    parts: tuple[str, ...]
    addresses: Addresses = Addresses()
    processes: dict[str, ProcessId] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def is_running(self) -> bool:
        """Whether the process that started the system lives."""
        return self.owner.find() is not None


def state_path(directory: Path) -> Path:
    """Where the state of a data directory lies."""
    return directory / "run" / "state.json"


def read_state(directory: Path) -> State | None:
    """What the last `up` wrote, whether it still runs or crashed (`is_running`); None after an orderly end."""
    try:
        return msgspec.json.decode(state_path(directory).read_bytes(), type=State)
    # Only we write this file; one that cannot be read is of another version, whose processes the mark still finds.
    except (FileNotFoundError, NotADirectoryError, PermissionError, msgspec.MsgspecError):
        return None


def write_state(directory: Path, state: State) -> None:
    """Replace the state; a reader sees the old one or the new one."""
    write_whole(state_path(directory), msgspec.json.format(msgspec.json.encode(state)).decode())


class Claim:
    """The lock that makes one process the owner of a data directory until `close`, or until it dies."""

    def __init__(self, directory: Path, file: IO[bytes]) -> None:
        self.directory = directory
        self._file = file

    def close(self) -> None:
        """Remove the state and let the next one in."""
        state_path(self.directory).unlink(missing_ok=True)
        self._file.close()


def claim(directory: Path, *, to_write: bool = True) -> Claim:
    """Become the owner of a data directory, made when it is absent.

    Raises AlreadyRunning when another process owns it, DirectoryUnusable when it cannot be written or (to_write) its
    disk is full.
    """
    try:
        (directory / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (directory / "run" / "lock").open("ab")
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if to_write:
            _try_writing(directory)
    except BlockingIOError as error:
        file.close()
        raise _already(directory) from error
    except OSError as error:
        file.close()
        raise _unusable(directory, error) from error
    except DirectoryUnusable:
        file.close()
        raise
    return Claim(directory, file)


def _try_writing(directory: Path) -> None:
    probe = directory / "run" / f"probe-{os.getpid()}"
    try:
        probe.write_bytes(bytes(65_536))
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(directory).free
    if free < _FREE_BYTES:
        raise DirectoryUnusable(
            f"the disk of {directory} has only {free // 1_000_000} MB free, {_FREE_BYTES // 1_000_000} MB are needed",
            mend=f"make room, or {_OTHER_DIRECTORY}",
        )


def _unusable(directory: Path, error: OSError) -> DirectoryUnusable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DirectoryUnusable(f"the disk of {directory} is full", mend=f"make room, or {_OTHER_DIRECTORY}")
    return DirectoryUnusable(f"{directory} cannot be written: {error.strerror}", mend=_OTHER_DIRECTORY)


def _already(directory: Path) -> AlreadyRunning:
    state = read_state(directory)
    what = f"{', '.join(state.parts)} (process {state.owner.pid})" if state is not None else "another process"
    return AlreadyRunning(
        f"already running on {directory}: {what}", mend="`rtrec status` shows it, `rtrec down` stops it"
    )
