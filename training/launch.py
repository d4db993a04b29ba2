"""A Ray Train run (V2) with TensorFlow: how both kinds of training are started."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from ray import train
from ray.data import Dataset, ExecutionOptions
from ray.train import TrainingFailedError
from ray.train.tensorflow import TensorflowTrainer

from rtrec_ray.errors import TrainingFailed
from training.options import RayOptions

__all__ = ["fit", "strategy", "world"]

log = logging.getLogger(__name__)


def fit(
    worker: Callable[[dict[str, Any]], None],
    *,
    plan: object,
    name: str,
    ray: RayOptions,
    datasets: dict[str, Dataset] | None = None,
) -> None:
    """Run `worker({"plan": plan})` on each worker to its end. Needs a Ray connection. Raises TrainingFailed."""
    trainer = TensorflowTrainer(
        worker,
        train_loop_config={"plan": plan},
        scaling_config=train.ScalingConfig(num_workers=ray.workers, resources_per_worker={"CPU": ray.cpus_per_worker}),
        run_config=train.RunConfig(
            name=name,
            storage_path=ray.storage,
            failure_config=train.FailureConfig(max_failures=ray.max_failures),
        ),
        datasets=datasets or {},
        # Blocks in the order of the ledger: without it two runs over the same samples see them in another order.
        dataset_config=train.DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )
    log.info("training_starts", extra={"run": name, "workers": ray.workers})
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingFailed(
            f"training run {name} ended: {_cause(error)}", mend="Ray's log of its workers tells more"
        ) from error


def _cause(error: BaseException) -> str:
    """The innermost line of what a worker said: Ray wraps it in the tracebacks of each process it passed."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))


def world() -> tuple[int, int]:
    """The rank of this worker, and how many there are."""
    context = train.get_context()
    return context.get_world_rank(), context.get_world_size()


def strategy(workers: int) -> tf.distribute.Strategy | None:
    """How several workers step together; none for one, which would only talk to itself."""
    return tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else None
