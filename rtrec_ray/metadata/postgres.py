"""The metadata in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import orjson

from rtrec_ray.metadata.base import Dataset, JobRun, ModelLineage, RunState
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.statements import load

Record = TypeVar("Record", Dataset, JobRun, ModelLineage)


class PostgresMetadataStore:
    """A MetadataStore on meta.datasets, meta.runs and meta.model_lineage."""

    def __init__(self, options: PostgresOptions) -> None:
        self._pool = Pool(options, size=2, application="rtrec-metadata")
        self._sql = load(__package__, "metadata.sql")

    def put_dataset(self, dataset: Dataset, /) -> Dataset:
        """Register or change a dataset; answers it with its version. Raises StoreUnavailable."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["put_dataset"], {**asdict(dataset), "columns": _json(dataset.columns)})
            cur.execute(self._sql["datasets"], {"name": dataset.name})
            return _records(Dataset, cur.fetchall())[0]

    def dataset(self, name: str, /) -> Dataset | None:
        """The dataset of this name; None when there is none."""
        return _first(self._read(Dataset, "datasets", {"name": name}))

    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets by name."""
        return self._read(Dataset, "datasets", {"name": None})

    def start_run(self, run: JobRun, /) -> None:
        """Write down a run that begins. A run_id that is there already stays as it is."""
        self._write("start_run", {**asdict(run), "context": _json(run.context)})

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

    def _write(self, statement: str, values: dict[str, Any]) -> None:
        with self._pool.transaction() as cur:
            cur.execute(self._sql[statement], values)

    def _read(self, kind: type[Record], statement: str, values: dict[str, Any]) -> tuple[Record, ...]:
        with self._pool.transaction() as cur:
            cur.execute(self._sql[statement], values)
            return _records(kind, cur.fetchall())


def _records(kind: type[Record], rows: list[tuple[Any, ...]]) -> tuple[Record, ...]:
    # The statements name their columns in the order of the record's fields.
    names = [field.name for field in fields(kind)]
    return tuple(kind(**dict(zip(names, row, strict=True))) for row in rows)


def _first(records: tuple[Record, ...]) -> Record | None:
    return records[0] if records else None


def _json(content: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(content), option=orjson.OPT_SERIALIZE_NUMPY).decode()
