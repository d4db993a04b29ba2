"""Every manifest of the history, and every place its files may lie, keep these laws."""

from __future__ import annotations

import datetime as dt
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.events import SCHEMAS
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import MemoryHistoryManifest, PostgresHistoryManifest
from rtrec_ray.stores.history.store import HOUR_MS, History, HistoryFile, HistoryManifest, arrow_schema, schema
from rtrec_ray.stores.history.tidy import TidyOptions, groups, tidy

NOON_MS = 1_700_000_000_000 // HOUR_MS * HOUR_MS

Add = Callable[[Sequence[HistoryFile]], None]


def _file(name: str, *, topic: str = "behavior", at_ms: int = NOON_MS) -> HistoryFile:
    return HistoryFile(
        path=name,
        topic=topic,
        partition=0,
        event_date=dt.date(2023, 11, 14),
        event_hour=22,
        row_count=10,
        byte_count=100,
        min_offset=1,
        max_offset=9,
        min_ts_ms=at_ms,
        max_ts_ms=at_ms + 1_000,
    )


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def manifest(request: pytest.FixtureRequest) -> Iterator[HistoryManifest]:
    if request.param == "memory":
        yield MemoryHistoryManifest()
        return
    with closing(PostgresHistoryManifest(PostgresOptions(dsn=request.getfixturevalue("dsn")))) as made:
        yield made


@pytest.fixture
def add(manifest: HistoryManifest, request: pytest.FixtureRequest) -> Add:
    def commit(files: Sequence[HistoryFile]) -> None:
        with _open_transaction(manifest, request) as cur:
            manifest.add(cur, files)

    return commit


@contextmanager
def _open_transaction(manifest: HistoryManifest, request: pytest.FixtureRequest) -> Iterator[Any]:
    if isinstance(manifest, MemoryHistoryManifest):
        yield None
        return
    with (
        closing(connect(PostgresOptions(dsn=request.getfixturevalue("dsn")))) as connection,
        transaction(connection) as cur,
    ):
        yield cur


def test_files_come_back_as_they_were_added_in_order_of_time(manifest: HistoryManifest, add: Add) -> None:
    late, early = _file("late", at_ms=NOON_MS + 5_000), _file("early")
    add([late])
    add([early, _file("other", topic="item")])
    assert manifest.files("behavior") == (early, late)
    assert manifest.files("profile") == ()


def test_files_are_found_by_the_half_open_interval_of_their_times(manifest: HistoryManifest, add: Add) -> None:
    one = _file("one")
    add([one])
    assert manifest.files("behavior", from_ms=one.max_ts_ms) == (one,)
    assert manifest.files("behavior", from_ms=one.max_ts_ms + 1) == ()
    assert manifest.files("behavior", to_ms=one.min_ts_ms) == ()
    assert manifest.files("behavior", to_ms=one.min_ts_ms + 1) == (one,)


def test_a_replaced_file_is_not_read_but_known_until_it_is_forgotten(manifest: HistoryManifest, add: Add) -> None:
    small, whole = [_file("1"), _file("2")], [_file("whole")]
    add(small)
    assert manifest.replace(small, whole)
    assert manifest.files("behavior") == tuple(whole)
    assert manifest.known(["1", "2", "whole", "orphan"]) == {"1", "2", "whole"}
    assert manifest.replaced(grace_s=60.0) == ()
    assert sorted(manifest.replaced(grace_s=-1.0)) == ["1", "2"]
    manifest.forget(["1", "whole"])
    assert manifest.known(["1", "2", "whole"]) == {"2", "whole"}


def test_of_two_compactions_of_the_same_files_one_does_nothing(manifest: HistoryManifest, add: Add) -> None:
    small = [_file("1"), _file("2")]
    add(small)
    assert manifest.replace(small, [_file("whole")])
    assert not manifest.replace([*small[1:], _file("whole")], [_file("again")])
    assert manifest.files("behavior") == (_file("whole"),)


def test_the_summary_adds_up_what_is_visible(manifest: HistoryManifest, add: Add) -> None:
    add([_file("1"), replace(_file("2"), max_ts_ms=NOON_MS + 7_000), _file("3", topic="item")])
    item, behavior = sorted(manifest.summary(), key=lambda one: one.files)
    assert (behavior.topic, behavior.files, behavior.rows, behavior.bytes) == ("behavior", 2, 20, 200)
    assert (behavior.min_ts_ms, behavior.max_ts_ms) == (NOON_MS, NOON_MS + 7_000)
    assert item.topic == "item"


@pytest.fixture(params=["path", "file", "mock"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> ArrowHistoryFiles:
    uri = {"path": str(tmp_path / "a folder"), "file": f"file://{tmp_path}/h/", "mock": "mock:///bucket/h"}
    return ArrowHistoryFiles(HistoryFilesOptions(uri=uri[request.param]))


def _items(*times_ms: int) -> pl.DataFrame:
    count = len(times_ms)
    own = {name: [None] * count for name in SCHEMAS["item"]} | {"item_id": list(range(count)), "ts": list(times_ms)}
    origin = {
        "partition": [3] * count,
        "offset": list(range(count)),
        "kafka_ts": [-1] * count,
        "raw": [b"\xff{"] * count,
    }
    return pl.DataFrame({**own, **origin}, schema=schema("item"))


def test_each_event_hour_has_a_file_of_its_own_also_for_times_no_date_can_name(files: ArrowHistoryFiles) -> None:
    times = [NOON_MS, NOON_MS + HOUR_MS, NOON_MS - 1, -(2**63), 0, NOON_MS + 1, 2**62]
    written = files.write("item", _items(*times), partition=3)
    assert [(str(file.event_date), file.event_hour, file.row_count) for file in written] == [
        ("1970-01-01", 0, 2),
        ("2023-11-14", 21, 1),
        ("2023-11-14", 22, 2),
        ("2023-11-14", 23, 1),
        ("9999-12-31", 23, 1),
    ]
    assert written[2].path.startswith("topic=item/date=2023-11-14/hour=22/p003-000000000000-000000000005-")
    assert (written[0].min_ts_ms, written[0].max_ts_ms) == (-(2**63), 0)
    assert sorted(files.paths("item")) == sorted(file.path for file in written)


def test_what_is_read_is_what_was_written(files: ArrowHistoryFiles) -> None:
    frame = _items(NOON_MS, 5, NOON_MS + HOUR_MS)
    written = files.write("item", frame, partition=3)
    dataset = files.open("item", written)
    assert dataset.schema == arrow_schema("item")
    assert pl.DataFrame(pl.from_arrow(dataset.to_table())).sort("offset").equals(frame)
    assert files.open("item", []).to_table().schema == arrow_schema("item")


def test_writing_the_same_twice_makes_two_files_and_removing_one_leaves_the_other(files: ArrowHistoryFiles) -> None:
    (first,) = files.write("item", _items(NOON_MS), partition=0)
    (second,) = files.write("item", _items(NOON_MS), partition=0)
    assert first.path != second.path
    files.remove([first.path, "topic=item/never-was.parquet"])
    assert list(files.paths("item")) == [second.path]
    assert list(files.paths("profile")) == []


def test_the_history_reads_only_what_the_manifest_names_and_only_the_times_asked_for(
    files: ArrowHistoryFiles, manifest: HistoryManifest, add: Add
) -> None:
    add(files.write("item", _items(NOON_MS, NOON_MS + 1, NOON_MS + HOUR_MS, -5), partition=0))
    files.write("item", _items(NOON_MS), partition=0)  # an orphan
    history = History(files, manifest)
    found = pl.concat(history.scan("item", columns=["ts", "raw"]))
    assert sorted(found["ts"]) == [-5, NOON_MS, NOON_MS + 1, NOON_MS + HOUR_MS]
    assert found.columns == ["ts", "raw"]
    within = pl.concat(history.scan("item", from_ms=NOON_MS + 1, to_ms=NOON_MS + HOUR_MS))
    assert within["ts"].to_list() == [NOON_MS + 1]
    up_to = pl.concat(history.scan("item", to_ms=NOON_MS + 1))
    assert sorted(up_to["ts"]) == [-5, NOON_MS]
    assert list(history.scan("profile")) == []


def test_tidying_leaves_the_same_records_in_fewer_files(
    files: ArrowHistoryFiles, manifest: HistoryManifest, add: Add
) -> None:
    for number in range(5):
        add(files.write("item", _items(NOON_MS + number, NOON_MS + HOUR_MS), partition=0))
    add(files.write("item", _items(NOON_MS), partition=1))
    files.write("item", _items(NOON_MS), partition=0)  # an orphan
    history = History(files, manifest)
    before = sorted(row for frame in history.scan("item") for row in frame.rows())
    careful = tidy(files, manifest, TidyOptions(min_files=5))
    assert (careful.replaced, careful.removed, careful.orphans) == (10, 0, 0)
    assert sorted(row for frame in history.scan("item") for row in frame.rows()) == before
    assert sorted((file.event_hour, file.partition) for file in history.files("item")) == [(22, 0), (22, 1), (23, 0)]
    hasty = tidy(files, manifest, TidyOptions(min_files=5, readers_s=-1.0, orphans_s=0.0))
    assert (hasty.replaced, hasty.removed, hasty.orphans) == (0, 10, 1)
    assert sorted(files.paths("item")) == sorted(file.path for file in history.files("item"))
    assert sorted(row for frame in history.scan("item") for row in frame.rows()) == before


def test_a_file_that_may_be_waiting_for_its_commit_is_no_orphan(files: ArrowHistoryFiles) -> None:
    written = files.write("item", _items(NOON_MS), partition=0)
    assert list(files.paths("item", min_age_s=3_600.0)) == []
    assert tidy(files, MemoryHistoryManifest(), TidyOptions()).orphans == 0
    assert list(files.paths("item")) == [written[0].path]


def test_only_small_files_of_one_hour_are_put_together_and_not_too_many_at_once() -> None:
    small = [replace(_file(str(number)), min_offset=number) for number in range(6)]
    large = replace(_file("large"), byte_count=1_000)
    other = replace(_file("other"), partition=1)
    options = TidyOptions(min_files=2, small_bytes=1_000, read_bytes=400)
    assert groups([*small, large, other], options) == [small[:4], small[4:]]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path / "taken")))
    with pytest.raises(StoreUnavailable, match=r"the history at .*taken cannot be used"):
        files.write("item", _items(NOON_MS), partition=0)


def test_a_full_disk_is_named_and_no_half_file_is_left(tmp_path: Path) -> None:
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the kernel's word for it is another, the rest is the same
    try:
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            files.write("item", _items(NOON_MS), partition=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(files.paths("item")) == []


def test_a_file_that_vanished_is_named_when_it_is_read(tmp_path: Path) -> None:
    files, manifest = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path))), MemoryHistoryManifest()
    written = files.write("item", _items(NOON_MS), partition=0)
    manifest.add(None, written)
    files.remove([written[0].path])
    with pytest.raises(StoreUnavailable, match=r"p000-.*\.parquet"):
        list(History(files, manifest).scan("item"))


def test_a_scheme_that_nobody_knows_is_named() -> None:
    with pytest.raises(StoreUnavailable, match="ftp://nowhere"):
        ArrowHistoryFiles(HistoryFilesOptions(uri="ftp://nowhere/h"))
