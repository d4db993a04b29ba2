"""The base model: every sample up to now, read by Ray Data, learnt by Ray Train, logged as a version."""

from __future__ import annotations

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any

from ray.data import Dataset

from rtrec_ray.errors import LeaseLost, StoreUnavailable, TrainingImpossible
from rtrec_ray.metadata.base import JobRun
from rtrec_ray.metadata.recording import recorded
from rtrec_ray.registry.base import ModelVersion
from rtrec_ray.stores.training import Beat
from training.options import BaseOptions, Connections
from training.patience import patiently
from training.plan import BasePlan, version_of
from training.reading import read_samples, totals

__all__ = ["train_base"]

log = logging.getLogger(__name__)


def train_base(options: BaseOptions, connections: Connections) -> ModelVersion:
    """Train a base model on the newest revision of every sample, log it and announce it (MODEL_GENERATED).

    Needs a Ray connection. Raises TrainingImpossible without samples or clicks, TrainingFailed, StoreUnavailable,
    RegistryUnavailable.
    """
    job = options.job or f"base-{uuid.uuid4().hex[:12]}"
    run = JobRun(
        run_id=job,
        job="train-base",
        kind="batch",
        started_ms=connections.clock.now_ms(),
        context={"definitions": options.definition.named(options.definitions)},
        snapshot=connections.snapshot,
    )
    with recorded(connections.metadata, run, clock=connections.clock) as outcome:
        version = _train(options, connections, job=job)
        outcome["version"] = version.version
    return version


def _train(options: BaseOptions, connections: Connections, *, job: str) -> ModelVersion:
    book = connections.book()
    epoch = book.open(options.run)
    try:
        plan, samples = _prepare(options, connections, job=job, epoch=epoch)
        version = _fit(plan, samples)
        rows = plan.totals.rows * options.definition.epochs
        end = plan.beat(state="finished", rows=rows, version=version.version)
        patiently(lambda: book.beat(options.run, epoch, end), give_up_s=60.0)
    except BaseException as error:
        with suppress(StoreUnavailable, LeaseLost):  # the error that ended the run is the one to tell
            book.beat(options.run, epoch, Beat(state="failed", message=str(error)[:500]))
        raise
    finally:
        book.close()
    return version


def _prepare(options: BaseOptions, connections: Connections, *, job: str, epoch: int) -> tuple[BasePlan, Dataset]:
    end = connections.samples().end()
    if end.commit_seq == 0:
        raise TrainingImpossible(
            "there are no samples yet", mend="send events, or `rtrec replay` a log, and wait a minute"
        )
    connections.center()  # a registry that is away would else be found out after all the work
    with ThreadPoolExecutor(max_workers=1) as aside:
        # Other processes read meanwhile; without it TensorFlow's import would add its seconds to theirs.
        aside.submit(import_module, "training.launch")
        samples = read_samples(options, connections, to_seq=end.commit_seq)
        found = totals(samples)
    if not 0 < found.positives < found.rows:
        raise TrainingImpossible(
            f"{found.rows} samples with {found.positives} clicks teach nothing: a model needs both kinds",
            mend="`rtrec samples stats` shows how many there are",
        )
    log.info("base_samples_read", extra={"rows": found.rows, "positives": found.positives, "to_seq": end.commit_seq})
    plan = BasePlan(options=options, connections=connections, job=job, epoch=epoch, end=end, totals=found)
    return plan, samples


def _fit(plan: BasePlan, samples: Dataset) -> ModelVersion:
    # TensorFlow takes seconds to import: never in the tasks that read samples, which import this module too.
    from training import launch

    launch.fit(_work, plan=plan, name=plan.job, ray=plan.options.ray, datasets={"train": samples})
    version = version_of(plan.connections.center(), plan.job)
    assert version is not None
    return version


def _work(config: dict[str, Any]) -> None:
    from training.base_worker import work  # TensorFlow again: this runs in Ray Train's worker

    work(config["plan"])
