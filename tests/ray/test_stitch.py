"""Samples stitched from the history by Ray Data, beside those that the sample stage wrote."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from actors.history import HistoryOperator, HistoryOptions
from actors.sample import SampleOperator
from configs.settings import load_settings
from rtrec_ray.app.find import compose
from rtrec_ray.app.stitch import stitch_into, verify_samples
from rtrec_ray.app.system import System
from rtrec_ray.embedded.state import Addresses
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.memory import MemoryBroker, MemoryProducer
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.progress import Committed, write_committed
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

pytestmark = [pytest.mark.server, pytest.mark.ray]

START_MS = 1_767_225_600_000
SPAN = {"from_ms": START_MS, "to_ms": START_MS + 3_600_000}


def believe(written_ms: int) -> int:
    return 1 << 60


def traffic(partition: int) -> dict[str, list[bytes]]:
    """Ten requests of three items; every fourth item clicked, half of these later than the wait; one without record."""
    log, events = [], []
    for request in range(10):
        base = {"user_id": partition, "request_id": f"p{partition}-{request}"}
        asked = START_MS + request * 10_000
        if request != 9:
            log.append({**base, "ts": asked, "model_version": "1", "features": {"a": request}})
        for item in range(3):
            event = {**base, "item_id": item, "page_id": 2}
            shown = {**event, "event_type": "impression", "event_id": f"i{request}-{item}", "ts": asked + 5}
            events.append(shown)
            if (request + item) % 4 == 0:
                delay = 20_000 if item else 400_000
                event_id = f"c{request}-{item}"
                events.append({**event, "event_type": "click", "event_id": event_id, "ts": asked + delay})
    ordered = sorted(events, key=lambda event: event["ts"])
    return {
        INFERENCE: [json.dumps(row).encode() for row in log],
        BEHAVIOR: [json.dumps(row).encode() for row in ordered],
    }


@pytest.fixture
def system(dsn: str, tmp_path: Path) -> System:
    return compose(load_settings(), tmp_path, Addresses(postgres_dsn=dsn))


def write_history(system: System, partition: int) -> None:
    with closing(PostgresHistoryManifest(system.postgres)) as manifest:
        operator = HistoryOperator(
            files=ArrowHistoryFiles(HistoryFilesOptions(uri=system.history_uri)),
            manifest=manifest,
            producer=MemoryProducer(MemoryBroker(), max_record_bytes=1 << 20),
            latest_ms=believe,
            options=HistoryOptions(),
        )
        records = traffic(partition)
        for topic, values in records.items():
            operator.apply(record_batch(topic, partition, values, first_offset=0, timestamp_ms=1))
        commit(system, "history", partition, operator, {BEHAVIOR: len(records[BEHAVIOR])})


def run_samples(system: System, partition: int, *, but_last: int = 0, records_read: int = 9, say: int = 9) -> None:
    """`records_read`: of the inference log, in the end; `say`: the position that is committed."""
    operator = SampleOperator(system.samples, ledger=PostgresSampleLedger(partition=partition), latest_ms=believe)
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        operator.restore(cursor, committed={})
    records = traffic(partition)
    read = records[INFERENCE][:records_read]
    operator.apply(record_batch(INFERENCE, partition, read, first_offset=0, timestamp_ms=1))
    values = records[BEHAVIOR][: len(records[BEHAVIOR]) - but_last]
    for first in range(0, len(values), 8):
        some = values[first : first + 8]
        operator.apply(record_batch(BEHAVIOR, partition, some, first_offset=first, timestamp_ms=1))
        operator.advance(watermark_ms=json.loads(some[-1])["ts"] - 5_000)
        commit(system, "samples", partition, operator, {BEHAVIOR: first + len(some), INFERENCE: say})
    operator.advance(watermark_ms=START_MS + 3_600_000)
    commit(system, "samples", partition, operator, {BEHAVIOR: len(values), INFERENCE: say})


def commit(system: System, task: str, partition: int, operator, offsets: dict[str, int]) -> None:
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        operator.prepare([operator])
        operator.write(cursor)
        at = Committed(next_offset=offsets, watermark_ms=START_MS + 3_600_000)
        write_committed(cursor, task=task, partition=partition, at=at, lag=0, counts={})
    operator.committed()


def verify(system: System):
    seen: list[tuple[int, int]] = []
    found = verify_samples(system, **SPAN, progress=lambda *at: seen.append(at))
    assert seen[-1] == (2, 2)
    return found


def change(system: System, statement: str) -> None:
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        cursor.execute(statement)
        assert cursor.rowcount == 1


def test_what_the_stage_wrote_is_what_the_history_gives_and_a_change_of_it_is_found(system, tmp_path, ray_local):
    for partition in (0, 1):
        write_history(system, partition)
        run_samples(system, partition)
    assert PostgresSampleStore(system.postgres).stats().corrections > 0
    found = verify(system)
    assert (found.compared, found.equal, found.causes) == (54, 54, {})
    done = stitch_into(system, str(tmp_path / "out"), **SPAN, progress=lambda done, total: None)
    rows = ds.dataset(tmp_path / "out", format="parquet", exclude_invalid_files=False).to_table().to_pylist()
    assert (done.rows, done.to_seq, len(rows)) == (54, None, 54)
    stats = PostgresSampleStore(system.postgres).stats()
    assert sum(row["label"] for row in rows) == stats.positives

    change(system, "DELETE FROM samples.revisions WHERE request_id = 'p0-1' AND item_id = 1")
    change(
        system,
        "UPDATE samples.revisions SET label = 1, labels = '{\"click\": 1}' WHERE request_id = 'p1-3' AND item_id = 2",
    )
    found = verify(system)
    assert found.causes == {"missing": {"unexplained": 1}, "label": {"unexplained": 1}}
    assert {(row["kind"], row["request_id"]) for row in found.examples} == {("missing", "p0-1"), ("label", "p1-3")}


def test_who_is_behind_is_told(system, ray_local):
    for partition in (0, 1):
        write_history(system, partition)
    run_samples(system, 0)
    found = verify(system)
    assert found.causes == {"missing": {"not read by the sample stage yet": 27}}


def test_a_miss_is_explained_as_long_as_its_record_is_not_read_and_no_longer(system, ray_local):
    for partition, say in ((0, 7), (1, 9)):
        write_history(system, partition)
        run_samples(system, partition, records_read=7, say=say)
    found = verify(system)
    not_read = "a miss: its inference record is not read by the sample stage yet"
    assert found.causes == {"missing": {not_read: 6, "unexplained": 6}}
    assert {row["request_id"] for row in found.examples if row["cause"] == "unexplained"} == {"p1-7", "p1-8"}
