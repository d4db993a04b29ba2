"""What a worker of the incremental run does: the follower, in step with the other workers."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ray.train.collective import broadcast_from_rank_zero

from rtrec_ray.errors import LeaseLost
from training import launch
from training.desk import sit_down
from training.follower import Follower
from training.lockstep import Turn
from training.plan import IncrementalPlan

__all__ = ["work"]

log = logging.getLogger(__name__)


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


def work(plan: IncrementalPlan) -> None:
    """One worker of Ray Train."""
    rank, workers = launch.world()
    desk = sit_down(plan.connections, run=plan.options.run)
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
        desk.close()
