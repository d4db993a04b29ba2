"""The incremental run without Ray: follows the ledger, scores each sample, learns from it, publishes versions.

It keeps nothing that it cannot find again: after a crash it goes on from the last version of its chain and that
version's place in the ledger, so no sample is in a version twice, and none is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import polars as pl
import tensorflow as tf

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.errors import ModelRejected, ServerUnavailable
from rtrec_ray.notification.base import NotificationStore
from rtrec_ray.registry.base import Draft, ModelCenter, ModelVersion
from rtrec_ray.stores.samples import SampleStore
from rtrec_ray.stores.training import Beat, ProgressPoint, RunState, TrainingBook
from training.chain import Chain, begin_chain, newest_of_chain
from training.dataset import COLUMNS, SampleBatch, encode
from training.ledger import Bell
from training.loop import State
from training.options import IncrementalOptions
from training.patience import patiently
from training.progress import ProgressWindow
from training.publish import Exporter, announce, publish

__all__ = ["ALONE", "Desk", "Follower", "Lockstep", "Turn"]

log = logging.getLogger(__name__)

_PUBLISH_AGAIN_S = 5.0  # after a version could not be stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The servers of a run, connected."""

    samples: SampleStore
    bell: Bell
    center: ModelCenter
    events: NotificationStore
    book: TrainingBook
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What all workers do next: begin from `version`, train up to `to_seq`, wait, or stop."""

    action: Literal["begin", "train", "wait", "stop"]
    version: str = ""
    to_seq: int = 0


class Lockstep(Protocol):
    """How the workers agree: the first decides, and all get its answer."""

    @property
    def rank(self) -> int:
        """Of this worker, from 0."""
        ...

    @property
    def workers(self) -> int:
        """How many there are."""
        ...

    def agree(self, turn: Turn | None, /) -> Turn:
        """The first worker's turn; the others give None."""
        ...


@dataclass(frozen=True, slots=True)
class _Alone:
    rank: int = 0
    workers: int = 1

    def agree(self, turn: Turn | None, /) -> Turn:
        assert turn is not None
        return turn


ALONE: Lockstep = _Alone()


class Follower:
    """One worker of the run; `run` returns when it was asked to stop. `epoch`: of the run's start, from the book."""

    def __init__(
        self,
        options: IncrementalOptions,
        desk: Desk,
        *,
        epoch: int,
        lockstep: Lockstep = ALONE,
        strategy: Callable[[], tf.distribute.Strategy | None] = lambda: None,
    ) -> None:
        self._options = options
        self._desk = desk
        self._epoch = epoch
        self._lockstep = lockstep
        self._strategy = strategy
        self._first = lockstep.rank == 0
        self._chain: Chain | None = None
        self._window = ProgressWindow(rows=options.window_rows)
        self._lag_rows = 0
        self._due: dict[str, float] = {}
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._publishing: Future[ModelVersion | None] | None = None
        self._mlflow_run: str | None = None

    def run(self) -> None:
        """Follow the ledger until asked to stop. Raises LeaseLost when a newer start took over."""
        try:
            while self.turn():
                pass
        finally:
            self._background.shutdown(wait=True)

    def turn(self) -> bool:
        """One turn; False after the last."""
        turn = self._lockstep.agree(patiently(self._decide) if self._first else None)
        if turn.action == "begin":
            patiently(lambda: self._begin(turn.version))
        elif turn.action == "train":
            patiently(lambda: self._train(turn.to_seq))
        elif turn.action == "stop":
            self._stop()
        return turn.action != "stop"

    def _decide(self) -> Turn:
        if self._is_due("beat", 1.0) and self._beat():
            return Turn(action="stop")
        if self._chain is None or self._is_due("check", self._options.check_every_s):
            version = self._other_chain()
            if version is not None:
                return Turn(action="begin", version=version.version)
        if self._chain is None:
            self._desk.bell.wait(self._options.look_every_s)
            return Turn(action="wait")
        return self._next_rows(self._chain)

    def _other_chain(self) -> ModelVersion | None:
        """Where to begin anew: a first champion, or one on another base than ours."""
        champion = self._desk.center.champion()
        if champion is None or (self._chain is not None and self._chain.root == champion.root):
            return None
        return newest_of_chain(self._desk.center)

    def _next_rows(self, chain: Chain) -> Turn:
        high = self._desk.samples.high_water()
        self._lag_rows = high - chain.position
        self._tell(chain)
        if high > chain.position:
            most = chain.definition.batch_rows * self._options.batches_per_turn
            return Turn(action="train", to_seq=min(high, chain.position + most))
        self._desk.bell.wait(self._options.look_every_s)
        return Turn(action="wait")

    def _begin(self, version: str) -> None:
        known = self._desk.center.get(version)
        if known is None:
            raise ModelRejected(f"model version {version} is gone")
        self._settle()
        self._chain = begin_chain(self._desk.center, known, strategy=self._strategy)
        self._window = ProgressWindow(rows=self._options.window_rows)
        self._due["publish"] = monotonic_s() + self._options.publish_every_s
        log.info("increments_begin", extra={"version": version, "commit_seq": self._chain.position})

    def _train(self, to_seq: int) -> None:
        """Take in the ledger up to `to_seq`; goes on where it was when a read fails half-way."""
        chain = self._chain
        assert chain is not None
        while chain.position < to_seq:
            # Cut by number, so that all workers have the same batches, also after a read was tried again.
            upto = min(chain.position + chain.definition.batch_rows, to_seq)
            batch = self._read(chain, upto)
            if batch is not None:
                self._learn(chain, batch)
            chain.position = upto

    def _read(self, chain: Chain, upto: int) -> SampleBatch | None:
        rows = list(
            self._desk.samples.scan(
                from_seq_exclusive=chain.position, to_seq=upto, columns=COLUMNS, batch_rows=chain.definition.batch_rows
            )
        )
        if not rows:
            return None
        percent = self._options.held_out_percent
        return encode(pl.concat(rows), chain.definition.model_inputs, held_out_percent=percent)

    def _learn(self, chain: Chain, batch: SampleBatch) -> None:
        # Every worker reads the same rows and takes each n-th: equal shares, the rest filled up with weight zero.
        mine = batch[self._lockstep.rank :: self._lockstep.workers]
        result = chain.learner.train(mine.columns, mine.label, (~mine.held_out).astype(np.float32))
        chain.steps_left_out += not result.finite
        if self._first:
            # A correction is a lesson, but no exam: the model has seen that impression before.
            base = chain.base.score(mine.columns)
            self._window.add(label=mine.label[mine.first], own=result.probability[mine.first], base=base[mine.first])
        chain.took(batch)

    def _tell(self, chain: Chain) -> None:
        """Points of progress and new versions, when their time has come."""
        if self._is_due("progress", self._options.progress_every_s):
            self._put_point(chain)
        if self._published() and chain.moved() and self._is_due("publish", self._options.publish_every_s):
            self._publish(chain)

    def _put_point(self, chain: Chain) -> None:
        if not self._window.fresh:
            return
        point = self._window.point(
            commit_seq=chain.position,
            event_time_ms=chain.trained_to_ms,
            lag_rows=self._lag_rows,
            base_version=chain.root,
        )
        self._desk.book.put(self._options.run, point)
        self._window.taken()
        self._background.submit(self._log_point, point)

    def _publish(self, chain: Chain) -> None:
        draft = Draft(
            kind="increment",
            model=chain.definition.family,
            from_seq=chain.parent.draft.to_seq + 1,
            to_seq=chain.position,
            trained_to_ms=chain.trained_to_ms,
            created_ms=self._desk.clock.now_ms(),
            parent=chain.parent.version,
            base=chain.root,
            job=f"{self._options.run}-{self._epoch}",
            definitions=chain.definition.named(self._options.definitions),
            parameters={"family": chain.definition.family, "base": chain.root, "parent": chain.parent.version},
            metrics={"rows_trained": float(chain.rows_trained), "steps_left_out": float(chain.steps_left_out)},
        )
        self._publishing = self._background.submit(self._store, chain.exporter, chain.learner.state(), draft)

    def _store(self, exporter: Exporter, state: State, draft: Draft) -> ModelVersion | None:
        """Log a version, then announce it, with patience: a version that nobody hears of would never be judged."""
        try:
            version = publish(self._desk.center, exporter, state, draft)
        except (ServerUnavailable, ModelRejected) as error:
            log.warning("publish_failed", extra={"cause": error.message, "to_seq": draft.to_seq})
            return None
        patiently(lambda: announce(self._desk.events, version))
        log.info("increment_published", extra={"version": version.version, "to_seq": draft.to_seq})
        return version

    def _published(self) -> bool:
        """Whether no version is on its way; the one that arrived becomes the parent of the next."""
        if self._publishing is None:
            return True
        if not self._publishing.done():
            return False
        version = self._publishing.result()
        self._publishing = None
        if version is None:
            self._due["publish"] = monotonic_s() + min(_PUBLISH_AGAIN_S, self._options.publish_every_s)
        elif self._chain is not None and version.root == self._chain.root:
            self._chain.parent = version
        return True

    def _settle(self) -> None:
        """Wait for a version on its way."""
        if self._publishing is not None:
            wait([self._publishing])
            self._published()

    def _stop(self) -> None:
        if not self._first:
            return
        self._settle()
        chain = self._chain
        if chain is not None:
            patiently(lambda: self._put_point(chain))
            if chain.moved():
                self._publish(chain)
                self._settle()
        patiently(lambda: self._beat(state="stopped"))

    def _beat(self, *, state: RunState | None = None) -> bool:
        chain = self._chain
        if chain is None:
            beat = Beat(state=state or "waiting", message="" if state else "no model version serves yet")
        else:
            beat = Beat(
                state=state or "running",
                commit_seq=chain.position,
                event_time_ms=chain.trained_to_ms,
                lag_rows=self._lag_rows,
                rows_trained=chain.rows_trained,
                version=chain.parent.version,
                base_version=chain.root,
                mlflow_run=self._mlflow_run,
            )
        return self._desk.book.beat(self._options.run, self._epoch, beat)

    def _log_point(self, point: ProgressPoint) -> None:
        """The point in MLflow too; the book has it already, so one that is lost here is no harm."""
        try:
            if self._mlflow_run is None:
                self._mlflow_run = self._open_run()
            self._desk.center.log_metrics(self._mlflow_run, _metrics(point), step=point.commit_seq)
        except ServerUnavailable as error:
            log.warning("metrics_not_logged", extra={"cause": error.message})

    def _open_run(self) -> str:
        # A worker that was started again goes on in the run of the one before.
        known = self._desk.book.runs().get(self._options.run)
        if known is not None and known.beat.mlflow_run is not None:
            return known.beat.mlflow_run
        name = f"{self._options.run}-{self._epoch}"
        return self._desk.center.open_run(name, parameters={"publish_every_s": str(self._options.publish_every_s)})

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = monotonic_s()
        if now_s < self._due.get(what, 0.0):
            return False
        self._due[what] = now_s + every_s
        return True


def _metrics(point: ProgressPoint) -> dict[str, float]:
    named = {
        "progressive_log_loss": point.log_loss,
        "progressive_log_loss_base": point.base_log_loss,
        "progressive_auc": point.auc,
        "progressive_auc_base": point.base_auc,
        "progressive_calibration": point.calibration,
        "lag_rows": float(point.lag_rows),
    }
    return {name: value for name, value in named.items() if value is not None}
