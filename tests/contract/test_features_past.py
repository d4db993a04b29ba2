"""Events of the past with what takes them back, and point-in-time values, out of a history of several days."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow.compute as pc
import pytest

from rtrec_ray.clock import LAST_MS
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.events import PROFILE_SCHEMA, RETRACT
from rtrec_ray.features.as_of import as_of, fields_of, schema_of, value_of
from rtrec_ray.features.counted import counted, taken_back
from rtrec_ray.features.daily import DAY_MS
from rtrec_ray.features.definition import Definitions, FeatureView
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.seen import MINUTE_MS
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.features.as_of import AsOfReader, unknown_yet
from rtrec_ray.stores.features.past import HistoryPast
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import MemoryHistoryManifest
from rtrec_ray.stores.history.store import HOUR_MS, History, HistoryFile
from rtrec_ray.stores.row_files import check_columns, read_rows, write_rows
from rtrec_ray.stores.static.memory import MemoryStaticFeatures
from rtrec_ray.stores.static.postgres import PostgresStaticFeatures
from rtrec_ray.stores.static.run import HereCounting, Run, RunOrder
from rtrec_ray.stores.static.store import StaticFeatures
from tests.daily_events import DAY_START_MS, day, event, random_events, retraction, write

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
DAYS = 4


class WatchedHistory(History):
    """A history that tells which files were looked through for retractions."""

    looked: Sequence[HistoryFile] = ()

    def frame(
        self, topic: str, files: Sequence[HistoryFile], *, columns: Sequence[str], where: pc.Expression
    ) -> pl.DataFrame:
        self.looked = files
        return super().frame(topic, files, columns=columns, where=where)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def noted(request: pytest.FixtureRequest) -> Iterator[StaticFeatures]:
    if request.param == "memory":
        yield MemoryStaticFeatures()
        return
    with closing(PostgresStaticFeatures(PostgresOptions(dsn=request.getfixturevalue("dsn")))) as made:
        yield made


@pytest.fixture
def manifest() -> MemoryHistoryManifest:
    return MemoryHistoryManifest()


@pytest.fixture
def history(tmp_path: Path, manifest: MemoryHistoryManifest) -> WatchedHistory:
    return WatchedHistory(ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path))), manifest)


def standing(events: pl.DataFrame) -> list[tuple[Any, ...]]:
    """The events that count, by partition and offset."""
    retraction = pl.col("event_type") == RETRACT
    found = counted(events.filter(~retraction), taken_back(events.filter(retraction)))
    return sorted(found.select("partition", "offset").rows())


@pytest.mark.parametrize("keep_days", [DAYS, 2])
def test_what_is_noted_of_retractions_is_as_good_as_looking_through_all_later_history(
    tmp_path: Path, manifest: MemoryHistoryManifest, history: WatchedHistory, noted: StaticFeatures, keep_days: int
) -> None:
    events = random_events(1_200, days=DAYS, seed=3)
    cut = len(events) * 3 // 4
    assert noted.noted_upto() == {}
    manifest.add(None, write(tmp_path, events[:cut]))
    run = Run(history=history, store=noted, counting=HereCounting(history, noted), keep_days=keep_days)
    run.correct(RunOrder(owner="test", complete=day(DAYS - 2)))
    manifest.add(None, write(tmp_path, events[cut:], first=cut))
    plain, bounded = HistoryPast(history), HistoryPast(history, noted=noted)
    gone = 0
    for from_ms in range(DAY_START_MS, DAY_START_MS + DAYS * DAY_MS, 4 * HOUR_MS):
        span = {"from_ms": from_ms, "to_ms": from_ms + 4 * HOUR_MS}
        whole = pl.concat(plain.behavior(**span))
        assert standing(pl.concat(bounded.behavior(**span))) == standing(whole), from_ms
        if from_ms >= DAY_START_MS + (DAYS - 1 - keep_days) * DAY_MS:  # the newest counted day is the last but one
            assert all(file.max_offset >= noted.noted_upto()[file.partition] for file in history.looked)
        gone += len(standing(whole.filter(pl.col("event_type") != RETRACT))) - len(standing(whole))
    assert gone > 20


def test_a_retraction_below_an_offset_is_there_as_it_came_and_files_behind_it_are_not_looked_at(
    tmp_path: Path, manifest: MemoryHistoryManifest, history: WatchedHistory
) -> None:
    first, second = event(1, "click", at_ms=0, user=2), event(2, "click", at_ms=0, user=2)
    manifest.add(None, write(tmp_path, [first, second]))
    manifest.add(None, write(tmp_path, [retraction(first, after_ms=HOUR_MS)], first=2))
    manifest.add(None, write(tmp_path, [retraction(second, after_ms=2 * HOUR_MS)], first=3))
    (found,) = HistoryPast(history).below({0: 3}, from_ms=DAY_START_MS, to_ms=DAY_START_MS + 60_000)
    assert sorted(found["offset"]) == [0, 1, 2]
    assert [file.min_offset for file in history.looked] == [0, 2]


def test_a_stretch_of_the_past_comes_some_minutes_after_another_each_with_the_retractions_of_its_events(
    tmp_path: Path, manifest: MemoryHistoryManifest
) -> None:
    history = History(ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path))), manifest, portion_rows=8)
    sent = [event(number, "click", at_ms=number * 20_000, user=2) for number in range(30)]
    manifest.add(None, write(tmp_path, sent))
    manifest.add(None, write(tmp_path, [retraction(each, after_ms=HOUR_MS) for each in sent[::4]], first=30))
    frames = list(HistoryPast(history).behavior(from_ms=DAY_START_MS, to_ms=DAY_START_MS + 10 * MINUTE_MS))
    numbers = [frame.filter(pl.col("event_type") != RETRACT)["offset"].sort().to_list() for frame in frames]
    assert numbers == [[*range(start, start + 6)] for start in range(0, 30, 6)], "two minutes have 6 events, three 9"
    gone = [sorted(taken_back(frame.filter(pl.col("event_type") == RETRACT))["event_id"]) for frame in frames]
    assert gone == [["e0", "e4"], ["e8"], ["e12", "e16"], ["e20"], ["e24", "e28"]]


# --- point-in-time values ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Here:
    """Definitions, and nobody's profile but those of even users."""

    definitions: Definitions = DEFINITIONS

    def profile_versions(self, user_ids: list[int]) -> pl.DataFrame:
        """See Versions."""
        rows = [{"user_id": user, "ts": 0, "country": "CN", "gender": "f"} for user in user_ids if user % 2 == 0]
        return pl.DataFrame(rows, schema=PROFILE_SCHEMA)


def dense_events(count: int) -> list[dict[str, Any]]:
    """Views and clicks of half a day, some twice, some taken back soon or long after."""
    rng, found = random.Random(5), []
    for number in range(count):
        at_ms = round(number / count * DAY_MS / 2)
        kind, user, item = rng.choice(["view", "click", "search"]), rng.randrange(6), rng.randrange(9)
        made = event(number, kind, at_ms=at_ms, user=user, item=item)
        found.append({**made, "item_type": "ad", "page_id": 1, "dwell_ms": 3, "query": rng.choice(["a", "b"])})
        if rng.random() < 0.1:
            found.append(found[-1])
        if rng.random() < 0.1:
            found.append(retraction(rng.choice(found[-20:]), after_ms=rng.choice([0, 30_000, HOUR_MS])))
    return [each for each in found if each["event_type"] != "retract" or '"retract"' not in each["retracts"]]


def questions(view: FeatureView) -> pl.DataFrame:
    parts = {"user_id": "3", "category_id": "1", "item_type": "ad", "country": "CN", "gender": "f", "page_id": "1"}
    keys = ["|".join(parts.get(name, "") for name in form) or "all" for form in view.keys]
    rng = random.Random(6)
    times = [DAY_START_MS + rng.randrange(DAY_MS // 2) for _ in range(300)]
    rows = [{"key": rng.choice(keys), "time_ms": time_ms, "mine": n} for n, time_ms in enumerate(times)]
    return pl.DataFrame(rows)


@pytest.mark.parametrize("view", DEFINITIONS.views, ids=lambda view: view.name)
def test_values_read_a_stretch_at_a_time_are_those_over_all_events_at_once(
    tmp_path: Path, manifest: MemoryHistoryManifest, history: History, view: FeatureView
) -> None:
    manifest.add(None, write(tmp_path, dense_events(6_000)))
    past, rows = HistoryPast(history), questions(view)
    every = past.until(from_ms=0, to_ms=DAY_START_MS + 9 * DAY_MS, columns=fields_of(view))
    profiles = Here().profile_versions(list(range(6)))
    told: list[tuple[int, int]] = []
    reader = AsOfReader(store=Here(), past=past, events=500)
    found = reader.read(view.name, rows, progress=lambda done, total: told.append((done, total)))
    whole = as_of(view, rows, every, profiles, tile_ms=DEFINITIONS.tile_ms)
    assert found.to_dicts() == whole.to_dicts()
    assert found.height - found[view.name].null_count() > 100
    assert (told[0], told[-1], len(told) > 5) == ((0, 300), (300, 300), True)


def test_no_rows_give_no_rows_with_the_views_columns(history: History) -> None:
    view = DEFINITIONS.views[0]
    none = pl.DataFrame(schema={"key": pl.String, "time_ms": pl.Int64})
    found = AsOfReader(store=Here(), past=HistoryPast(history)).read(view.name, none)
    assert found.schema == pl.Schema({**none.schema, **schema_of(view)})


def test_times_that_are_ages_apart_are_no_more_work_than_the_history_between_them(
    manifest: MemoryHistoryManifest, history: History, tmp_path: Path
) -> None:
    manifest.add(None, write(tmp_path, dense_events(600)))
    rows = pl.DataFrame({"key": ["all"] * 3, "time_ms": [0, DAY_START_MS + HOUR_MS, LAST_MS]})
    found = AsOfReader(store=Here(), past=HistoryPast(history)).read("top_queries_30m", rows)
    assert found["top_queries_30m"].to_list() == [None, True, None]


def test_a_row_without_a_key_or_a_time_stays_and_has_no_value(
    tmp_path: Path, manifest: MemoryHistoryManifest, history: History
) -> None:
    manifest.add(None, write(tmp_path, [{**event(1, "view", at_ms=0, user=3), "item_type": "ad"}]))
    rows = pl.DataFrame({"key": ["3", None, "3"], "time_ms": [None, DAY_START_MS + 10_000, DAY_START_MS + 10_000]})
    found = AsOfReader(store=Here(), past=HistoryPast(history)).read("user_browse_5m", rows)
    assert found.select("key", "time_ms").equals(rows)
    assert found["user_browse_5m.view"].to_list() == [None, None, 1]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_files_of_every_format_come_back_with_the_values(
    tmp_path: Path, manifest: MemoryHistoryManifest, history: History, suffix: str
) -> None:
    view = DEFINITIONS.view("user_browse_5m")
    manifest.add(None, write(tmp_path / "history", dense_events(600)))
    there = History(ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path / "history"))), manifest)
    source, out = tmp_path / f"rows{suffix}", tmp_path / f"out{suffix}"
    # A number as the key, as a file of user ids has it.
    asked = questions(view).with_columns(key=pl.lit(3))
    {".parquet": asked.write_parquet, ".jsonl": asked.write_ndjson, ".csv": asked.write_csv}[suffix](source)
    rows = read_rows(source, view)
    found = AsOfReader(store=Here(), past=HistoryPast(there)).read(view.name, rows)
    write_rows(out, found, view)
    values = [value_of(view, row) for row in found.to_dicts()]
    if suffix == ".jsonl":
        again = [orjson.loads(line)["user_browse_5m"] for line in out.read_bytes().splitlines()]
        assert again == values
    else:
        back = pl.read_parquet(out) if suffix == ".parquet" else pl.read_csv(out)
        views = [None if value is None else value["view"] for value in values]
        assert back["user_browse_5m.view"].to_list() == views
        assert back["mine"].to_list() == list(range(300))
        lists = [None if value is None else value["last_items"] for value in values]
        read = back["user_browse_5m.last_items"].to_list()
        assert (read if suffix == ".parquet" else [each and orjson.loads(each) for each in read]) == lists
    assert any(value is not None for value in values)


def test_keys_that_are_floats_as_some_are_missing_are_the_integers_that_they_hold(tmp_path: Path) -> None:
    view, source = DEFINITIONS.views[0], tmp_path / "rows.parquet"
    pl.DataFrame({"key": [7.0, None, float("nan")], "time_ms": [1.0, 2.0, None]}).write_parquet(source)
    rows = read_rows(source, view)
    assert rows.rows() == [("7", 1), (None, 2), (None, None)]
    assert dict(rows.schema) == {"key": pl.String, "time_ms": pl.Int64}
    for key, time_ms, said in (
        (1.5, 1.0, "has key 1.5"),
        (1.0, 1.5, "has time_ms 1.5"),
        (float("inf"), 1.0, "key inf"),
    ):
        pl.DataFrame({"key": [key], "time_ms": [time_ms]}).write_parquet(source)
        with pytest.raises(ConfigInvalid, match=said):
            read_rows(source, view)


CANNOT = {
    *(("csv", kind) for kind in (pl.List, pl.Struct, pl.Binary, pl.Duration)),
    *(("jsonl", kind) for kind in (pl.Binary, pl.Decimal, pl.Duration)),
}


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "column",
    [
        pl.Series([[1]]),
        pl.Series([{"a": 1}]),
        pl.Series([b"x"]),
        pl.Series([1], dtype=pl.Decimal(10, 2)),
        pl.Series([1], dtype=pl.Duration("ms")),
        pl.Series([1], dtype=pl.Datetime("ms")),
        pl.Series([1], dtype=pl.Date),
        pl.Series(["a"], dtype=pl.Categorical),
        pl.Series([None], dtype=pl.Null),
    ],
    ids=lambda column: str(column.dtype),
)
def test_what_a_file_cannot_have_is_said_before_it_is_written_and_the_rest_can(tmp_path: Path, end, column) -> None:
    view, out = DEFINITIONS.views[0], tmp_path / f"out.{end}"
    values = {name: pl.Series([None], dtype=kind) for name, kind in schema_of(view).items()}
    rows = pl.DataFrame({"key": ["1"], "time_ms": [1], "mine": column, **values})
    if (end, column.dtype.base_type()) in CANNOT:
        with pytest.raises(ConfigInvalid, match="cannot have the column mine"):
            check_columns(out, rows)
        with pytest.raises(ConfigInvalid, match="cannot be written"):
            write_rows(out, rows, view)
        assert list(tmp_path.iterdir()) == [], "nothing is left of it"
    else:
        check_columns(out, rows.select("key", "time_ms", "mine"))
        write_rows(out, rows, view)
        assert out.exists()


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    view = DEFINITIONS.views[0]
    table = pl.DataFrame({"key": ["1"], "time_ms": [1]})
    for name, rows, said in (
        ("rows.txt", table, "ends with none of"),
        ("rows.csv", table.drop("time_ms"), "no column time_ms"),
        ("rows.csv", table.with_columns(**{f"{view.name}.view": pl.lit(1)}), "already"),
        ("rows.csv", table.with_columns(time_ms=pl.lit("soon")), "cannot be read"),
        ("rows.csv", table.with_columns(time_ms=pl.lit(2**63 - 1)), "time_ms 9223372036854775807"),
        ("rows.csv", table.with_columns(time_ms=pl.lit(-1)), "time_ms -1"),
        ("rows.csv", table.with_columns(time_ms=pl.lit(2**63, dtype=pl.UInt64)), "cannot be read"),
    ):
        rows.write_csv(tmp_path / name)
        with pytest.raises(ConfigInvalid, match=said):
            read_rows(tmp_path / name, view)


def test_times_ahead_of_the_history_are_counted() -> None:
    assert unknown_yet([1, 2, 3], watermark_ms=2) == 1
    assert unknown_yet([1, 2], watermark_ms=None) == 2
