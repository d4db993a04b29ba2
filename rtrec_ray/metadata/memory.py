"""The metadata in memory: for tests and for a process by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rtrec_ray.metadata.base import Dataset, JobRun, ModelLineage, RunState


class MemoryMetadataStore:
    """A MetadataStore that ends with its process."""

    def __init__(self) -> None:
        self._datasets: dict[str, Dataset] = {}
        self._runs: dict[str, JobRun] = {}
        self._lineages: dict[str, ModelLineage] = {}

    def put_dataset(self, dataset: Dataset, /) -> Dataset:
        """Register or change a dataset; answers it with its version."""
        old = self._datasets.get(dataset.name)
        if old is not None and replace(dataset, version=old.version) == old:
            return old
        new = replace(dataset, columns=dict(dataset.columns), version=1 if old is None else old.version + 1)
        self._datasets[dataset.name] = new
        return new

    def dataset(self, name: str, /) -> Dataset | None:
        """The dataset of this name; None when there is none."""
        return self._datasets.get(name)

    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets by name."""
        return tuple(sorted(self._datasets.values(), key=lambda dataset: dataset.name))

    def start_run(self, run: JobRun, /) -> None:
        """Write down a run that begins."""
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
