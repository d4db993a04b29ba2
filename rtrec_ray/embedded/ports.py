"""Ports of the loopback interface that nobody uses."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

LOOPBACK = "127.0.0.1"

# Below the range from which Linux takes ports of outgoing connections (32768 and up), above those of known services:
# a port that is free now will still be free when the server that gets it has started. Serve's replicas begin at 30000.
_RANGE = (20_000, 30_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now.

    >>> with socket.create_server((LOOPBACK, 0)) as server:
    ...     is_free(server.getsockname()[1])
    False
    """
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def pick(preferred: int = 0, *, taken: Collection[int] = ()) -> int:
    """The preferred port when it is free and not promised to another server, or else a random free one.

    >>> port = pick()
    >>> pick(port) == port, pick(port, taken=[port]) == port
    (True, False)
    """
    if preferred and preferred not in taken and _reserve(preferred):
        return preferred
    while True:
        port = random.SystemRandom().randrange(*_RANGE)
        if port not in taken and _reserve(port):
            return port


# Two systems that start at the same moment both find a port free: the lock, held until this process ends, gives it to
# one of them.
_RESERVED: dict[int, IO[bytes]] = {}


def _reserve(port: int) -> bool:
    if port in _RESERVED:
        return is_free(port)
    folder = Path(tempfile.gettempdir()) / f"rtrec-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / str(port)).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _RESERVED[port] = file
    return is_free(port)
