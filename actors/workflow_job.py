"""A job of a workflow: claims its run or does nothing, runs the command, beats meanwhile, and says how it ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.metadata.recording import NODE_RUN
from rtrec_ray.stores.workflow.store import Claim, End, WorkflowStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """`beat_every_s`: also how soon a job hears that it is to end; `patience_s`: from SIGTERM to SIGKILL."""

    beat_every_s: float = 2.0
    patience_s: float = 20.0


def run_job(store: WorkflowStore, run_id: str, *, options: JobOptions | None = None) -> int:
    """Do the work of a run, if nobody else does; answers the command's exit code, 0 when there was nothing to do."""
    owner, asked = f"job-{uuid.uuid4().hex[:12]}", threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
    claim = _insist(lambda: store.claim(run_id, owner=owner))
    if claim is None:
        log.warning("run_is_anothers", extra={"run": run_id})
        return 0
    state, reason, code = _work(store, claim, owner, asked, options or JobOptions())
    _insist(lambda: store.finish(run_id, state, reason=reason, owner=owner))
    return code


def _work(
    store: WorkflowStore, claim: Claim, owner: str, asked: threading.Event, options: JobOptions
) -> tuple[End, str, int]:
    try:
        child = subprocess.Popen(claim.command, env={**os.environ, NODE_RUN: claim.run_id})
    except OSError as error:
        return "failed", f"{claim.command[0]} does not start: {error.strerror}", 127
    deadline: float | None = None
    while True:
        try:
            code = child.wait(options.beat_every_s)
        except subprocess.TimeoutExpired:
            wanted = _beat(store, claim.run_id, owner) and not asked.is_set()
            deadline = _end(child, wanted=wanted, deadline=deadline, patience_s=options.patience_s)
            continue
        # The signal that stops a job may reach the command before the word reaches this process.
        if deadline is not None or asked.is_set() or (code != 0 and not _beat(store, claim.run_id, owner)):
            return "stopped", "asked to end", 0
        return ("succeeded", "", 0) if code == 0 else ("failed", f"exit code {code}", code if code > 0 else 1)


def _end(child: subprocess.Popen[bytes], *, wanted: bool, deadline: float | None, patience_s: float) -> float | None:
    """End a child that is no longer wanted, gently first; answers until when it may take its time."""
    if wanted and deadline is None:
        return None
    if deadline is None:
        child.terminate()
        return monotonic_s() + patience_s
    if monotonic_s() >= deadline:
        child.kill()
    return deadline


def _beat(store: WorkflowStore, run_id: str, owner: str) -> bool:
    try:
        return store.beat(run_id, owner=owner)
    except StoreUnavailable:  # the work goes on; that nobody hears of it is what a heartbeat's limit is for
        return True


def _insist(what: Callable[[], Any]) -> Any:
    """Do it as soon as the store is there: a job's end must not be lost because the store was away just then."""
    failures, backoff, pause = 0, Backoff(), threading.Event()
    while True:
        try:
            return what()
        except StoreUnavailable:
            failures += 1
            pause.wait(backoff.wait_s(failures))
