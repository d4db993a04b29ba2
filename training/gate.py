"""The gate between training and serving: examines each new version and lets it serve, or not.

It judges when it is asked to; the registry says which versions wait. So a request that comes twice does nothing, and a
version whose announcement was lost is found at the next start.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from rtrec_ray.errors import ModelRejected, ServerUnavailable
from rtrec_ray.notification.base import MODEL, MODEL_GENERATED, VALIDATION_REQUESTED, EventFilter, NotificationStore
from rtrec_ray.notification.listener import Listener
from rtrec_ray.registry.base import ModelCenter, ModelVersion, fallen
from rtrec_ray.registry.changes import ChangeBook
from rtrec_ray.registry.lifecycle import LifeCycle
from training.dataset import encode
from training.heldout import HeldOutRows
from training.options import Connections, GateOptions
from training.patience import patiently
from training.publish import announce
from training.sampling import importance, negative_rates
from training.served import ServedModel, load_served
from training.validate import Exam, Verdict, judge

__all__ = ["ValidationGate"]

log = logging.getLogger(__name__)

_POLL_S = 1.0


class ValidationGate:
    """Runs in one process. `run` returns after `stop`, which any thread may call."""

    def __init__(self, options: GateOptions, connections: Connections) -> None:
        self._options = options
        self._connections = connections
        self._stopped = threading.Event()
        self._events: NotificationStore = connections.events()
        self._center: ModelCenter | None = None
        self._changes: ChangeBook | None = None
        self._held_out: HeldOutRows | None = None
        self._served: dict[str, ServedModel] = {}  # the champion, so that it is not loaded for each rival

    def run(self) -> None:
        """Judge versions, oldest first, whenever asked to, until stopped; those that wait at the start too."""
        listener = Listener(
            self._events, start=self._options.cursor, wanted=EventFilter(key=MODEL, type=VALIDATION_REQUESTED)
        )
        try:
            patiently(self._announce_unannounced, until=self._stopped)
            patiently(self._judge_waiting, until=self._stopped)
            while not self._stopped.is_set():
                for event in listener.poll(_POLL_S):
                    # One request stands for all before it, where a paused workflow held them back.
                    patiently(self._judge_waiting, until=self._stopped)
                    patiently(partial(listener.ack, event.offset), until=self._stopped)
                    if self._stopped.is_set():
                        break
        except ServerUnavailable:
            if not self._stopped.is_set():
                raise
        finally:
            listener.close()
            self.close()

    def close(self) -> None:
        """Give back connections; `run` does so at its end."""
        self._events.close()
        if self._changes is not None:
            self._changes.close()

    def stop(self) -> None:
        """End `run` after the version it is at."""
        self._stopped.set()

    def judge(self, number: str) -> ModelVersion | None:
        """Examine one version and say so by an event; answers it as it is then, None when there is no such version.

        Raises StoreUnavailable, RegistryUnavailable.
        """
        life = self._life_cycle()
        life.notice()  # what a crash cut off is finished first, so that the registry's word is the last one
        version = self._reach_center().get(number)
        if version is None:
            log.warning("version_unknown", extra={"version": number})
            return None
        if version.status != "generated":
            return version
        return self._decide(life, version, self._examine(version))

    def _examine(self, version: ModelVersion) -> Verdict:
        center = self._reach_center()
        champion = center.champion()
        if champion is not None and version.draft.kind == "increment" and champion.root != version.root:
            reason = f"its base {version.root} is no longer the champion's, {champion.root}"
            return Verdict(reasons=(reason,), metrics={})
        if (ancestor := fallen(center, version.draft.parent)) is not None:
            return Verdict(reasons=(f"it stands on {ancestor.version}, which was rolled back",), metrics={})
        try:
            return judge(self._sit_exam(version, champion), self._options)
        except ModelRejected as error:
            return Verdict(reasons=(error.message,), metrics={})

    def _sit_exam(self, version: ModelVersion, champion: ModelVersion | None) -> Exam:
        rows = self._rows()
        candidate = self._load(version.version)
        return Exam(
            label=rows["label"].to_numpy(),
            request=rows["request_id"].rank("dense").to_numpy(),
            candidate=_scores(candidate, rows),
            champion=None if champion is None else self._champion_scores(champion, rows),
            base_rate=candidate.card.base_rate,
            weight=importance(rows["label"].to_numpy(), negative_rates(rows)),
        )

    def _champion_scores(self, champion: ModelVersion, rows: pl.DataFrame) -> np.ndarray | None:
        try:
            return _scores(self._load_champion(champion.version), rows)
        except ModelRejected as error:
            # Its fault is not the candidate's, which is then judged against the constant rate alone.
            log.warning("champion_unusable", extra={"version": champion.version, "cause": error.message})
            return None

    def _decide(self, life: LifeCycle, version: ModelVersion, verdict: Verdict) -> ModelVersion:
        self._reach_center().log_metrics(version.run_id, verdict.metrics, step=version.draft.to_seq)
        context, sender = {"metrics": verdict.metrics}, self._options.cursor
        if verdict.accepted:
            decided = life.choose(version.version, sender=sender, context=context)
        else:
            decided = life.reject(version.version, sender=sender, reason="; ".join(verdict.reasons), context=context)
        log.info("version_judged", extra={"version": version.version, "reasons": list(verdict.reasons)})
        return decided

    def _announce_unannounced(self) -> None:
        announced = {event.value for event in self._events.list(EventFilter(key=MODEL, type=MODEL_GENERATED))}
        for version in self._waiting():
            if version.version not in announced:
                announce(self._connections, version)

    def _judge_waiting(self) -> None:
        for version in self._waiting():
            if not self._stopped.is_set():
                self.judge(version.version)

    def _waiting(self) -> list[ModelVersion]:
        """Oldest first."""
        return [version for version in reversed(self._reach_center().list()) if version.status == "generated"]

    def _life_cycle(self) -> LifeCycle:
        if self._changes is None:
            self._changes = self._connections.model_changes()
        return LifeCycle(self._reach_center(), self._changes)

    def _rows(self) -> pl.DataFrame:
        store = self._connections.samples()
        if self._held_out is None:
            self._held_out = HeldOutRows(store, percent=self._options.held_out_percent, max_rows=self._options.max_rows)
        return self._held_out.upto(store.high_water())

    def _reach_center(self) -> ModelCenter:
        if self._center is None:
            self._center = self._connections.center()
        return self._center

    def _load_champion(self, number: str) -> ServedModel:
        if number not in self._served:
            self._served = {number: self._load(number)}
        return self._served[number]

    def _load(self, number: str) -> ServedModel:
        with TemporaryDirectory(prefix="rtrec-gate-") as folder:
            return load_served(self._reach_center().download(number, Path(folder)))


def _scores(model: ServedModel, rows: pl.DataFrame) -> np.ndarray:
    return model.score(encode(rows, model.card.inputs, held_out_percent=0).columns)
