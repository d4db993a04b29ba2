"""The records of the metadata service, and the port of its stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

RunKind = Literal["batch", "endless"]
RunState = Literal["running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Data by name. `address`: relation, topic or URI, without secrets; `columns`: column → type.

    `version` rises by one with each change and is the store's to give.
    """

    name: str
    address: str
    format: str
    columns: Mapping[str, str]
    description: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One execution of a job. Times in ms UTC by the system's clock; `context`: parameters, a failure's reason."""

    run_id: str
    job: str
    kind: RunKind
    started_ms: int
    state: RunState = "running"
    ended_ms: int | None = None
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLineage:
    """What made a model version: its own samples have commit_seq in [from_seq, to_seq). `created_ms` UTC."""

    version: str
    kind: str
    parent: str | None
    run_id: str
    from_seq: int
    to_seq: int
    feature_version: str
    label_version: str
    created_ms: int


class MetadataStore(Protocol):
    """Datasets, runs and lineage. Every method raises StoreUnavailable while the store is away."""

    def put_dataset(self, dataset: Dataset, /) -> Dataset:
        """Register or change a dataset; answers it with its version, which stays when nothing changed."""
        ...

    def dataset(self, name: str, /) -> Dataset | None:
        """The dataset of this name; None when there is none."""
        ...

    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets by name."""
        ...

    def start_run(self, run: JobRun, /) -> None:
        """Write down a run that begins. A run_id that is there already stays as it is."""
        ...

    def end_run(
        self, run_id: str, /, *, state: RunState, ended_ms: int, context: Mapping[str, Any] | None = None
    ) -> None:
        """Write down how a run ended; `context` is added to what it had. A run that has ended stays as it is."""
        ...

    def run(self, run_id: str, /) -> JobRun | None:
        """The run of this id; None when there is none."""
        ...

    def runs(self, *, limit: int = 100) -> tuple[JobRun, ...]:
        """The newest runs, newest first."""
        ...

    def put_lineage(self, lineage: ModelLineage, /) -> None:
        """Write down what made a version. Done once: a version that is there already stays as it is."""
        ...

    def lineage(self, version: str, /) -> ModelLineage | None:
        """What made this version; None when nobody wrote it down."""
        ...

    def ancestry(self, version: str, /) -> tuple[ModelLineage, ...]:
        """The version, its parent, its parent's parent, ... as far as they are written down."""
        ...

    def lineages(self, *, limit: int = 100) -> tuple[ModelLineage, ...]:
        """The newest versions, newest first."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...
