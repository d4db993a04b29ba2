"""What the workers of a run are told, and what they answer with."""

from __future__ import annotations

from dataclasses import dataclass

from rtrec_ray.registry.base import ModelCenter, ModelVersion
from rtrec_ray.stores.samples.place import LogPlace
from rtrec_ray.stores.training import Beat, RunState
from training.options import BaseOptions, Connections, IncrementalOptions
from training.reading import Totals

__all__ = ["BasePlan", "IncrementalPlan", "version_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """What the workers are told. `epoch`: of this start, from the book; `totals`: of the samples up to `end`."""

    options: BaseOptions
    connections: Connections
    job: str
    epoch: int
    end: LogPlace
    totals: Totals

    @property
    def to_seq(self) -> int:
        """The last revision that is trained on."""
        return self.end.commit_seq

    @property
    def base_rate(self) -> float:
        """The share of clicks, of all that was shown."""
        return self.totals.positives / self.totals.shown

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


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementalPlan:
    """What the workers are told. `epoch`: of this start, from the book."""

    options: IncrementalOptions
    connections: Connections
    epoch: int


def version_of(center: ModelCenter, job: str) -> ModelVersion | None:
    """The version that a job made, None before it did. Raises RegistryUnavailable."""
    return next((version for version in center.list() if version.draft.job == job), None)
