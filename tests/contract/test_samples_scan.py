"""Every scan of the sample store keeps these laws."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import polars as pl
import pytest

from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.errors import AsOfUnknown, SnapshotEnded
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.scan import MemorySampleScan, SampleScan, ScanAsk, ScanPlan, select_schema
from rtrec_ray.stores.samples.scan_postgres import PostgresSampleScan
from rtrec_ray.stores.samples.store import MemorySampleStore, SampleStore
from tests.scanned_samples import DAY_MS, FIRST_MS, MemoryPuts, PostgresPuts, Puts, clicked, sample

WHOLE = ScanAsk(from_ms=0, to_ms=1 << 50)
EMPTIED = "TRUNCATE samples.requests, samples.revisions, samples.retention; DELETE FROM meta.counters"


@dataclass
class Backend:
    scan: SampleScan
    store: SampleStore
    puts: Puts
    retained: Callable[[int], None]


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer, template_database: str) -> Iterator[PostgresOptions]:
    postgres_server.create_database("contract_scan", template=template_database)
    yield PostgresOptions(dsn=postgres_server.dsn("contract_scan"))
    postgres_server.drop_database("contract_scan")


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "memory":
        store = MemorySampleStore()
        scan = MemorySampleScan(store, part_rows=7)
        return Backend(scan, store, MemoryPuts(store), lambda ms: setattr(scan, "kept_from_ms", ms))
    options = request.getfixturevalue("database")
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        cursor.execute(EMPTIED)

    def retained(ms: int) -> None:
        with closing(connect(options)) as connection, transaction(connection) as cursor:
            cursor.execute("INSERT INTO samples.retention (kept_from_ms) VALUES (%s)", (ms,))

    scan = PostgresSampleScan(options, part_blocks=1)
    return Backend(scan, PostgresSampleStore(options), PostgresPuts(options), retained)


@pytest.fixture
def joins_that_sort(database: PostgresOptions) -> Iterator[None]:
    """The server joins by sorting, as it may after the table's statistics have changed."""
    others = ("enable_hashjoin", "enable_nestloop")

    def alter(how: str) -> None:
        with closing(connect(database)) as connection, transaction(connection) as cursor:
            for name in others:
                cursor.execute(f"ALTER DATABASE contract_scan {how.format(name)}")

    alter("SET {} = off")
    yield
    alter("RESET {}")


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


def test_a_part_has_the_order_of_the_ledger_whatever_the_servers_plan(backend, request):
    rows = many(300)
    backend.puts.put(rows)
    with backend.scan.open(replace(WHOLE, columns=("request_id", "commit_seq"))) as plan:
        backend.puts.put([clicked(row) for row in rows[::2]])
        first = parts(backend.scan, plan)
        if isinstance(backend.scan, PostgresSampleScan):
            request.getfixturevalue("joins_that_sort")
        second = parts(backend.scan, plan)
    assert all(frame["commit_seq"].is_sorted() for frame in first)
    assert [frame.rows() for frame in first] == [frame.rows() for frame in second]
    assert sum(frame.height for frame in first) == 300


def test_as_of_a_number_is_the_table_of_that_commit(backend):
    rows = many(20)
    backend.puts.put(rows)
    backend.puts.put([clicked(row) for row in rows[:4]])
    backend.puts.put([clicked(clicked(row)) for row in rows[:2]])
    for seq in (0, 7, 20, 22, 24, 25, 26):
        assert plain(read(backend, replace(WHOLE, as_of_seq=seq))) == current(backend, to_seq=seq)


def test_as_of_a_time_is_the_table_as_it_was_known_then(backend):
    rows, minute = many(20), 60_000
    backend.puts.put(rows, known_ms=FIRST_MS)
    backend.puts.put([clicked(row) for row in rows[:4]], known_ms=FIRST_MS + 10 * minute)
    # A commit that began before the one above and was numbered after it.
    backend.puts.put([sample("x")], known_ms=FIRST_MS + 9 * minute)
    backend.puts.put([clicked(clicked(row)) | {"label": 0} for row in rows[:2]], known_ms=FIRST_MS + 30 * minute)
    for then, seq in ((-1, 0), (0, 20), (9.5, 20), (10, 25), (29.9, 25), (30, 27), (1e9, 27)):
        ask = replace(WHOLE, as_of_ms=FIRST_MS + round(then * minute))
        with backend.scan.open(ask) as plan:
            assert plan.to_seq == seq, then
        found = plain(read(backend, ask))
        assert found == current(backend, to_seq=seq), then
        assert sum(row["label"] for row in found) == {0: 0, 20: 0, 25: 4, 27: 2}[seq]


def test_as_of_a_number_that_the_ledger_has_not_come_to_is_refused_with_its_last_one(backend):
    backend.puts.put(many(20))
    with pytest.raises(AsOfUnknown) as unknown, backend.scan.open(replace(WHOLE, as_of_seq=21)):
        pass
    assert "from 0 to 20" in unknown.value.mend


def test_as_of_a_moment_of_days_that_were_dropped_is_refused_with_the_first_that_is_whole(backend):
    backend.puts.put(many(300))
    kept_ms = FIRST_MS + DAY_MS
    backend.retained(kept_ms)
    for then in ({"as_of_seq": 300}, {"as_of_ms": FIRST_MS}):
        with pytest.raises(AsOfUnknown) as unknown, backend.scan.open(replace(WHOLE, from_ms=kept_ms - 1, **then)):
            pass
        assert str(kept_ms) in unknown.value.mend
    assert read(backend, replace(WHOLE, from_ms=kept_ms, as_of_seq=300)).height == 200
    assert read(backend).height == 300  # of now: whatever there is


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
