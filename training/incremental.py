"""The incremental run: one long-lived Ray Train run around the follower."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import train
from ray.train.collective import broadcast_from_rank_zero

from rtrec_ray.errors import LeaseLost, StoreUnavailable
from rtrec_ray.stores.training import Beat
from training import launch
from training.follower import Desk, Follower, Turn
from training.options import Connections, IncrementalOptions

__all__ = ["train_incremental"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementalPlan:
    """What the workers are told. `epoch`: of this start, from the book."""

    options: IncrementalOptions
    connections: Connections
    epoch: int


def train_incremental(options: IncrementalOptions, connections: Connections) -> None:
    """Follow the ledger until `TrainingBook.request_stop(options.run)`; returns after the last version is stored.

    Waits for a first champion. Workers that die are started again and go on from the last version. Needs a Ray
    connection. Raises TrainingFailed, StoreUnavailable.
    """
    book = connections.book()
    epoch = book.open(options.run)
    plan = IncrementalPlan(options=options, connections=connections, epoch=epoch)
    try:
        launch.fit(_work, plan=plan, name=f"{options.run}-{epoch}", ray=options.ray)
    except BaseException as error:
        with suppress(StoreUnavailable, LeaseLost):  # the error that ended the run is the one to tell
            book.beat(options.run, epoch, Beat(state="failed", message=str(error)[:500]))
        raise
    finally:
        book.close()


@dataclass(frozen=True, slots=True)
class Together:
    """Workers agree by the first one's word."""

    rank: int
    workers: int

    def agree(self, turn: Turn | None, /) -> Turn:
        """See Lockstep."""
        if self.workers == 1:
            assert turn is not None
            return turn
        return broadcast_from_rank_zero(turn)


def _work(config: dict[str, Any]) -> None:
    """One worker of Ray Train."""
    plan: IncrementalPlan = config["plan"]
    rank, workers = launch.world()
    desk = _sit_down(plan.connections)
    follower = Follower(
        plan.options,
        desk,
        epoch=plan.epoch,
        lockstep=Together(rank, workers),
        strategy=lambda: launch.strategy(workers),
    )
    try:
        follower.run()
    except LeaseLost as error:
        # Not a failure: an error would make Ray Train start this worker again and again.
        log.warning("training_taken_over", extra={"cause": error.message})
    finally:
        desk.bell.close()
        desk.book.close()
        desk.events.close()
    train.report({})


def _sit_down(connections: Connections) -> Desk:
    return Desk(
        samples=connections.samples(),
        bell=connections.bell(),
        center=connections.center(),
        events=connections.events(),
        book=connections.book(),
        clock=connections.clock,
    )
