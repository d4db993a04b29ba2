"""The incremental run: one long-lived Ray Train run around the follower."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from rtrec_ray.errors import LeaseLost, StoreUnavailable
from rtrec_ray.metadata.base import JobRun
from rtrec_ray.metadata.recording import recorded
from rtrec_ray.stores.training import Beat
from training.options import Connections, IncrementalOptions
from training.plan import IncrementalPlan

__all__ = ["train_incremental"]


def train_incremental(options: IncrementalOptions, connections: Connections) -> None:
    """Follow the ledger until `TrainingBook.request_stop(options.run)`; returns after the last version is stored.

    Waits for a first champion. Workers that die are started again and go on from the last version. Needs a Ray
    connection. Raises TrainingFailed, StoreUnavailable.
    """
    book = connections.book()
    try:
        epoch = book.open(options.run)
    finally:
        book.close()
    run = JobRun(
        run_id=f"{options.run}-{epoch}",
        job="train-incremental",
        kind="endless",
        started_ms=connections.clock.now_ms(),
        snapshot=connections.snapshot,
    )
    with recorded(connections.metadata, run, clock=connections.clock, alone=True):
        _follow(options, connections, epoch=epoch)


def _follow(options: IncrementalOptions, connections: Connections, *, epoch: int) -> None:
    # TensorFlow takes seconds to import, and status and commands read this module's options without it.
    from training import launch

    plan = IncrementalPlan(options=options, connections=connections, epoch=epoch)
    try:
        launch.fit(_work, plan=plan, name=f"{options.run}-{epoch}", ray=options.ray)
    except BaseException as error:
        with suppress(StoreUnavailable, LeaseLost):  # the error that ended the run is the one to tell
            book = connections.book()
            book.beat(options.run, epoch, Beat(state="failed", message=str(error)[:500]))
            book.close()
        raise


def _work(config: dict[str, Any]) -> None:
    from training.incremental_worker import work  # TensorFlow again: this runs in Ray Train's worker

    work(config["plan"])
