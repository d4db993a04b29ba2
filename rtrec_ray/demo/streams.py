"""Two streams for the demonstration alone, whatever the libraries around it print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def set_aside(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Let all that is written to stdout and stderr go into `log` for the block; yields streams to where it went.

    Ray prints what its raylet has to say to stdout, TensorFlow and librdkafka write to descriptor 2 from C++: neither
    can be told not to, and `--json` promises one object on stdout.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _flush()
        kept = [stack.enter_context(os.fdopen(os.dup(number), "w", buffering=1)) for number in (1, 2)]
        into = stack.enter_context(log.open("ab", buffering=0))
        for number, stream in zip((1, 2), kept, strict=True):
            os.dup2(into.fileno(), number)
            stack.callback(os.dup2, stream.fileno(), number)
        stack.callback(_flush)
        yield kept[0], kept[1]


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
