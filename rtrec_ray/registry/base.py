"""The port of the model center, and its records.

A version is generated, then validated or rejected; only a validated one becomes champion, and only the champion serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["Draft", "Kind", "ModelCenter", "ModelVersion", "Stage", "Status", "earlier_champion", "rollback"]

Kind = Literal["base", "increment"]
Status = Literal["generated", "validated", "rejected"]
Stage = Literal["generated", "validated", "deployed", "deprecated", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is known of a version before it has a number.

    `to_lsn`: from there on the write-ahead log has every later sample; None when that is not known.
    `model` is the family (logistic, dcn). The samples behind it are those with from_seq <= commit_seq <= to_seq, on top
    of `parent`; `base` is the base version at the chain's root (none for a base). `trained_to_ms` is the event time of
    the newest sample, ms UTC; `created_ms` when it was made, by the clock of events.
    """

    kind: Kind
    model: str
    from_seq: int
    to_seq: int
    trained_to_ms: int
    created_ms: int
    parent: str | None = None
    base: str | None = None
    job: str = ""
    definitions: str = ""
    to_lsn: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A numbered version. `version` is decimal text; `run_id` its run in MLflow; `reason` why it was rejected.

    `champion_ms`: when it last became champion, wall ms, None when it never was. `status` is the gate's word; `stage`
    how far it has come in its life: a validated version is deployed when it serves, and deprecated after that.
    """

    version: str
    run_id: str
    status: Status
    draft: Draft
    reason: str = ""
    champion_ms: int | None = None
    stage: Stage = "generated"

    @property
    def rolled_back(self) -> bool:
        """Whether it served and was then rejected: nothing that stands on it may serve."""
        return self.status == "rejected" and self.champion_ms is not None

    @property
    def root(self) -> str:
        """The base version this one stands on: its own number for a base."""
        return self.draft.base or self.version


class ModelCenter(Protocol):
    """Model versions, their life cycle and their runs. Every method raises RegistryUnavailable."""

    def log_version(self, directory: Path, draft: Draft) -> ModelVersion:
        """Store the artifact in `directory` and number it; status generated, alias `candidate`."""
        ...

    def get(self, version: str) -> ModelVersion | None:
        """The version of this number, None when there is none."""
        ...

    def list(self, *, limit: int = 100) -> list[ModelVersion]:
        """The newest versions, newest first."""
        ...

    def champion(self) -> ModelVersion | None:
        """The version that serves, None before the first was validated."""
        ...

    def set_champion(self, version: str) -> ModelVersion:
        """Mark as validated and give it the alias `champion`. Raises ModelRejected for an unknown number."""
        ...

    def reject(self, version: str, *, reason: str) -> ModelVersion:
        """Mark as rejected, for good. Raises ModelRejected for an unknown number."""
        ...

    def mark(self, version: str, stage: Stage) -> None:
        """Note how far it has come. Raises ModelRejected for an unknown number."""
        ...

    def download(self, version: str, to: Path) -> Path:
        """Copy the artifact below `to`; answers the folder that holds model.json. Raises ModelRejected if unknown."""
        ...

    def open_run(self, name: str, *, parameters: Mapping[str, str]) -> str:
        """Begin a run that logs metrics over time; answers its id."""
        ...

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Add one point to each metric of a run; `step` is a commit_seq."""
        ...

    def close_run(self, run_id: str) -> None:
        """End a run."""
        ...


def fallen(center: ModelCenter, version: str | None) -> ModelVersion | None:
    """The version itself or the nearest one it stands on that was rolled back, as far back as the nearest valid one.

    None when there is none: then what stands on `version` may serve. Raises RegistryUnavailable.
    """
    while version is not None and (found := center.get(version)) is not None and found.status != "validated":
        if found.rolled_back:
            return found
        version = found.draft.parent
    return None


def earlier_champion(center: ModelCenter) -> ModelVersion | None:
    """The version that served before the champion and may serve again; None when there is none."""
    champion = center.champion()
    earlier = [
        version
        for version in center.list()
        if version.status == "validated"
        and version.champion_ms is not None
        and (champion is None or version.version != champion.version)
    ]
    return max(earlier, key=lambda version: (version.champion_ms or 0, int(version.version)), default=None)


def rollback(center: ModelCenter, *, reason: str) -> ModelVersion | None:
    """Reject the champion and go back to the version that served before it; None when there is none.

    In the registry alone: `lifecycle.LifeCycle.rollback` tells it too.
    """
    earlier, champion = earlier_champion(center), center.champion()
    if earlier is None:
        return None
    if champion is not None:
        center.reject(champion.version, reason=reason)
    return center.set_champion(earlier.version)
