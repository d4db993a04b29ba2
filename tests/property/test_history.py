"""Whatever comes, in whatever portions, with a crash at any point: the history holds each accepted record once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.history import HistoryOperator, HistoryOptions
from rtrec_ray.events import BEHAVIOR, ITEM
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode
from rtrec_ray.kafka.deadletter import decode_dead
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import MemoryHistoryManifest
from rtrec_ray.stores.history.store import HOUR_MS, History, HistoryFile

START_MS = 1_700_000_000_000 // HOUR_MS * HOUR_MS
FAR_MS = START_MS + 1_000 * HOUR_MS

# Few hours and few ids, so that records meet in the same file; some late, some ahead of the clock, some broken.
_times = st.integers(0, 3 * HOUR_MS).map(lambda ms: START_MS + ms)
_behavior = st.builds(
    lambda ts, n, extra: orjson.dumps(
        {"event_id": f"e{n}", "event_type": "view", "ts": ts, "user_id": n, **({"unknown": extra} if extra else {})}
    ),
    _times,
    st.integers(0, 3),
    st.text(max_size=3),
)
_item = st.builds(lambda ts, n: orjson.dumps({"item_id": n, "ts": ts, "title": "\u2764"}), _times, st.integers(0, 3))
_ahead = orjson.dumps({"item_id": 1, "ts": 1 << 61})
_bad = st.sampled_from([b"", b"{", b"null", b'{"ts": 1}', b"\xff\xfe", None, _ahead])
_records = {BEHAVIOR: st.lists(_behavior | _bad, max_size=12), ITEM: st.lists(_item | _bad, max_size=6)}
_steps = st.lists(st.sampled_from(["read", "read", "prepare", "commit", "crash", "crash after files"]), max_size=12)


class _Run:
    """One partition read by operators that end at any point, its committed positions, and what the reader sees."""

    def __init__(self, records: dict[str, Sequence[bytes | None]], folder: str, *, options: HistoryOptions) -> None:
        self.records = records
        self.broker = MemoryBroker(partitions=1)
        self.manifest = MemoryHistoryManifest()
        self.files = ArrowHistoryFiles(HistoryFilesOptions(uri=folder, threads=1))
        self.options = options
        self.committed = dict.fromkeys(records, 0)
        self.begin()

    def begin(self) -> None:
        self.operator = HistoryOperator(
            files=self.files,
            manifest=self.manifest,
            producer=self.broker.producer(),
            latest_ms=lambda wall_ms: FAR_MS,
            options=self.options,
        )
        self.position = dict(self.operator.restore(None, committed=self.committed))  # type: ignore[arg-type]

    def read(self, count: int) -> None:
        for topic, values in self.records.items():
            at = self.position[topic]
            batch = record_batch(topic, 0, values[at : at + count], first_offset=at, timestamp_ms=77)
            if len(batch):
                self.operator.apply(batch)
                self.position[topic] = batch.next_offset

    def commit(self) -> None:
        self.operator.prepare([self.operator])
        with _no_file_is_written(self.files):
            self.operator.write(None)  # type: ignore[arg-type]
        self.committed = dict(self.position)
        self.operator.committed()

    def crash_after_files(self) -> None:
        self.operator.prepare([self.operator])
        with _nothing_becomes_visible(self.manifest):
            self.operator.write(None)  # type: ignore[arg-type]
        self.begin()

    def step(self, name: str, count: int) -> None:
        match name:
            case "read":
                self.read(count)
            case "prepare":
                self.operator.prepare([self.operator])
            case "commit":
                self.commit()
            case "crash":
                self.begin()
            case _:
                self.crash_after_files()


@contextmanager
def _nothing_becomes_visible(manifest: MemoryHistoryManifest) -> Iterator[None]:
    """A transaction in memory that is rolled back."""
    before: dict[str, HistoryFile] = dict(manifest._files)
    yield
    manifest._files = before


@contextmanager
def _no_file_is_written(files: ArrowHistoryFiles) -> Iterator[None]:
    """A transaction: leases are locked, and the server ends it when it stands still for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write", None)
        yield


def _expected(topic: str, values: Sequence[bytes | None]) -> tuple[list[tuple[Any, ...]], set[bytes]]:
    decoded = decode(record_batch(topic, 0, values, timestamp_ms=77), latest_ms=lambda wall_ms: FAR_MS)
    rows = [(offset, values[offset], ts) for offset, ts in decoded.frame.select("offset", "ts").iter_rows()]
    return rows, {letter.key for letter in decoded.dead}


@given(
    behavior=_records[BEHAVIOR],
    item=_records[ITEM],
    steps=_steps,
    count=st.integers(1, 5),
    max_bytes=st.sampled_from([1, 200, 1 << 20]),
)
def test_the_history_holds_each_accepted_record_once_and_a_letter_for_every_other(
    behavior: list[bytes | None],
    item: list[bytes | None],
    steps: list[str],
    count: int,
    max_bytes: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = HistoryOptions(max_bytes=max_bytes)
        run = _Run({BEHAVIOR: behavior, ITEM: item}, folder, options=options)
        for name in steps:
            run.step(name, count)
        run.begin()
        while any(run.position[topic] < len(values) for topic, values in run.records.items()):
            run.read(count)
        run.commit()
        history, letters = History(run.files, run.manifest), set()
        for topic, values in run.records.items():
            rows, dead = _expected(topic, values)
            found = pl.DataFrame(pl.from_arrow(history.dataset(topic).to_table())).sort("offset")
            assert found.select("offset", "raw", "ts").rows() == rows
            assert set(found["kafka_ts"]) <= {77}
            letters |= dead
            for file in history.files(topic):
                assert file.min_ts_ms // HOUR_MS == file.max_ts_ms // HOUR_MS
        told = {decode_dead(value).key for value in run.broker.records("dead-letter") if value is not None}
        assert told == letters == set(run.broker.keys("dead-letter"))


@given(behavior=_records[BEHAVIOR], count=st.integers(1, 5))
def test_without_a_crash_each_letter_is_sent_once_and_memory_is_bounded(
    behavior: list[bytes | None], count: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = _Run({BEHAVIOR: behavior}, folder, options=HistoryOptions(max_bytes=100))
        while run.position[BEHAVIOR] < len(behavior):
            run.read(count)
            waiting = [frame["raw"].bin.size().sum() for frame in run.operator._waiting.frames.get(BEHAVIOR, [])]
            assert sum(waiting) < 100
            run.operator.advance(watermark_ms=0)
        run.commit()
        run.commit()
        _, dead = _expected(BEHAVIOR, behavior)
        assert sorted(run.broker.keys("dead-letter")) == sorted(dead)
