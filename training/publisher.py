"""Versions and metrics on their way to the model center, in a thread of their own: training goes on meanwhile."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from rtrec_ray.errors import ModelRejected, ServerUnavailable
from rtrec_ray.registry.base import Draft, ModelVersion
from rtrec_ray.stores.changes.log import lsn_text
from rtrec_ray.stores.training import ProgressPoint
from training.chain import Chain
from training.desk import Desk
from training.loop import State
from training.options import IncrementalOptions
from training.patience import patiently
from training.publish import Exporter, announce, publish

__all__ = ["Publisher"]

log = logging.getLogger(__name__)


class Publisher:
    """At most one version is on its way; the next begins where it ended. `epoch`: of the run's start, from the book."""

    def __init__(self, options: IncrementalOptions, desk: Desk, *, epoch: int) -> None:
        self._options = options
        self._desk = desk
        self._job = f"{options.run}-{epoch}"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._version: Future[ModelVersion | None] | None = None
        self.mlflow_run: str | None = None

    @property
    def busy(self) -> bool:
        """Whether a version is on its way, or arrived and was not yet taken."""
        return self._version is not None

    def send(self, chain: Chain) -> None:
        """Publish the chain as it is now, and announce it."""
        assert self._version is None
        self._version = self._thread.submit(self._store, chain.exporter, chain.learner.state(), self._draft(chain))

    def arrived(self, *, patient: bool = False) -> Future[ModelVersion | None] | None:
        """The sent version if it is done (`patient`: wait for that); its result is None if it could not be stored."""
        sent = self._version
        if sent is not None and patient:
            wait([sent])
        if sent is None or not sent.done():
            return None
        self._version = None
        return sent

    def log_point(self, point: ProgressPoint) -> None:
        """Add a point to the run's metrics; the book has it already, so one that is lost here is no harm."""
        self._thread.submit(self._log_point, point)

    def close(self) -> None:
        """End the run's metrics and the thread, after all that was given to it."""
        self._thread.submit(self._close_run)
        self._thread.shutdown(wait=True)

    def _draft(self, chain: Chain) -> Draft:
        return Draft(
            kind="increment",
            model=chain.definition.family,
            from_seq=chain.parent.draft.to_seq + 1,
            to_seq=chain.position,
            to_lsn=chain.lsn,
            trained_to_ms=chain.trained_to_ms,
            created_ms=self._desk.clock.now_ms(),
            parent=chain.parent.version,
            base=chain.root,
            job=self._job,
            definitions=chain.exporter.definition.named(self._options.definitions),
            parameters=_parameters(chain),
            metrics={"rows_trained": float(chain.rows_trained), "steps_left_out": float(chain.steps_left_out)},
        )

    def _store(self, exporter: Exporter, state: State, draft: Draft) -> ModelVersion | None:
        """Log a version, then announce it, with patience: a version that nobody hears of would never be judged."""
        try:
            version = publish(self._desk.center, exporter, state, draft)
        except (ServerUnavailable, ModelRejected) as error:
            log.warning("publish_failed", extra={"cause": error.message, "to_seq": draft.to_seq})
            return None
        patiently(lambda: announce(self._desk.connections, version))
        log.info("increment_published", extra={"version": version.version, "to_seq": draft.to_seq})
        return version

    def _log_point(self, point: ProgressPoint) -> None:
        try:
            if self.mlflow_run is None:
                self.mlflow_run = self._open_run()
            self._desk.center.log_metrics(self.mlflow_run, _metrics(point), step=point.commit_seq)
        except ServerUnavailable as error:
            log.warning("metrics_not_logged", extra={"cause": error.message})

    def _open_run(self) -> str:
        # A worker that was started again goes on in the run of the one before.
        known = self._desk.book.runs().get(self._options.run)
        if known is not None and known.beat.mlflow_run is not None:
            return known.beat.mlflow_run
        parameters = {"publish_every_s": str(self._options.publish_every_s)}
        return self._desk.center.open_run(self._job, parameters=parameters)

    def _close_run(self) -> None:
        if self.mlflow_run is not None:
            with suppress(ServerUnavailable):  # it then looks as if it went on, which harms nobody
                self._desk.center.close_run(self.mlflow_run)


def _parameters(chain: Chain) -> dict[str, str]:
    lineage = {"family": chain.definition.family, "base": chain.root, "parent": chain.parent.version}
    place = {"commit_seq": str(chain.position)} | ({} if chain.lsn is None else {"lsn": lsn_text(chain.lsn)})
    return {**lineage, **place}


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
