"""From a dataset's name to its rows: a job asks by name and need not know where the data are.

`open_dataset(store, "samples", places)` answers a reader; `frames()` reads it as columns, a portion at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

import polars as pl
from psycopg2 import sql

from rtrec_ray.errors import ConfigInvalid, MetadataUnknown
from rtrec_ray.kafka.base import EARLIEST, Consumer, KafkaOptions, TopicPartition
from rtrec_ray.kafka.codec import decode
from rtrec_ray.kafka.connect import connect_admin, connect_consumer
from rtrec_ray.metadata.base import Dataset, MetadataStore
from rtrec_ray.postgres.connection import PostgresOptions, connect, translated
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import History

_ROWS: Final = 65_536
_QUIET_POLLS: Final = 10
_NO_LIMIT_MS: Final = 2**62
_FOLDER: Final = "/topic="
_TYPES: Final[dict[str, pl.DataType]] = {
    "text": pl.String(),
    "bigint": pl.Int64(),
    "int": pl.Int32(),
    "smallint": pl.Int16(),
    "jsonb": pl.String(),
    "timestamptz": pl.Datetime("us", "UTC"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What readers connect with. None: data there cannot be read."""

    postgres: PostgresOptions | None = None
    kafka: KafkaOptions | None = None


class Reader(Protocol):
    """Reads a dataset; connects when it is asked for frames, so it may be sent to another process before."""

    @property
    def dataset(self) -> Dataset:
        """What it reads."""
        ...

    def frames(self) -> Iterator[pl.DataFrame]:
        """All rows there are now, in portions of bounded size. Raises StoreUnavailable, KafkaUnavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReader:
    """Parquet of the history: the files that the manifest names, and no others."""

    dataset: Dataset
    postgres: PostgresOptions

    def frames(self) -> Iterator[pl.DataFrame]:
        """See Reader."""
        uri, _, topic = self.dataset.address.rpartition(_FOLDER)
        with closing(PostgresHistoryManifest(self.postgres)) as manifest:
            yield from History(ArrowHistoryFiles(HistoryFilesOptions(uri=uri)), manifest).scan(topic, batch_rows=_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationReader:
    """A table or view, by a cursor on the server; jsonb comes as JSON text."""

    dataset: Dataset
    postgres: PostgresOptions

    def frames(self) -> Iterator[pl.DataFrame]:
        """See Reader."""
        schema = {name: _TYPES.get(kind, pl.String()) for name, kind in self.dataset.columns.items()}
        with (
            closing(connect(self.postgres, application="rtrec-dataset")) as connection,
            translated(),
            connection.cursor("dataset") as cursor,
        ):
            cursor.execute(self._query())
            while rows := cursor.fetchmany(_ROWS):
                yield pl.DataFrame(rows, schema=schema, orient="row")

    def _query(self) -> sql.Composed:
        columns = [
            sql.SQL("{}::text").format(sql.Identifier(name))
            if kind not in _TYPES or kind == "jsonb"
            else sql.Identifier(name)
            for name, kind in self.dataset.columns.items()
        ]
        relation = sql.Identifier(*self.dataset.address.split("."))
        return sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(columns), relation)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicReader:
    """A Kafka topic from its beginning to the end it has when reading begins; dead records are left out."""

    dataset: Dataset
    kafka: KafkaOptions

    def frames(self) -> Iterator[pl.DataFrame]:
        """See Reader."""
        topic = self.dataset.address.rpartition("/")[2]
        with connect_admin(self.kafka) as admin:
            partitions = [TopicPartition(topic=topic, partition=n) for n in range(admin.partitions(topic) or 0)]
        with closing(connect_consumer(self.kafka)) as consumer:
            yield from read_to_the_end(consumer, partitions)


def open_dataset(store: MetadataStore, name: str, places: Places) -> Reader:
    """The reader of the dataset of this name. Raises MetadataUnknown, ConfigInvalid, StoreUnavailable."""
    dataset = store.dataset(name)
    if dataset is None:
        raise MetadataUnknown(f"there is no dataset {name!r}", mend="`rtrec meta list datasets` shows what there is")
    if dataset.format not in _FORMATS:
        raise ConfigInvalid(f"nothing reads the format {dataset.format!r} of dataset {name!r}")
    reader = _FORMATS[dataset.format](dataset, places)
    if reader is None:
        raise ConfigInvalid(f"dataset {name!r} is {dataset.format}, and its server's address was not given")
    return reader


def _history(dataset: Dataset, places: Places) -> Reader | None:
    return None if places.postgres is None else HistoryReader(dataset=dataset, postgres=places.postgres)


def _relation(dataset: Dataset, places: Places) -> Reader | None:
    return None if places.postgres is None else RelationReader(dataset=dataset, postgres=places.postgres)


def _topic(dataset: Dataset, places: Places) -> Reader | None:
    return None if places.kafka is None else TopicReader(dataset=dataset, kafka=places.kafka)


_FORMATS: Final[dict[str, Callable[[Dataset, Places], Reader | None]]] = {
    "parquet": _history,
    "postgresql": _relation,
    "kafka-json": _topic,
}


def read_to_the_end(consumer: Consumer, partitions: list[TopicPartition]) -> Iterator[pl.DataFrame]:
    """Accepted records of the partitions of a topic, up to the ends they have now. Raises KafkaUnavailable."""
    ends = {where: end for where, end in consumer.end_offsets(partitions).items() if end > 0}
    consumer.assign(dict.fromkeys(ends, EARLIEST))
    quiet = 0
    # The end may lie behind records that retention or compaction removed: they never come.
    while ends and quiet < _QUIET_POLLS:
        batches = consumer.poll(max_records=_ROWS, timeout_s=1.0)
        quiet = 0 if batches else quiet + 1
        for batch in batches:
            frame = decode(batch, latest_ms=lambda _wall_ms: _NO_LIMIT_MS).frame
            if not frame.is_empty():
                yield frame
            where = TopicPartition(topic=batch.topic, partition=batch.partition)
            if batch.next_offset >= ends.get(where, 0):
                ends.pop(where, None)
