"""The records of the metadata service, and the port of its stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal, Protocol

import orjson

RunKind = Literal["batch", "endless"]
RunState = Literal["ordered", "running", "succeeded", "failed", "stopped"]

KILLED: Final = "its process ended without a word"


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
    """One execution of a job. Times in ms UTC by the system's clock; `context`: parameters, a failure's reason.

    `snapshot`: id of the workflow snapshot it ran on. A run of a workflow's node has the job WORKFLOW/NODE; it may be
    ordered, and `started_ms` is when it was.
    """

    run_id: str
    job: str
    kind: RunKind
    started_ms: int
    state: RunState = "running"
    ended_ms: int | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLineage:
    """What made a model version: its own samples have commit_seq in [from_seq, to_seq). `created_ms` UTC.

    `run_id`: the run of `job` that made it; `snapshot`: what the workflow consisted of then; `lsn`: from there
    on the write-ahead log has what came after its samples, None where that was not known.
    """

    version: str
    kind: str
    parent: str | None
    run_id: str
    from_seq: int
    to_seq: int
    feature_version: str
    label_version: str
    created_ms: int
    job: str = ""
    snapshot: str | None = None
    lsn: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a workflow of a project consisted of: `files` has name → content. `snapshot` is the hash of all that.

    >>> one = take_snapshot("shop", "main", {"a.yaml": "x: 1"}, created_ms=5)
    >>> one.snapshot == take_snapshot("shop", "main", {"a.yaml": "x: 1"}, created_ms=6).snapshot
    True
    >>> one.snapshot == take_snapshot("shop", "main", {"a.yaml": "x: 2"}, created_ms=5).snapshot
    False
    """

    snapshot: str
    project: str
    workflow: str
    files: Mapping[str, str]
    created_ms: int


def take_snapshot(project: str, workflow: str, files: Mapping[str, str], *, created_ms: int) -> Snapshot:
    """A snapshot with its hash."""
    content = orjson.dumps([project, workflow, dict(files)], option=orjson.OPT_SORT_KEYS)
    return Snapshot(
        snapshot=sha256(content).hexdigest(), project=project, workflow=workflow, files=files, created_ms=created_ms
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityKind:
    """A kind of entities; `schema` is a JSON Schema of their bodies. `version` is the store's to give."""

    name: str
    schema: Mapping[str, Any]
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """Something with a name in its kind and a body by the schema of that. `version` is the store's to give."""

    kind: str
    name: str
    body: Mapping[str, Any]
    version: int = 0


class MetadataStore(Protocol):
    """Datasets, snapshots, entities, runs and lineage. Every method raises StoreUnavailable while the store is away.

    What can be changed has a version. A `put` with `expected` changes only what still has that version (0: what is not
    there yet) and otherwise raises MetadataConflict; without it the last one wins. One that changes nothing leaves it.
    """

    def put_dataset(self, dataset: Dataset, /, *, expected: int | None = None) -> Dataset:
        """Register or change a dataset; answers it with its version. Raises MetadataConflict."""
        ...

    def dataset(self, name: str, /) -> Dataset | None:
        """The dataset of this name; None when there is none."""
        ...

    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets by name."""
        ...

    def put_snapshot(self, snapshot: Snapshot, /) -> None:
        """Keep a snapshot; one with this hash that is there already stays as it is."""
        ...

    def snapshots(self, *, snapshot: str | None = None, limit: int = 100) -> tuple[Snapshot, ...]:
        """The newest snapshots, newest first; or the one with this hash."""
        ...

    def put_kind(self, kind: EntityKind, /, *, expected: int | None = None) -> EntityKind:
        """Define or change a kind of entities. Raises MetadataInvalid for a schema that is none, MetadataConflict."""
        ...

    def kinds(self) -> tuple[EntityKind, ...]:
        """All kinds by name: those of the system and the users' own."""
        ...

    def put_entity(self, entity: Entity, /, *, expected: int | None = None) -> Entity:
        """Make or change an entity. Raises MetadataUnknown for its kind, MetadataInvalid, MetadataConflict."""
        ...

    def entities(self, kind: str, /, *, name: str | None = None) -> tuple[Entity, ...]:
        """The entities of a kind by name; or the one of this name."""
        ...

    def drop_entity(self, kind: str, name: str, /, *, expected: int | None = None) -> bool:
        """Take an entity out; answers whether it was there. Raises MetadataConflict."""
        ...

    def start_run(self, run: JobRun, /, *, alone: bool = False) -> None:
        """Write down a run that begins. A run_id that is there already stays as it is.

        `alone`: the job never runs twice at a time, so whatever else of it seems to run was killed, and failed.
        """
        ...

    def end_run(
        self, run_id: str, /, *, state: RunState, ended_ms: int, context: Mapping[str, Any] | None = None
    ) -> None:
        """Write down how a run ended; `context` is added to what it had. A run that has ended stays as it is."""
        ...

    def run(self, run_id: str, /) -> JobRun | None:
        """The run of this id, a workflow's node's too; None when there is none."""
        ...

    def runs(self, *, limit: int = 100) -> tuple[JobRun, ...]:
        """The newest runs, newest first; those of the nodes of workflows too, where the store has them."""
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
