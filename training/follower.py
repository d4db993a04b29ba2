"""The incremental run without Ray: follows the ledger, scores each sample, learns from it, publishes versions.

It keeps nothing that it cannot find again: after a crash it goes on from the last version of its chain and that
version's place in the change log, so no sample is in a version twice, and none is left out. Its slot is acknowledged
no further than that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
import polars as pl
import tensorflow as tf

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import ModelRejected, ServerUnavailable
from rtrec_ray.notification.base import (
    CHANGE_LOG,
    CHANGE_LOG_FELL_BACK,
    INCREMENTS_REQUESTED,
    MODEL,
    EventFilter,
    NewEvent,
)
from rtrec_ray.notification.listener import NOW, Listener
from rtrec_ray.registry.base import ModelVersion, fallen
from rtrec_ray.stores.changes.log import Changes, LogPlace
from rtrec_ray.stores.training import Beat, RunState
from training.chain import Chain, begin_chain, newest_of_chain
from training.dataset import COLUMNS, SampleBatch, encode
from training.desk import Desk
from training.lockstep import ALONE, Lockstep, Turn
from training.options import IncrementalOptions
from training.patience import patiently
from training.progress import ProgressWindow
from training.publisher import Publisher

__all__ = ["Follower"]

log = logging.getLogger(__name__)

_PUBLISH_AGAIN_S = 5.0  # after a version could not be stored


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
        self._arrived: Changes | None = None
        self._high_water = 0
        self._fallbacks_told = 0
        self._requests: Listener | None = None
        self._pause = threading.Event()
        self._due: dict[str, float] = {}
        self._publisher = Publisher(options, desk, epoch=epoch)

    def run(self) -> None:
        """Follow the ledger until asked to stop. Raises LeaseLost when a newer start took over."""
        try:
            while self.turn():
                pass
        finally:
            self._publisher.close()

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
        if self._is_asked() or self._chain is None or self._is_due("check", self._options.check_every_s):
            version = self._other_chain()
            if version is not None:
                return Turn(action="begin", version=version.version)
        if self._chain is None:
            self._pause.wait(self._options.look_every_s)
            return Turn(action="wait")
        return self._next_rows(self._chain)

    def _is_asked(self) -> bool:
        """Whether somebody asked meanwhile to look which version to go on from."""
        if not self._is_due("look", self._options.look_every_s):
            return False
        if self._requests is None:
            wanted = EventFilter(key=MODEL, type=INCREMENTS_REQUESTED)
            self._requests = Listener(self._desk.events, start=NOW, wanted=wanted)
        return len(list(self._requests.poll(0.0))) > 0

    def _other_chain(self) -> ModelVersion | None:
        """Where to begin anew: a first champion, one on another base than ours, or when what ours stands on fell."""
        champion = self._desk.center.champion()
        if champion is None or (self._chain is not None and self._stands(self._chain, champion)):
            return None
        return newest_of_chain(self._desk.center)

    def _stands(self, chain: Chain, champion: ModelVersion) -> bool:
        return chain.root == champion.root and fallen(self._desk.center, chain.parent.version) is None

    def _next_rows(self, chain: Chain) -> Turn:
        if self._is_due("lag", 1.0):
            self._high_water = self._desk.samples.high_water()
        self._tell(chain)
        most = chain.definition.batch_rows * self._options.batches_per_turn
        try:
            self._arrived = self._desk.log.poll(max_rows=most, timeout_s=self._options.look_every_s)
        except ServerUnavailable:
            # A newer start may have taken the slot: ask the book before taking it back.
            self._due["beat"] = 0.0
            raise
        if self._arrived is None:
            return Turn(action="wait")
        return Turn(action="train", to_seq=self._arrived.place.commit_seq)

    def _begin(self, version: str) -> None:
        known = self._desk.center.get(version)
        if known is None:
            raise ModelRejected(f"model version {version} is gone")
        self._take_arrived(patient=True)
        self._chain = begin_chain(self._desk.center, known, strategy=self._strategy)
        if self._first:
            self._arrived = None
            self._desk.log.begin(LogPlace(commit_seq=self._chain.position, lsn=self._chain.lsn))
        self._window = ProgressWindow(rows=self._options.window_rows)
        self._due["publish"] = monotonic_s() + self._options.publish_every_s
        log.info("increments_begin", extra={"version": version, "commit_seq": self._chain.position})

    def _train(self, to_seq: int) -> None:
        """Take in what arrived, up to `to_seq`; goes on where it was when it failed half-way."""
        chain = self._chain
        assert chain is not None
        read = self._read(chain, to_seq)  # all at once: with small steps a query each would cost more than the steps
        while read is not None and chain.position < to_seq:
            # Cut by number, so that all workers have the same batches, also after a read was tried again.
            upto = min(chain.position + chain.definition.batch_rows, to_seq)
            first, last = np.searchsorted(read.commit_seq, (chain.position, upto), side="right")
            if last > first:
                self._learn(chain, read[first:last])
            chain.position = upto
        chain.position = to_seq
        if self._arrived is not None:
            chain.lsn = self._arrived.place.lsn

    def _read(self, chain: Chain, to_seq: int) -> SampleBatch | None:
        if self._arrived is not None:
            rows = [self._arrived.rows]
        else:
            # Another worker than the first: what the log gave that one is readable by number.
            rows = list(self._desk.samples.scan(from_seq_exclusive=chain.position, to_seq=to_seq, columns=COLUMNS))
        if not rows:
            return None
        percent = self._options.held_out_percent
        return encode(pl.concat(rows), chain.definition.model_inputs, held_out_percent=percent)

    def _learn(self, chain: Chain, batch: SampleBatch) -> None:
        # Every worker reads the same rows and takes each n-th: equal shares, the rest filled up with weight zero.
        mine = batch[self._lockstep.rank :: self._lockstep.workers]
        result = chain.learner.train(mine.columns, mine.label, (~mine.held_out).astype(np.float32), mine.negative_rate)
        chain.steps_left_out += not result.finite
        if self._first:
            # A correction is a lesson, but no exam: the model has seen that impression before.
            base = chain.base.score(mine.columns)
            new = mine.first
            self._window.add(
                label=mine.label[new], own=result.probability[new], base=base[new], weight=mine.importance[new]
            )
        chain.took(batch)

    def _tell(self, chain: Chain) -> None:
        """Points of progress and new versions, when their time has come; and what became of the log."""
        self._tell_fallbacks(chain)
        if not chain.moved():
            # All that was delivered is in a stored version; what passed since had nothing for this run.
            self._desk.log.acknowledge(self._desk.log.place)
        if self._is_due("progress", self._options.progress_every_s):
            self._put_point(chain)
        self._take_arrived()
        if not self._publisher.busy and chain.moved() and self._is_due("publish", self._options.publish_every_s):
            self._publisher.send(chain)

    def _tell_fallbacks(self, chain: Chain) -> None:
        health = self._desk.log.health
        if health.fallbacks > self._fallbacks_told:
            context = {"reason": health.reason, "commit_seq": chain.position, "fallbacks": health.fallbacks}
            name = self._options.run
            self._desk.events.send(
                NewEvent(key=CHANGE_LOG, value=name, type=CHANGE_LOG_FELL_BACK, sender=name, context=context)
            )
            self._fallbacks_told = health.fallbacks

    def _put_point(self, chain: Chain) -> None:
        if not self._window.fresh:
            return
        point = self._window.point(
            commit_seq=chain.position,
            event_time_ms=chain.trained_to_ms,
            lag_rows=self._lag(chain),
            base_version=chain.root,
        )
        self._desk.book.put(self._options.run, point)
        self._window.taken()
        self._publisher.log_point(point)

    def _take_arrived(self, *, patient: bool = False) -> None:
        """The version that arrived becomes the parent of the next; one that could not be stored is sent again soon."""
        sent = self._publisher.arrived(patient=patient)
        if sent is None:
            return
        version = sent.result()
        if version is None:
            self._due["publish"] = monotonic_s() + min(_PUBLISH_AGAIN_S, self._options.publish_every_s)
        elif self._chain is not None and version.root == self._chain.root:
            self._chain.parent = version
            self._desk.log.acknowledge(LogPlace(commit_seq=version.draft.to_seq, lsn=version.draft.to_lsn))

    def _stop(self) -> None:
        if not self._first:
            return
        self._take_arrived(patient=True)
        chain = self._chain
        if chain is not None:
            patiently(lambda: self._put_point(chain))
            patiently(lambda: self._tell_fallbacks(chain))
            if chain.moved():
                self._publisher.send(chain)
                self._take_arrived(patient=True)
        patiently(lambda: self._beat(state="stopped"))

    def _beat(self, *, state: RunState | None = None) -> bool:
        chain = self._chain
        if chain is None:
            beat = Beat(state=state or "waiting", message="" if state else "no model version serves yet")
        else:
            health = self._desk.log.health
            beat = Beat(
                state=state or "running",
                commit_seq=chain.position,
                event_time_ms=chain.trained_to_ms,
                lag_rows=self._lag(chain),
                rows_trained=chain.rows_trained,
                version=chain.parent.version,
                base_version=chain.root,
                mlflow_run=self._publisher.mlflow_run,
                lsn=chain.parent.draft.to_lsn,
                followed_by=health.followed_by,
                fallbacks=health.fallbacks,
                fallback_reason=health.reason,
            )
        return self._desk.book.beat(self._options.run, self._epoch, beat)

    def _lag(self, chain: Chain) -> int:
        """Revisions still ahead, as of a second ago."""
        return max(0, self._high_water - chain.position)

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = monotonic_s()
        if now_s < self._due.get(what, 0.0):
            return False
        self._due[what] = now_s + every_s
        return True
