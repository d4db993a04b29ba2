"""What a worker of a base run does: learn every sample some times over, then log and announce the version."""

from __future__ import annotations

import logging

import numpy as np
from ray import train

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.registry.base import Draft
from rtrec_ray.stores.samples.place import lsn_text
from rtrec_ray.stores.training import Beat
from training import launch
from training.dataset import SampleBatch, encode
from training.heldout import HeldOutRows
from training.loop import Learner
from training.metrics import evaluate, log_losses
from training.options import GateOptions
from training.patience import patiently
from training.plan import BasePlan, version_of
from training.publish import Exporter, announce, publish
from training.reading import PREFIX
from training.sampling import importance

__all__ = ["work"]

log = logging.getLogger(__name__)

_PATIENCE_S = 120.0
_SHUFFLE_BATCHES = 16  # rows drawn from at random, in batches: samples of one moment resemble each other


def work(plan: BasePlan) -> None:
    """One worker of Ray Train."""
    rank, workers = launch.world()
    learner = Learner(plan.options.definition, base_rate=plan.base_rate, strategy=launch.strategy(workers))
    losses = [_one_pass(plan, learner, number, rank) for number in range(plan.options.definition.epochs)]
    if rank == 0:
        # Minutes of work are at stake, so a server that is away now is waited for.
        patiently(lambda: _publish(plan, learner, losses), give_up_s=_PATIENCE_S)


def _one_pass(plan: BasePlan, learner: Learner, number: int, rank: int) -> float:
    """Train on every sample once; answers the mean log loss of this worker's rows, each scored before it was learnt."""
    definition, seen, total, weight = plan.options.definition, 0, 0.0, 0.0
    beat_due_s = monotonic_s()
    for block in train.get_dataset_shard("train").iter_batches(
        batch_size=learner.share,
        batch_format="numpy",
        local_shuffle_buffer_size=learner.share * _SHUFFLE_BATCHES,
        local_shuffle_seed=definition.seed + number,
    ):
        columns = {name.removeprefix(PREFIX): column for name, column in block.items() if name.startswith(PREFIX)}
        label, rate = block["label"], block["negative_rate"]
        result = learner.train(columns, label, np.ones(len(label)), rate)
        counted = importance(label, rate)
        total += float((log_losses(label, result.probability) * counted).sum())
        weight += float(counted.sum())
        seen += len(label)
        if rank == 0 and monotonic_s() >= beat_due_s:
            done = plan.totals.rows * number + seen * plan.options.ray.workers
            _put_beat(plan, plan.beat(state="running", rows=done))
            beat_due_s = monotonic_s() + 2.0
    return total / max(weight, 1.0)


def _publish(plan: BasePlan, learner: Learner, losses: list[float]) -> None:
    """Log the version and announce it, once per job, however often its worker is started."""
    center = plan.connections.center()
    version = version_of(center, plan.job)
    if version is None:
        definition = plan.options.definition
        draft = Draft(
            kind="base",
            model=definition.family,
            from_seq=1,
            to_seq=plan.to_seq,
            trained_to_ms=plan.totals.newest_ms,
            created_ms=plan.connections.clock.now_ms(),
            job=plan.job,
            definitions=definition.named(plan.options.definitions),
            parameters=_parameters(plan),
            metrics=_metrics(plan, learner, losses),
        )
        version = publish(center, Exporter(definition, base_rate=plan.base_rate), learner.state(), draft)
    announce(plan.connections, version)
    log.info("base_published", extra={"version": version.version, "job": plan.job})


def _metrics(plan: BasePlan, learner: Learner, losses: list[float]) -> dict[str, float]:
    limit = GateOptions().max_rows
    rows = HeldOutRows(plan.connections.samples(), percent=plan.options.held_out_percent, max_rows=limit).upto(
        plan.to_seq
    )
    exam = encode(rows, plan.options.definition.model_inputs, held_out_percent=0)
    found = _evaluated(exam, learner) if len(exam) else {}
    passes = {f"train_log_loss_pass_{number}": loss for number, loss in enumerate(losses, start=1)}
    return {**found, **passes, "train_rows": float(plan.totals.rows), "train_positives": float(plan.totals.positives)}


def _evaluated(exam: SampleBatch, learner: Learner) -> dict[str, float]:
    return evaluate(exam.label, learner.score(exam.columns), exam.importance).numbers("held_out_")


def _parameters(plan: BasePlan) -> dict[str, str]:
    definition = plan.options.definition
    own = definition.logistic if definition.family == "logistic" else definition.adam
    shared = {"family": definition.family, "seed": definition.seed, "epochs": definition.epochs}
    sizes = {"batch_rows": definition.batch_rows, "workers": plan.options.ray.workers, "inputs": len(definition.inputs)}
    hyper = {name: getattr(own, name) for name in own.__struct_fields__}
    # Told, not gone on from: who follows the ledger from here has acknowledged nothing to the server yet.
    place = {} if plan.end.lsn is None else {"lsn": lsn_text(plan.end.lsn)}
    found = {**shared, **sizes, "base_rate": plan.base_rate, **hyper, **place}
    return {name: str(value) for name, value in found.items()}


def _put_beat(plan: BasePlan, beat: Beat) -> None:
    book = plan.connections.book()
    try:
        book.beat(plan.options.run, plan.epoch, beat)
    except StoreUnavailable as error:
        log.warning("beat_missed", extra={"run": plan.options.run, "cause": error.message})
    finally:
        book.close()
