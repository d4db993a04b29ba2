"""Datasets read by their names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from rtrec_ray.events import ITEM
from rtrec_ray.kafka.base import TopicPartition
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.metadata import Dataset, PostgresMetadataStore, system_datasets
from rtrec_ray.metadata.readers import Places, open_dataset, read_to_the_end
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import schema

NOON_MS = 1_700_049_600_000


@pytest.fixture
def store(dsn: str) -> Iterator[PostgresMetadataStore]:
    with closing(PostgresMetadataStore(PostgresOptions(dsn=dsn))) as made:
        yield made


@pytest.mark.server
def test_a_relation_is_read_by_its_dataset_name(dsn: str, store: PostgresMetadataStore) -> None:
    options = PostgresOptions(dsn=dsn)
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        cursor.execute("CREATE TABLE meta.shop (item_id bigint, title text, more jsonb)")
        cursor.execute("INSERT INTO meta.shop SELECT n, 't' || n, '{\"n\": 1}' FROM generate_series(1, 70000) AS n")
    columns = {"item_id": "bigint", "title": "text", "more": "jsonb"}
    store.put_dataset(Dataset(name="shop", address="meta.shop", format="postgresql", columns=columns))
    frames = list(open_dataset(store, "shop", Places(postgres=options)).frames())
    assert [frame.height for frame in frames] == [65_536, 4_464]
    whole = pl.concat(frames)
    assert (whole["item_id"].sum(), whole["title"][0], whole["more"][0]) == (2_450_035_000, "t1", '{"n": 1}')


@pytest.mark.server
def test_the_history_of_a_topic_is_read_by_its_dataset_name_without_orphans(
    dsn: str, store: PostgresMetadataStore, tmp_path: Path
) -> None:
    options = PostgresOptions(dsn=dsn)
    for dataset in system_datasets(history_uri=str(tmp_path), topics="nobody:9"):
        store.put_dataset(dataset)
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path)))
    with closing(PostgresHistoryManifest(options)) as manifest, closing(connect(options)) as connection:
        with transaction(connection) as cursor:
            manifest.add(cursor, files.write(ITEM, _items(1, 2, 3), partition=0))
        files.write(ITEM, _items(4), partition=0)  # an orphan: no commit made it visible
    found = pl.concat(open_dataset(store, "item-history", Places(postgres=options)).frames())
    assert found["item_id"].sort().to_list() == [1, 2, 3]
    assert set(found.columns) == set(store.dataset("item-history").columns)  # type: ignore[union-attr]


@pytest.mark.server
def test_the_samples_are_read_by_their_name(dsn: str, store: PostgresMetadataStore) -> None:
    for dataset in system_datasets(history_uri="h", topics="nobody:9"):
        store.put_dataset(dataset)
    assert list(open_dataset(store, "samples", Places(postgres=PostgresOptions(dsn=dsn))).frames()) == []


def test_a_topic_is_read_to_the_end_it_had_and_dead_records_are_left_out() -> None:
    broker = MemoryBroker(partitions=2)
    for number in range(5):
        value = b'{"item_id": %d, "ts": 1700000000000, "item_type": "ad", "category_id": 1, "title": "t"}' % number
        broker.append(ITEM, number % 2, value)
    broker.append(ITEM, 0, b"{")
    partitions = [TopicPartition(topic=ITEM, partition=number) for number in range(2)]
    with closing(broker.consumer()) as consumer:
        found = pl.concat(read_to_the_end(consumer, partitions))
    assert found["item_id"].sort().to_list() == [0, 1, 2, 3, 4]


def _items(*ids: int) -> pl.DataFrame:
    rows = [{"item_id": each, "ts": NOON_MS, "item_type": "ad", "category_id": 1, "title": "t"} for each in ids]
    origin = {"partition": 0, "offset": 1, "kafka_ts": NOON_MS, "raw": None}
    return pl.DataFrame([{**row, **origin} for row in rows], schema=schema(ITEM))
