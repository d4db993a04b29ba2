"""The base model: every sample up to now, read by Ray Data, learnt by Ray Train, logged as a version."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import ray.data
from ray import train
from ray.data import Dataset
from ray.data.aggregate import Count, Max, Sum

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import LeaseLost, StoreUnavailable, TrainingImpossible
from rtrec_ray.registry.base import Draft, ModelVersion
from rtrec_ray.stores.training import Beat
from training import launch
from training.dataset import COLUMNS, SampleBatch, encode, held_out, seq_ranges
from training.definition import ModelDefinition
from training.heldout import HeldOutRows
from training.loop import Learner
from training.metrics import evaluate
from training.options import BaseOptions, Connections, GateOptions
from training.publish import Exporter, announce, publish

__all__ = ["train_base"]

log = logging.getLogger(__name__)

_PREFIX = "x."
_SHUFFLE_BATCHES = 16  # rows drawn from at random, in batches: samples of one moment resemble each other


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """What the workers are told. `base_rate`, `rows`, `positives`: of the samples to train on, up to `to_seq`."""

    options: BaseOptions
    connections: Connections
    job: str
    epoch: int
    to_seq: int
    trained_to_ms: int
    rows: int
    positives: int

    @property
    def base_rate(self) -> float:
        """The share of clicks."""
        return self.positives / self.rows


def train_base(options: BaseOptions, connections: Connections) -> ModelVersion:
    """Train a base model on the newest revision of every sample, log it and announce it (MODEL_GENERATED).

    Needs a Ray connection. Raises TrainingImpossible without samples or clicks, StoreUnavailable, RegistryUnavailable.
    """
    job = options.job or f"base-{uuid.uuid4().hex[:12]}"
    book = connections.book()
    epoch = book.open(options.run)
    try:
        plan, samples = _prepare(options, connections, job=job, epoch=epoch)
        report = launch.fit(_work, plan=plan, name=job, ray=options.ray, datasets={"train": samples})
        version = connections.center().get(report["version"])
        assert version is not None
        book.beat(options.run, epoch, _beat(plan, state="finished", version=version.version))
    except BaseException as error:
        with suppress(StoreUnavailable, LeaseLost):  # the error that ended the run is the one to tell
            book.beat(options.run, epoch, Beat(state="failed", message=str(error)[:500]))
        raise
    finally:
        book.close()
    return version


def _prepare(options: BaseOptions, connections: Connections, *, job: str, epoch: int) -> tuple[BasePlan, Dataset]:
    store = connections.samples()
    to_seq = store.high_water()
    if to_seq == 0:
        raise TrainingImpossible(
            "there are no samples yet", mend="send events, or `rtrec replay` a log, and wait a minute"
        )
    samples = _dataset(options, connections, to_seq=to_seq).materialize()
    known = samples.aggregate(Count(), Sum("label"), Max("event_time_ms")) if samples.count() else {}
    rows, positives = int(known.get("count()", 0)), int(known.get("sum(label)", 0))
    if not 0 < positives < rows:
        raise TrainingImpossible(
            f"{rows} samples with {positives} clicks teach nothing: a model needs both kinds",
            mend="`rtrec samples stats` shows how many there are",
        )
    plan = BasePlan(
        options=options,
        connections=connections,
        job=job,
        epoch=epoch,
        to_seq=to_seq,
        trained_to_ms=int(known["max(event_time_ms)"]),
        rows=rows,
        positives=positives,
    )
    log.info("base_samples_read", extra={"rows": rows, "positives": positives, "to_seq": to_seq})
    return plan, samples


def _dataset(options: BaseOptions, connections: Connections, *, to_seq: int) -> Dataset:
    """The samples to train on as model columns, one block or more per range of the ledger."""
    ranges = seq_ranges(to_seq, rows=options.read_rows)
    reader = LedgerReader(
        connections=connections,
        definition=options.definition,
        held_out_percent=options.held_out_percent,
        to_seq=to_seq,
    )
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    spans = ray.data.from_items(
        [{"after": after, "upto": upto} for after, upto in ranges], override_num_blocks=len(ranges)
    )
    return spans.map_batches(reader, batch_size=1, batch_format="numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReader:
    """A Ray Data task: a range of the ledger in, columns of trainable samples out."""

    connections: Connections
    definition: ModelDefinition
    held_out_percent: int
    to_seq: int

    def __call__(self, spans: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Read each span (after, upto]; held-out requests are left out."""
        store = self.connections.samples()
        for span in zip(spans["after"].tolist(), spans["upto"].tolist(), strict=True):
            for frame in store.current(to_seq=self.to_seq, span=span, columns=COLUMNS):
                apart = held_out(frame["request_id"].to_list(), percent=self.held_out_percent)
                mine = frame.filter(pl.Series(~apart))
                if mine.height:
                    yield _block(encode(mine, self.definition.model_inputs, held_out_percent=self.held_out_percent))


def _block(batch: SampleBatch) -> dict[str, Any]:
    columns = {f"{_PREFIX}{name}": column for name, column in batch.columns.items()}
    return {**columns, "label": batch.label, "event_time_ms": batch.event_time_ms}


def _work(config: dict[str, Any]) -> None:
    """One worker of Ray Train."""
    plan: BasePlan = config["plan"]
    rank, workers = launch.world()
    learner = Learner(plan.options.definition, base_rate=plan.base_rate, strategy=launch.strategy(workers))
    losses = [_one_pass(plan, learner, number, rank) for number in range(plan.options.definition.epochs)]
    if rank > 0:
        train.report({})
        return
    version = _publish(plan, learner, losses)
    train.report({"version": version.version})


def _one_pass(plan: BasePlan, learner: Learner, number: int, rank: int) -> float:
    """Train on every sample once; answers the mean log loss of this worker's rows, each scored before it was learnt."""
    definition, seen, total = plan.options.definition, 0, 0.0
    beat_due_s = monotonic_s()
    for block in train.get_dataset_shard("train").iter_batches(
        batch_size=learner.share,
        batch_format="numpy",
        local_shuffle_buffer_size=learner.share * _SHUFFLE_BATCHES,
        local_shuffle_seed=definition.seed + number,
    ):
        columns = {name.removeprefix(_PREFIX): column for name, column in block.items() if name.startswith(_PREFIX)}
        result = learner.train(columns, block["label"], np.ones(len(block["label"])))
        total += (evaluate(block["label"], result.probability).log_loss or 0.0) * len(block["label"])
        seen += len(block["label"])
        if rank == 0 and monotonic_s() >= beat_due_s:
            done = plan.rows * number + seen * plan.options.ray.workers
            _put_beat(plan, _beat(plan, state="running", rows=done))
            beat_due_s = monotonic_s() + 2.0
    return total / max(seen, 1)


def _publish(plan: BasePlan, learner: Learner, losses: list[float]) -> ModelVersion:
    """Log the version and announce it, once per job, however often its worker is started."""
    center, events = plan.connections.center(), plan.connections.events()
    done = [version for version in center.list() if version.draft.job == plan.job]
    version = done[0] if done else None
    if version is None:
        definition = plan.options.definition
        draft = Draft(
            kind="base",
            model=definition.family,
            from_seq=1,
            to_seq=plan.to_seq,
            trained_to_ms=plan.trained_to_ms,
            created_ms=plan.connections.clock.now_ms(),
            job=plan.job,
            definitions=definition.named(plan.options.definitions),
            parameters=_parameters(plan),
            metrics=_metrics(plan, learner, losses),
        )
        version = publish(center, Exporter(definition, base_rate=plan.base_rate), learner.state(), draft)
    announce(events, version)
    events.close()
    log.info("base_published", extra={"version": version.version, "job": plan.job})
    return version


def _metrics(plan: BasePlan, learner: Learner, losses: list[float]) -> dict[str, float]:
    limit = GateOptions().max_rows
    rows = HeldOutRows(plan.connections.samples(), percent=plan.options.held_out_percent, max_rows=limit).upto(
        plan.to_seq
    )
    exam = encode(rows, plan.options.definition.model_inputs, held_out_percent=0)
    found = evaluate(exam.label, learner.score(exam.columns)).numbers("held_out_") if len(exam) else {}
    passes = {f"train_log_loss_pass_{number}": loss for number, loss in enumerate(losses, start=1)}
    return {**found, **passes, "train_rows": float(plan.rows), "train_positives": float(plan.positives)}


def _parameters(plan: BasePlan) -> dict[str, str]:
    definition = plan.options.definition
    own = definition.logistic if definition.family == "logistic" else definition.dcn
    shared = {"family": definition.family, "seed": definition.seed, "epochs": definition.epochs}
    sizes = {"batch_rows": definition.batch_rows, "workers": plan.options.ray.workers, "inputs": len(definition.inputs)}
    hyper = {name: getattr(own, name) for name in own.__struct_fields__}
    return {name: str(value) for name, value in {**shared, **sizes, "base_rate": plan.base_rate, **hyper}.items()}


def _beat(plan: BasePlan, *, state: Any, rows: int | None = None, version: str | None = None) -> Beat:
    return Beat(
        state=state,
        commit_seq=plan.to_seq,
        event_time_ms=plan.trained_to_ms,
        rows_trained=plan.rows * plan.options.definition.epochs if rows is None else rows,
        version=version,
        base_version=version,
    )


def _put_beat(plan: BasePlan, beat: Beat) -> None:
    book = plan.connections.book()
    try:
        book.beat(plan.options.run, plan.epoch, beat)
    except StoreUnavailable as error:
        log.warning("beat_missed", extra={"run": plan.options.run, "cause": error.message})
    finally:
        book.close()
