"""A process that does what a Ray actor of the feature stage does, until SIGTERM."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from actors.stage import StageActor
from rtrec_ray.app.pipeline import Share, make_work
from rtrec_ray.app.system import System


def work(system: System, share: Share, log: Path) -> None:
    """Run. What it logs, a JSON object a line, goes to the file."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    faulthandler.register(signal.SIGUSR1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    actor = StageActor(partial(make_work, system, share))
    stop.wait()
    actor.stop()
