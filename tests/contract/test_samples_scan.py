"""Every scan of the sample store keeps these laws."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import polars as pl
import pytest

from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.errors import SnapshotEnded
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.samples.columns import KEY, SAMPLE_SCHEMA
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.scan import MemorySampleScan, SampleScan, ScanAsk, ScanPlan, select_schema
from rtrec_ray.stores.samples.scan_postgres import PostgresSampleScan
from rtrec_ray.stores.samples.store import MemorySampleStore, SampleStore
from tests.scanned_samples import DAY_MS, FIRST_MS, MemoryPuts, PostgresPuts, Puts, clicked, sample

WHOLE = ScanAsk(from_ms=0, to_ms=1 << 50)
EMPTIED = "TRUNCATE samples.requests, samples.revisions; DELETE FROM meta.counters"


@dataclass
class Backend:
    scan: SampleScan
    store: SampleStore
    puts: Puts


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer, template_database: str) -> Iterator[PostgresOptions]:
    postgres_server.create_database("contract_scan", template=template_database)
    yield PostgresOptions(dsn=postgres_server.dsn("contract_scan"))
    postgres_server.drop_database("contract_scan")


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "memory":
        store = MemorySampleStore()
        return Backend(MemorySampleScan(store, part_rows=7), store, MemoryPuts(store))
    options = request.getfixturevalue("database")
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        cursor.execute(EMPTIED)
    return Backend(PostgresSampleScan(options, part_blocks=1), PostgresSampleStore(options), PostgresPuts(options))


def parts(scan: SampleScan, plan: ScanPlan) -> list[pl.DataFrame]:
    return [scan.read(plan, part) for part in plan.parts]


def read(backend: Backend, ask: ScanAsk = WHOLE) -> pl.DataFrame:
    with backend.scan.open(ask) as plan:
        return pl.concat([pl.DataFrame(schema=select_schema(ask.columns)), *parts(backend.scan, plan)])


def plain(frames: pl.DataFrame) -> list[dict]:
    """Rows in the ledger's order, JSON read, so that the same objects are equal however they are written."""
    rows = frames.sort("commit_seq").rows(named=True)
    return [row | {name: json.loads(row[name]) for name in ("features", "labels") if name in row} for row in rows]


def current(backend: Backend, **how) -> list[dict]:
    return plain(pl.concat([SAMPLE_SCHEMA.to_frame(), *backend.store.current(**how)]))


def many(count: int, *, start: int = 0) -> list[dict]:
    return [sample(f"r{n // 3}", n % 3, ts=FIRST_MS + n * DAY_MS // 100) for n in range(start, start + count)]


def test_an_empty_store_has_no_rows(backend):
    assert read(backend).height == 0


def test_a_scan_is_the_current_table_whatever_was_corrected(backend):
    rows = [*many(300), sample("o", item_features='{"a": 2}'), sample("n", item_features=None), sample("m", arm="z")]
    backend.puts.put(rows)
    backend.puts.put([clicked(row) for row in rows[::5]])
    found = read(backend)
    assert found.schema == SAMPLE_SCHEMA
    assert plain(found) == current(backend)
    by_key = {row["request_id"]: row for row in plain(found)}
    assert by_key["o"]["features"] == {"a": 2, "b": "x"}
    assert (by_key["m"]["arm"], by_key["n"]["arm"]) == ("z", "a")


def test_a_scan_reads_the_range_of_event_time_and_no_more(backend):
    backend.puts.put(many(300))
    ask = ScanAsk(from_ms=FIRST_MS + 7 * DAY_MS // 100, to_ms=FIRST_MS + 207 * DAY_MS // 100)
    wanted = [row for row in current(backend) if ask.from_ms <= row["event_time_ms"] < ask.to_ms]
    assert len(wanted) == 200
    assert plain(read(backend, ask)) == wanted


def test_what_was_shown_on_another_day_than_asked_for_is_in_its_own_day(backend):
    midnight = FIRST_MS + DAY_MS
    before, after = sample("r", 1, ts=midnight - 1), sample("r", 2, ts=midnight + 5, asked=midnight - 1)
    early = sample("s", 3, ts=midnight - 1, asked=midnight)
    backend.puts.put([before, after, early, sample("t", 4, ts=midnight)])
    backend.puts.put([clicked(after)])
    first, second = ScanAsk(from_ms=FIRST_MS, to_ms=midnight), ScanAsk(from_ms=midnight, to_ms=midnight + DAY_MS)
    assert sorted(read(backend, first)["item_id"]) == [1, 3]
    assert sorted(read(backend, second).select("item_id", "label").rows()) == [(2, 1), (4, 0)]
    both = read(backend, replace(first, to_ms=midnight + DAY_MS))
    assert sorted(both["item_id"]) == [1, 2, 3, 4]


@pytest.mark.parametrize("columns", [("label",), ("features",), ("arm", "item_id"), ("model_version", "commit_seq")])
def test_only_the_columns_asked_for_are_read_in_their_order(backend, columns):
    backend.puts.put(many(30))
    found = read(backend, replace(WHOLE, columns=columns))
    assert found.columns == list(columns)
    assert found.height == 30
    assert found.null_count().sum_horizontal().item() == 0


def test_commits_go_on_under_a_scan_that_does_not_see_them(backend):
    rows = many(200)
    backend.puts.put(rows)
    before = current(backend)
    with backend.scan.open(WHOLE) as plan:
        found = [backend.scan.read(plan, plan.parts[0])]
        backend.puts.put([clicked(row) for row in rows[::3]])
        backend.puts.put(many(100, start=200))
        found += [backend.scan.read(plan, part) for part in plan.parts[1:]]
        again = parts(backend.scan, plan)
    assert plain(pl.concat(found)) == before == current(backend, to_seq=plan.to_seq)
    assert plain(pl.concat(again)) == before
    assert plain(read(backend)) == current(backend) != before


def test_as_of_a_number_is_the_table_of_that_commit(backend):
    rows = many(20)
    backend.puts.put(rows)
    backend.puts.put([clicked(row) for row in rows[:4]])
    backend.puts.put([clicked(clicked(row)) for row in rows[:2]])
    for seq in (0, 7, 20, 22, 24, 25, 99):
        assert plain(read(backend, replace(WHOLE, as_of_seq=seq))) == current(backend, to_seq=seq)


def test_a_part_read_after_its_scan_says_how_to_mend_it(backend):
    backend.puts.put(many(10))
    with backend.scan.open(WHOLE) as plan:
        pass
    with pytest.raises(SnapshotEnded) as ended:
        backend.scan.read(plan, plan.parts[0])
    assert "keep the scan open" in ended.value.mend
    assert pickle.loads(pickle.dumps(ended.value)).line() == ended.value.line()


def test_text_comes_out_as_it_went_in(backend):
    odd = 'tab\t line\n back\\slash \\N "quote" \\n end\\'
    rows = [
        sample(odd, features=json.dumps({"a": odd}), item_features=json.dumps({odd: "}"}), model_version=odd),
        sample("plain", arm=""),
    ]
    backend.puts.put(rows)
    found = {row["request_id"]: row for row in plain(read(backend))}
    assert found[odd]["features"] == {"a": odd, odd: "}"}
    assert found[odd]["model_version"] == odd
    assert set(read(backend, replace(WHOLE, columns=("request_id",)))["request_id"]) == {odd, "plain"}


@pytest.mark.server
def test_as_of_a_time_is_what_was_written_by_then(database):
    with closing(connect(database)) as connection, transaction(connection) as cursor:
        cursor.execute(EMPTIED)
    puts, scan = PostgresPuts(database), PostgresSampleScan(database)
    rows = many(40)
    for chunk in range(0, 40, 10):
        puts.put(rows[chunk : chunk + 10])
    with closing(connect(database)) as connection, transaction(connection) as cursor:
        # Known ten minutes apart, but that the third commit began before the second and was numbered after it.
        for chunk, minute in enumerate((0, 10, 9, 30)):
            cursor.execute(
                "UPDATE samples.revisions SET known_at = to_timestamp(%s) WHERE commit_seq BETWEEN %s AND %s",
                (FIRST_MS / 1_000 + minute * 60, chunk * 10 + 1, chunk * 10 + 10),
            )
    seen = {}
    for minute in (-1, 0, 8, 9.5, 10, 29, 30):
        ask = replace(WHOLE, as_of_ms=FIRST_MS + round(minute * 60_000), columns=KEY)
        with scan.open(ask) as plan:
            seen[minute] = plan.to_seq
            assert sum(frame.height for frame in parts(scan, plan)) == plan.to_seq
    assert seen == {-1: 0, 0: 10, 8: 10, 9.5: 10, 10: 30, 29: 30, 30: 40}


@pytest.mark.server
def test_a_scan_whose_coordinator_lost_its_connection_says_so(database):
    with closing(connect(database)) as connection, transaction(connection) as cursor:
        cursor.execute(EMPTIED)
    PostgresPuts(database).put(many(10))
    scan = PostgresSampleScan(database)
    opened = scan.open(WHOLE)
    plan = opened.__enter__()
    with closing(connect(database)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'rtrec-scan'"
                " AND datname = current_database()"
            )
    with pytest.raises(SnapshotEnded):
        scan.read(plan, plan.parts[0])
    with pytest.raises(Exception, match="PostgreSQL does not answer"):
        opened.__exit__(None, None, None)
