"""An export is whole or not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.dataset as ds
import pytest

from rtrec_ray.errors import AsOfUnknown, ExportRefused, StoreUnavailable
from rtrec_ray.stores.samples.export import export_samples
from rtrec_ray.stores.samples.scan import MemorySampleScan, ScanAsk, ScanPart, ScanPlan
from rtrec_ray.stores.samples.store import MemorySampleStore
from tests.scanned_samples import DAY_MS, FIRST_MS, MemoryPuts, clicked, sample

WHOLE = ScanAsk(from_ms=FIRST_MS, to_ms=FIRST_MS + 3 * DAY_MS)


class Breaking(MemorySampleScan):
    """A scan whose reader dies at the third part, as long as `broken`."""

    broken = True

    def read(self, plan: ScanPlan, part: ScanPart, /) -> pl.DataFrame:
        """See SampleScan."""
        if self.broken and part == plan.parts[2]:
            raise StoreUnavailable("PostgreSQL does not answer")
        return super().read(plan, part)


@pytest.fixture
def store() -> MemorySampleStore:
    store = MemorySampleStore()
    rows = [sample(f"r{n}", ts=FIRST_MS + n * DAY_MS // 10) for n in range(30)]
    MemoryPuts(store).put(rows)
    MemoryPuts(store).put([clicked(row) for row in rows[::7]])
    return store


def export(store: MemorySampleStore, out: Path, ask: ScanAsk = WHOLE, scan: MemorySampleScan | None = None):
    seen: list[tuple[int, int]] = []
    scan = scan or MemorySampleScan(store, part_rows=4)
    done = export_samples(scan, ask, str(out), readers=3, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1]
    return done


def rows_in(out: Path) -> list[dict]:
    found = ds.dataset(out, format="parquet", exclude_invalid_files=False).to_table().to_pylist()
    return sorted(found, key=lambda row: row["commit_seq"])


def test_an_export_is_the_scan_in_files_by_event_day_that_its_manifest_names(store, tmp_path):
    done = export(store, tmp_path / "out")
    wanted = [row for frame in store.current() for row in frame.rows(named=True)]
    assert rows_in(tmp_path / "out") == sorted(wanted, key=lambda row: row["commit_seq"])
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest == json.loads(json.dumps(done.as_dict()))
    assert (manifest["rows"], manifest["to_seq"]) == (30, 35)
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*.parquet")}
    assert {file["path"]: file["bytes"] for file in manifest["files"]} == {
        name: path.stat().st_size for name, path in found.items()
    }
    for name, path in found.items():
        days = {row["event_time_ms"] // DAY_MS for row in ds.dataset(path).to_table().to_pylist()}
        assert len(days) == 1, name
    assert len({name.partition("/")[0] for name in found}) == 3


def test_only_the_columns_asked_for_are_written(store, tmp_path):
    export(store, tmp_path, replace(WHOLE, columns=("commit_seq", "label")))
    assert rows_in(tmp_path)[0].keys() == {"commit_seq", "label"}


def test_an_export_as_of_a_number_is_the_table_as_it_was(store, tmp_path):
    export(store, tmp_path, replace(WHOLE, as_of_seq=30))
    assert sum(row["label"] for row in rows_in(tmp_path)) == 0


def test_an_export_as_of_what_nobody_knows_leaves_nothing_behind(store, tmp_path):
    with pytest.raises(AsOfUnknown):
        export_samples(
            MemorySampleScan(store), replace(WHOLE, as_of_seq=36), str(tmp_path), readers=1, progress=lambda *at: None
        )
    assert [*tmp_path.iterdir()] == []


def test_an_export_that_broke_off_shows_nothing_and_is_begun_anew(store, tmp_path):
    scan = Breaking(store, part_rows=4)
    with pytest.raises(StoreUnavailable):
        export(store, tmp_path, scan=scan)
    assert {path.name for path in tmp_path.iterdir()} == {"_unfinished"}
    scan.broken = False
    MemoryPuts(store).put([sample("more", ts=FIRST_MS)])
    assert export(store, tmp_path, scan=scan).rows == 31
    assert len(rows_in(tmp_path)) == 31
    assert not (tmp_path / "_unfinished").exists()


def test_one_that_was_killed_while_it_gave_the_files_their_names_is_begun_anew(store, tmp_path):
    export(store, tmp_path)
    # As if the kill came before the manifest: every file has its name, and the folder of the unfinished is there.
    (tmp_path / "_manifest.json").unlink()
    (tmp_path / "_unfinished").mkdir()
    (first, *_) = tmp_path.rglob("part-*.parquet")
    first.rename(first.with_name("part-99999.parquet"))  # of parts that were cut otherwise
    MemoryPuts(store).put([clicked(clicked(sample("r0", ts=FIRST_MS)))])
    assert export(store, tmp_path).to_seq == 36
    assert len(rows_in(tmp_path)) == 30


def test_what_lies_in_the_folder_already_is_not_touched(store, tmp_path):
    export(store, tmp_path / "twice")
    with pytest.raises(ExportRefused, match="a finished export"):
        export(store, tmp_path / "twice")
    assert len(rows_in(tmp_path / "twice")) == 30
    (tmp_path / "other" / "event_date=2024-01-01").mkdir(parents=True)
    with pytest.raises(ExportRefused, match="something else"):
        export(store, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["event_date=2024-01-01"]


def test_a_range_without_samples_is_an_export_without_files(store, tmp_path):
    assert export(store, tmp_path, replace(WHOLE, from_ms=0, to_ms=5)).files == ()
    assert json.loads((tmp_path / "_manifest.json").read_text())["rows"] == 0
