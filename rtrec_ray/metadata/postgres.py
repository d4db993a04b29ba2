"""The metadata in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import orjson

from rtrec_ray.metadata.base import KILLED, Dataset, Entity, EntityKind, JobRun, ModelLineage, RunState, Snapshot
from rtrec_ray.metadata.kinds import SYSTEM_KINDS, check_entity, check_kind, conflict
from rtrec_ray.postgres.connection import Cursor, Pool, PostgresOptions
from rtrec_ray.postgres.statements import load

Record = TypeVar("Record", Dataset, Entity, EntityKind, JobRun, ModelLineage, Snapshot)
Changed = TypeVar("Changed", Dataset, Entity, EntityKind)


class PostgresMetadataStore:
    """A MetadataStore on the tables meta.datasets, snapshots, entities, runs and model_lineage.

    `where`: the database, or a cursor there: then each read and write is part of the cursor's transaction.
    """

    def __init__(self, where: PostgresOptions | Cursor) -> None:
        self._pool: Pool | _Inside
        if isinstance(where, PostgresOptions):
            self._pool = Pool(where, size=2, application="rtrec-metadata")
        else:
            self._pool = _Inside(where)
        self._sql = load(__package__, "metadata.sql")

    def put_dataset(self, dataset: Dataset, /, *, expected: int | None = None) -> Dataset:
        """Register or change a dataset; answers it with its version. Raises MetadataConflict, StoreUnavailable."""
        values = {**asdict(dataset), "columns": _json(dataset.columns)}
        return self._put(Dataset, ("put_dataset", "datasets"), values, expected)

    def dataset(self, name: str, /) -> Dataset | None:
        """The dataset of this name; None when there is none."""
        return _first(self._read(Dataset, "datasets", {"name": name}))

    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets by name."""
        return self._read(Dataset, "datasets", {"name": None})

    def put_snapshot(self, snapshot: Snapshot, /) -> None:
        """Keep a snapshot; one with this hash that is there already stays as it is."""
        self._write("put_snapshot", {**asdict(snapshot), "files": _json(snapshot.files)})

    def snapshots(self, *, snapshot: str | None = None, limit: int = 100) -> tuple[Snapshot, ...]:
        """The newest snapshots, newest first; or the one with this hash."""
        return self._read(Snapshot, "snapshots", {"snapshot": snapshot, "limit": limit})

    def put_kind(self, kind: EntityKind, /, *, expected: int | None = None) -> EntityKind:
        """Define or change a kind of entities. Raises MetadataInvalid, MetadataConflict, StoreUnavailable."""
        check_kind(kind)
        values = {"name": kind.name, "schema": _json(kind.schema)}
        return self._put(EntityKind, ("put_kind", "kinds"), values, expected)

    def kinds(self) -> tuple[EntityKind, ...]:
        """All kinds by name: those of the system and the users' own."""
        own = self._read(EntityKind, "kinds", {"name": None})
        return tuple(sorted([*SYSTEM_KINDS, *own], key=lambda kind: kind.name))

    def put_entity(self, entity: Entity, /, *, expected: int | None = None) -> Entity:
        """Make or change an entity. Raises MetadataUnknown, MetadataInvalid, MetadataConflict, StoreUnavailable."""
        system = next((kind for kind in SYSTEM_KINDS if kind.name == entity.kind), None)
        check_entity(entity, system or _first(self._read(EntityKind, "kinds", {"name": entity.kind})))
        values = {**asdict(entity), "body": _json(entity.body)}
        return self._put(Entity, ("put_entity", "entities"), values, expected)

    def entities(self, kind: str, /, *, name: str | None = None) -> tuple[Entity, ...]:
        """The entities of a kind by name; or the one of this name."""
        return self._read(Entity, "entities", {"kind": kind, "name": name})

    def drop_entity(self, kind: str, name: str, /, *, expected: int | None = None) -> bool:
        """Take an entity out; answers whether it was there. Raises MetadataConflict, StoreUnavailable."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["drop_entity"], {"kind": kind, "name": name, "expected": expected})
            if cur.fetchone() is not None:
                return True
            cur.execute(self._sql["entities"], {"kind": kind, "name": name})
            standing = _first(_records(Entity, cur.fetchall()))
        if standing is not None:
            raise conflict(name, expected, standing.version)
        return False

    def start_run(self, run: JobRun, /, *, alone: bool = False) -> None:
        """Write down a run that begins. A run_id that is there already stays as it is."""
        with self._pool.transaction() as cur:
            if alone:
                killed = {"job": run.job, "run_id": run.run_id, "started_ms": run.started_ms}
                cur.execute(self._sql["end_others"], {**killed, "context": _json({"reason": KILLED})})
            cur.execute(self._sql["start_run"], {**asdict(run), "context": _json(run.context)})

    def end_run(
        self, run_id: str, /, *, state: RunState, ended_ms: int, context: Mapping[str, Any] | None = None
    ) -> None:
        """Write down how a run ended; `context` is added to what it had."""
        added = _json(context or {})
        self._write("end_run", {"run_id": run_id, "state": state, "ended_ms": ended_ms, "context": added})

    def run(self, run_id: str, /) -> JobRun | None:
        """The run of this id; None when there is none."""
        return _first(self._read(JobRun, "run", {"run_id": run_id}))

    def runs(self, *, limit: int = 100) -> tuple[JobRun, ...]:
        """The newest runs, newest first."""
        return self._read(JobRun, "runs", {"limit": limit})

    def put_lineage(self, lineage: ModelLineage, /) -> None:
        """Write down what made a version. Done once: a version that is there already stays as it is."""
        self._write("put_lineage", asdict(lineage))

    def lineage(self, version: str, /) -> ModelLineage | None:
        """What made this version; None when nobody wrote it down."""
        return _first(self.ancestry(version))

    def ancestry(self, version: str, /) -> tuple[ModelLineage, ...]:
        """The version, its parent, its parent's parent, ... as far as they are written down."""
        return self._read(ModelLineage, "ancestry", {"version": version})

    def lineages(self, *, limit: int = 100) -> tuple[ModelLineage, ...]:
        """The newest versions, newest first."""
        return self._read(ModelLineage, "lineages", {"limit": limit})

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _put(
        self, kind: type[Changed], statements: tuple[str, str], values: dict[str, Any], expected: int | None
    ) -> Changed:
        """Put a record; when nothing was changed, the one that stands, unless it was changed meanwhile."""
        put, read = statements
        with self._pool.transaction() as cur:
            cur.execute(self._sql[put], {**values, "expected": expected})
            if rows := cur.fetchall():
                return _records(kind, rows)[0]
            cur.execute(self._sql[read], values)
            standing = _first(_records(kind, cur.fetchall()))
        known = 0 if standing is None else standing.version
        if standing is None or expected not in (None, known):
            raise conflict(values["name"], expected, known)
        return standing

    def _write(self, statement: str, values: dict[str, Any]) -> None:
        with self._pool.transaction() as cur:
            cur.execute(self._sql[statement], values)

    def _read(self, kind: type[Record], statement: str, values: dict[str, Any]) -> tuple[Record, ...]:
        with self._pool.transaction() as cur:
            cur.execute(self._sql[statement], values)
            return _records(kind, cur.fetchall())


@dataclass(frozen=True, slots=True)
class _Inside:
    """In place of a pool: the one cursor of a transaction that is another's."""

    cursor: Cursor

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        yield self.cursor

    def close(self) -> None:
        """It is not ours."""


def _records(kind: type[Record], rows: list[tuple[Any, ...]]) -> tuple[Record, ...]:
    # The statements name their columns in the order of the record's fields.
    names = [field.name for field in fields(kind)]
    return tuple(kind(**dict(zip(names, row, strict=True))) for row in rows)


def _first(records: tuple[Record, ...]) -> Record | None:
    return records[0] if records else None


def _json(content: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(content), option=orjson.OPT_SERIALIZE_NUMPY).decode()
