"""The life of a model version: GENERATED → VALIDATED → DEPLOYED → DEPRECATED, or REJECTED with a reason.

Who changes a model version does it here: the change is made in MLflow and told by events exactly once, in one order for
all. What somebody changes in MLflow's own pages is noticed by looking, and told alike; of two changes between two looks
only the last one is seen.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final

from rtrec_ray.errors import ModelRejected, ServerUnavailable
from rtrec_ray.metadata.base import ModelLineage
from rtrec_ray.registry.base import Draft, ModelCenter, ModelVersion, Stage, earlier_champion
from rtrec_ray.registry.changes import Change, ChangeBook, NewChange

log = logging.getLogger(__name__)

MLFLOW: Final = "mlflow"
"""The sender of what was found done in MLflow."""


class LifeCycle:
    """Every method raises StoreUnavailable, RegistryUnavailable; what it began is then finished by the next one."""

    def __init__(self, center: ModelCenter, book: ChangeBook) -> None:
        self._center = center
        self._book = book
        self._marked: str | None = None

    def choose(
        self, version: str, *, sender: str, reason: str = "", context: Mapping[str, Any] | None = None
    ) -> ModelVersion:
        """Validated: let it serve from now on. Raises ModelRejected for an unknown number."""
        known = self._known(version)
        self._make(
            NewChange(change="champion", version=version, reason=reason, sender=sender, context=_of(known, context))
        )
        return self._known(version)

    def reject(
        self, version: str, *, sender: str, reason: str, context: Mapping[str, Any] | None = None
    ) -> ModelVersion:
        """It may not serve, for good. Raises ModelRejected for an unknown number."""
        known = self._known(version)
        self._make(
            NewChange(change="rejected", version=version, reason=reason, sender=sender, context=_of(known, context))
        )
        return self._known(version)

    def rollback(self, *, sender: str, reason: str) -> ModelVersion | None:
        """Reject the champion and go back to the version that served before it; None when there is none."""
        self.settle()
        earlier, champion = earlier_champion(self._center), self._center.champion()
        if earlier is None:
            return None
        back = NewChange(
            change="champion", version=earlier.version, reason=reason, sender=sender, context=_of(earlier, None)
        )
        bad = [] if champion is None else [_rejected(champion, sender=sender, reason=reason)]
        self._make(*bad, back)
        return self._known(earlier.version)

    def settle(self) -> int:
        """Finish what was begun and cut off; answers how many changes."""
        if self._book.next() is None:
            return 0
        with self._book.alone():
            return self._finish_all()

    def notice(self) -> bool:
        """Look whether the champion was changed in MLflow, and tell it; whether it was."""
        if self._book.next() is None and self._is_known(self._center.champion()):
            return False  # nothing to take a lock for
        with self._book.alone():
            self._finish_all()
            champion, known = self._center.champion(), self._book.champion()
            if self._is_known(champion):
                return False
            self._book.intend(_found(champion, known))
            self._finish_all()
        return True

    def mark_served(self) -> None:
        """Write into MLflow which version is deployed and which was, for its pages."""
        served = self._book.served(limit=2)
        if not served or served[-1].version == self._marked:
            return
        stages: tuple[Stage, Stage] = ("deployed", "deprecated")
        for each, stage in zip(reversed(served), stages, strict=False):
            known = self._center.get(each.version)
            if known is not None and known.status != "rejected":
                self._center.mark(each.version, stage)
        self._marked = served[-1].version

    def _is_known(self, champion: ModelVersion | None) -> bool:
        return (None if champion is None else champion.version) == self._book.champion()

    def _make(self, *wanted: NewChange) -> None:
        self._book.intend(*wanted)
        with self._book.alone():
            self._finish_all()

    def _finish_all(self) -> int:
        finished = 0
        while (change := self._book.next()) is not None:
            self._apply(change)
            self._book.finish(change)
            finished += 1
        return finished

    def _apply(self, change: Change) -> None:
        """Make it in MLflow; again, where it was made before a crash."""
        try:
            if change.change == "champion":
                self._center.set_champion(change.version)
                if any(each.version == change.version for each in self._book.served(limit=1)):
                    self._center.mark(change.version, "deployed")  # it serves already, and no replica will say so again
            elif change.change == "rejected":
                self._center.reject(change.version, reason=change.reason)
        except ModelRejected:
            # Deleted in MLflow meanwhile: the changes behind this one must not wait for ever.
            log.exception("model_change_without_version", extra={"version": change.version, "change": change.change})

    def _known(self, version: str) -> ModelVersion:
        found = self._center.get(version)
        if found is None:
            raise ModelRejected(f"there is no model version {version}", mend="`rtrec models list` shows what there is")
        return found


def generated(version: ModelVersion) -> NewChange:
    """The change by which a version came to be; of one version there is one."""
    draft = version.draft
    lineage = {"kind": draft.kind, "model": draft.model, "base": version.root, "parent": draft.parent}
    samples = {"from_seq": draft.from_seq, "to_seq": draft.to_seq, "trained_to_ms": draft.trained_to_ms}
    return NewChange(
        change="generated",
        version=version.version,
        sender=draft.job,
        context={**lineage, **samples, "metrics": dict(draft.metrics)},
        once_key=f"generated:{version.version}:{version.run_id}",
    )


def lineage_of(version: ModelVersion, *, snapshot: str | None) -> ModelLineage:
    """What made a version, as the metadata keep it."""
    draft = version.draft
    named = definitions_of(draft)
    return ModelLineage(
        version=version.version,
        kind=draft.model,
        parent=draft.parent,
        run_id=draft.job,
        from_seq=draft.from_seq,
        to_seq=max(draft.from_seq, draft.to_seq + 1),  # a draft's own range includes its last sample
        feature_version=named.get("features", ""),
        label_version=named.get("samples", ""),
        created_ms=draft.created_ms,
        job="train-base" if draft.kind == "base" else "train-incremental",
        snapshot=snapshot,
        lsn=draft.parameters.get("lsn"),
    )


def definitions_of(draft: Draft) -> dict[str, str]:
    """The versions of the definitions by name.

    >>> made = Draft(kind="base", model="dcn", from_seq=1, to_seq=2, trained_to_ms=0, created_ms=0,
    ...              definitions="features=a:1,b:2 samples=3 model=0a1b")
    >>> definitions_of(made)
    {'features': 'a:1,b:2', 'samples': '3', 'model': '0a1b'}
    """
    pairs = (word.partition("=") for word in draft.definitions.split())
    return {name: value for name, equals, value in pairs if equals}


def _of(version: ModelVersion, context: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"kind": version.draft.kind, "base": version.root, "reason": "", **(context or {})}


def _rejected(champion: ModelVersion, *, sender: str, reason: str) -> NewChange:
    return NewChange(
        change="rejected", version=champion.version, reason=reason, sender=sender, context=_of(champion, None)
    )


def _found(champion: ModelVersion | None, known: str | None) -> NewChange:
    reason = "the alias champion was changed in MLflow"
    if champion is None:
        assert known is not None
        return NewChange(change="withdrawn", version=known, reason=reason, sender=MLFLOW)
    return NewChange(
        change="champion", version=champion.version, reason=reason, sender=MLFLOW, context=_of(champion, None)
    )


class AliasWatch:
    """Looks each `every_s` of wall time for what was changed in MLflow by hand, or begun and cut off."""

    def __init__(self, connect: Callable[[], tuple[ModelCenter, ChangeBook]], *, every_s: float = 2.0) -> None:
        self._connect = connect
        self._every_s = every_s
        self.trouble = ""

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set; while a server is away, later."""
        while not stop.is_set():
            try:
                center, book = self._connect()
                with closing(book):
                    self._look(LifeCycle(center, book), stop)
            except ServerUnavailable as error:
                self.trouble = error.message
                stop.wait(self._every_s)

    def _look(self, life: LifeCycle, stop: threading.Event) -> None:
        while not stop.is_set():
            if life.notice():
                log.warning("champion_changed_in_mlflow")
            life.mark_served()
            self.trouble = ""
            stop.wait(self._every_s)
