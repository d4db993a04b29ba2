"""The metadata in memory: for tests and for a process by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from rtrec_ray.metadata.base import KILLED, Dataset, Entity, EntityKind, JobRun, ModelLineage, RunState, Snapshot
from rtrec_ray.metadata.kinds import SYSTEM_KINDS, check_entity, check_kind, conflict

Versioned = TypeVar("Versioned", Dataset, EntityKind, Entity)


class MemoryMetadataStore:
    """A MetadataStore that ends with its process."""

    def __init__(self) -> None:
        self._datasets: dict[str, Dataset] = {}
        self._runs: dict[str, JobRun] = {}
        self._lineages: dict[str, ModelLineage] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._kinds = {kind.name: kind for kind in SYSTEM_KINDS}
        self._entities: dict[tuple[str, str], Entity] = {}

    def put_dataset(self, dataset: Dataset, /, *, expected: int | None = None) -> Dataset:
        """Register or change a dataset; answers it with its version."""
        new = _next(dataset, self._datasets.get(dataset.name), expected)
        self._datasets[dataset.name] = replace(new, columns=dict(new.columns))
        return new

    def dataset(self, name: str, /) -> Dataset | None:
        """The dataset of this name; None when there is none."""
        return self._datasets.get(name)

    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets by name."""
        return tuple(sorted(self._datasets.values(), key=lambda dataset: dataset.name))

    def put_snapshot(self, snapshot: Snapshot, /) -> None:
        """Keep a snapshot."""
        self._snapshots.setdefault(snapshot.snapshot, snapshot)

    def snapshots(self, *, snapshot: str | None = None, limit: int = 100) -> tuple[Snapshot, ...]:
        """The newest snapshots, newest first; or the one with this hash."""
        newest = sorted(self._snapshots.values(), key=lambda one: (-one.created_ms, one.snapshot))
        return tuple(one for one in newest if snapshot in (None, one.snapshot))[:limit]

    def put_kind(self, kind: EntityKind, /, *, expected: int | None = None) -> EntityKind:
        """Define or change a kind of entities."""
        check_kind(kind)
        self._kinds[kind.name] = _next(kind, self._kinds.get(kind.name), expected)
        return self._kinds[kind.name]

    def kinds(self) -> tuple[EntityKind, ...]:
        """All kinds by name."""
        return tuple(sorted(self._kinds.values(), key=lambda kind: kind.name))

    def put_entity(self, entity: Entity, /, *, expected: int | None = None) -> Entity:
        """Make or change an entity."""
        check_entity(entity, self._kinds.get(entity.kind))
        key = (entity.kind, entity.name)
        self._entities[key] = _next(entity, self._entities.get(key), expected)
        return self._entities[key]

    def entities(self, kind: str, /, *, name: str | None = None) -> tuple[Entity, ...]:
        """The entities of a kind by name; or the one of this name."""
        found = (one for one in self._entities.values() if one.kind == kind and name in (None, one.name))
        return tuple(sorted(found, key=lambda one: one.name))

    def drop_entity(self, kind: str, name: str, /, *, expected: int | None = None) -> bool:
        """Take an entity out."""
        standing = self._entities.get((kind, name))
        if standing is None:
            return False
        if expected not in (None, standing.version):
            raise conflict(name, expected, standing.version)
        del self._entities[kind, name]
        return True

    def start_run(self, run: JobRun, /, *, alone: bool = False) -> None:
        """Write down a run that begins."""
        for other in [*self._runs.values()] if alone else []:
            if other.job == run.job and other.run_id != run.run_id:
                self.end_run(other.run_id, state="failed", ended_ms=run.started_ms, context={"reason": KILLED})
        self._runs.setdefault(run.run_id, run)

    def end_run(
        self, run_id: str, /, *, state: RunState, ended_ms: int, context: Mapping[str, Any] | None = None
    ) -> None:
        """Write down how a run ended."""
        run = self._runs.get(run_id)
        if run is not None and run.ended_ms is None:
            known = {**run.context, **(context or {})}
            self._runs[run_id] = replace(run, state=state, ended_ms=ended_ms, context=known)

    def run(self, run_id: str, /) -> JobRun | None:
        """The run of this id; None when there is none."""
        return self._runs.get(run_id)

    def runs(self, *, limit: int = 100) -> tuple[JobRun, ...]:
        """The newest runs, newest first."""
        return tuple(sorted(self._runs.values(), key=lambda run: (-run.started_ms, run.run_id))[:limit])

    def put_lineage(self, lineage: ModelLineage, /) -> None:
        """Write down what made a version."""
        self._lineages.setdefault(lineage.version, lineage)

    def lineage(self, version: str, /) -> ModelLineage | None:
        """What made this version; None when nobody wrote it down."""
        return self._lineages.get(version)

    def ancestry(self, version: str, /) -> tuple[ModelLineage, ...]:
        """The version, its parent, its parent's parent, ..."""
        line: dict[str, ModelLineage] = {}
        here = self._lineages.get(version)
        while here is not None and here.version not in line:
            line[here.version] = here
            here = None if here.parent is None else self._lineages.get(here.parent)
        return tuple(line.values())

    def lineages(self, *, limit: int = 100) -> tuple[ModelLineage, ...]:
        """The newest versions, newest first."""
        return tuple(sorted(self._lineages.values(), key=lambda one: (-one.created_ms, one.version))[:limit])

    def close(self) -> None:
        """Nothing to give back."""


def _next(new: Versioned, old: Versioned | None, expected: int | None) -> Versioned:
    known = 0 if old is None else old.version
    if expected not in (None, known):
        raise conflict(new.name, expected, known)
    if old is not None and replace(new, version=known) == old:
        return old
    return replace(new, version=known + 1)
