"""The base model: every sample up to now, read by Ray Data, learnt by Ray Train, logged as a version."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.data import Dataset

from rtrec_ray.errors import LeaseLost, StoreUnavailable, TrainingImpossible
from rtrec_ray.registry.base import ModelCenter, ModelVersion
from rtrec_ray.stores.training import Beat, RunState
from training.options import BaseOptions, Connections
from training.reading import Totals, read_samples, totals

__all__ = ["BasePlan", "train_base", "version_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """What the workers are told. `epoch`: of this start, from the book; `totals`: of the samples up to `to_seq`."""

    options: BaseOptions
    connections: Connections
    job: str
    epoch: int
    to_seq: int
    totals: Totals

    @property
    def base_rate(self) -> float:
        """The share of clicks."""
        return self.totals.positives / self.totals.rows

    def beat(self, *, state: RunState, rows: int, version: str | None = None) -> Beat:
        """A sign of life after `rows` rows."""
        return Beat(
            state=state,
            commit_seq=self.to_seq,
            event_time_ms=self.totals.newest_ms,
            rows_trained=rows,
            version=version,
            base_version=version,
        )


def train_base(options: BaseOptions, connections: Connections) -> ModelVersion:
    """Train a base model on the newest revision of every sample, log it and announce it (MODEL_GENERATED).

    Needs a Ray connection. Raises TrainingImpossible without samples or clicks, TrainingFailed, StoreUnavailable,
    RegistryUnavailable.
    """
    job = options.job or f"base-{uuid.uuid4().hex[:12]}"
    book = connections.book()
    epoch = book.open(options.run)
    try:
        plan, samples = _prepare(options, connections, job=job, epoch=epoch)
        version = _fit(plan, samples)
        rows = plan.totals.rows * options.definition.epochs
        book.beat(options.run, epoch, plan.beat(state="finished", rows=rows, version=version.version))
    except BaseException as error:
        with suppress(StoreUnavailable, LeaseLost):  # the error that ended the run is the one to tell
            book.beat(options.run, epoch, Beat(state="failed", message=str(error)[:500]))
        raise
    finally:
        book.close()
    return version


def _prepare(options: BaseOptions, connections: Connections, *, job: str, epoch: int) -> tuple[BasePlan, Dataset]:
    to_seq = connections.samples().high_water()
    if to_seq == 0:
        raise TrainingImpossible(
            "there are no samples yet", mend="send events, or `rtrec replay` a log, and wait a minute"
        )
    connections.center()  # a registry that is away would else be found out after all the work
    samples = read_samples(options, connections, to_seq=to_seq)
    found = totals(samples)
    if not 0 < found.positives < found.rows:
        raise TrainingImpossible(
            f"{found.rows} samples with {found.positives} clicks teach nothing: a model needs both kinds",
            mend="`rtrec samples stats` shows how many there are",
        )
    log.info("base_samples_read", extra={"rows": found.rows, "positives": found.positives, "to_seq": to_seq})
    plan = BasePlan(options=options, connections=connections, job=job, epoch=epoch, to_seq=to_seq, totals=found)
    return plan, samples


def _fit(plan: BasePlan, samples: Dataset) -> ModelVersion:
    # TensorFlow takes seconds to import: only once the samples are read, so that a refusal comes at once, and never in
    # the tasks that read them, which import this module too.
    from training import launch

    launch.fit(_work, plan=plan, name=plan.job, ray=plan.options.ray, datasets={"train": samples})
    version = version_of(plan.connections.center(), plan.job)
    assert version is not None
    return version


def version_of(center: ModelCenter, job: str) -> ModelVersion | None:
    """The version that a job made, None before it did. Raises RegistryUnavailable."""
    return next((version for version in center.list() if version.draft.job == job), None)


def _work(config: dict[str, Any]) -> None:
    from training.base_worker import work  # TensorFlow again: this runs in Ray Train's worker

    work(config["plan"])
