"""The static features as a Ray Data job: tasks read the history's files and count, the caller alone writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import ray.data
from ray.data import TaskPoolStrategy

from actors.jobs.quiet import keep_quiet
from actors.jobs.translated import translated
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import History, HistoryFile
from rtrec_ray.stores.static.postgres import PostgresStaticFeatures
from rtrec_ray.stores.static.run import (
    Progress,
    Run,
    RunOrder,
    RunReport,
    Unit,
    count_unit,
    read_noted,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticOptions:
    """Where the job reads and writes, and how much at a time.

    `tasks` of one logical CPU each run side by side, each with about `rows_per_task` events in memory. `keep_days`: see
    Run.
    """

    postgres: PostgresOptions
    history_uri: str
    tasks: int = 2
    rows_per_task: int = 1_000_000
    keep_days: int = 35


def correct_static_features(
    options: StaticOptions, order: RunOrder, progress: Progress = lambda done, total: None
) -> RunReport:
    """A run (`stores/static/run.py`) whose history is read by Ray Data. Needs a Ray connection.

    Raises BeyondRetention, LeaseHeld while another run goes on, LeaseLost, StoreUnavailable, RayUnavailable.
    """
    manifest = PostgresHistoryManifest(options.postgres)
    with closing(manifest), closing(PostgresStaticFeatures(options.postgres)) as store:
        run = Run(
            history=History(_files(options), manifest),
            store=store,
            counting=RayCounting(options),
            rows_per_task=options.rows_per_task,
            keep_days=options.keep_days,
        )
        return run.correct(order, progress)


class RayCounting:
    """Counting by tasks of Ray Data, one for each portion of the history."""

    def __init__(self, options: StaticOptions) -> None:
        self._options = options

    def noted(self, portions: Sequence[Sequence[HistoryFile]]) -> Iterator[pl.DataFrame]:
        """See Counting."""
        return self._map(NotedTask(options=self._options, portions=portions), len(portions))

    def counts(self, units: Sequence[Unit]) -> Iterator[pl.DataFrame]:
        """See Counting."""
        return self._map(CountTask(options=self._options, units=units), len(units))

    def _map(self, task: Task, count: int) -> Iterator[pl.DataFrame]:
        if not count:
            return
        keep_quiet()
        numbers = ray.data.from_items([{"number": number} for number in range(count)], override_num_blocks=count)
        tasks = TaskPoolStrategy(size=min(self._options.tasks, count))
        found = numbers.map_batches(task, batch_size=1, batch_format="numpy", num_cpus=1, compute=tasks)
        with translated("reads the history"):
            for block in found.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield pl.DataFrame(pl.from_arrow(block))


class Task(Protocol):
    """What a task of Ray Data does: numbers of portions in, a table for each out."""

    def __call__(self, numbers: Mapping[str, Any], /) -> Iterator[pa.Table]:
        """The tables of the portions with these numbers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedTask:
    """What retractions in a portion of the history's files take back."""

    options: StaticOptions
    portions: Sequence[Sequence[HistoryFile]]

    def __call__(self, numbers: Mapping[str, Any], /) -> Iterator[pa.Table]:
        """NOTED_SCHEMA of each portion."""
        manifest = PostgresHistoryManifest(self.options.postgres)  # connects only when asked, which it is not
        for number in _each(numbers):
            yield read_noted(History(_files(self.options), manifest), self.portions[number]).to_arrow()


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTask:
    """The counts of a unit."""

    options: StaticOptions
    units: Sequence[Unit]

    def __call__(self, numbers: Mapping[str, Any], /) -> Iterator[pa.Table]:
        """PART_SCHEMA of each unit."""
        manifest = PostgresHistoryManifest(self.options.postgres)  # as above
        with closing(PostgresStaticFeatures(self.options.postgres)) as store:
            for number in _each(numbers):
                history = History(_files(self.options), manifest)
                yield count_unit(history, store, number, self.units[number]).to_arrow()


def _each(numbers: Mapping[str, Any]) -> Iterable[int]:
    return [int(number) for number in numbers["number"]]


def _files(options: StaticOptions) -> ArrowHistoryFiles:
    return ArrowHistoryFiles(HistoryFilesOptions(uri=options.history_uri))
