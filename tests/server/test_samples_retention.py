"""Old days are dropped, but none that somebody still needs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from threading import Event

import pytest

from actors.sample_keeper import SampleKeeper
from rtrec_ray.errors import AsOfUnknown
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.progress import Committed, write_committed
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.retention import PostgresSampleRetention, Removed, read_removed
from rtrec_ray.stores.samples.scan import ScanAsk
from rtrec_ray.stores.samples.scan_postgres import PostgresSampleScan
from tests.scanned_samples import DAY_MS, FIRST_MS, PostgresPuts, clicked, sample

pytestmark = pytest.mark.server
KEEP_MS = 3 * DAY_MS


@pytest.fixture
def options(dsn) -> PostgresOptions:
    return PostgresOptions(dsn=dsn)


@pytest.fixture
def retention(options) -> PostgresSampleRetention:
    return PostgresSampleRetention(options, keep_ms=KEEP_MS)


def execute(options: PostgresOptions, statement: str, values: object = None) -> list[tuple]:
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def put_days(options: PostgresOptions, days: int) -> list[dict]:
    """One sample and one miss a day, at noon."""
    rows = [sample(f"r{day}", ts=FIRST_MS + day * DAY_MS + DAY_MS // 2) for day in range(days)]
    for row in rows:
        PostgresPuts(options).put([row])
        execute(
            options,
            "INSERT INTO samples.misses (request_id, item_id, user_id, event_time_ms, source_partition, source_offset)"
            " VALUES (%s, 1, 1, %s, 0, 0)",
            (row["request_id"], row["event_time_ms"]),
        )
    return rows


def advance(options: PostgresOptions, *, day: float, partition: int = 0) -> None:
    """The sample stage's watermark in a partition."""
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        at = Committed(watermark_ms=FIRST_MS + round(day * DAY_MS))
        write_committed(cursor, task="samples", partition=partition, at=at, lag=0, counts={})


def kept(options: PostgresOptions) -> list[str]:
    rows = execute(options, "SELECT request_id FROM samples.current ORDER BY event_time_ms")
    assert rows == execute(options, "SELECT request_id FROM samples.misses ORDER BY event_time_ms")
    assert rows == execute(options, "SELECT request_id FROM samples.requests ORDER BY event_time_ms")
    return [request for (request,) in rows]


def partitions(options: PostgresOptions) -> int:
    found = execute(
        options,
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'samples'::regnamespace AND relkind = 'r'"
        " AND relname ~ '_[0-9]{8}$'",
    )
    return found[0][0]


def test_days_behind_the_watermark_by_more_than_the_retention_go_from_every_table(options, retention):
    put_days(options, 6)
    per_day = partitions(options) // 6
    advance(options, day=5)
    removed = retention.remove_expired()
    assert (removed.partitions, removed.misses, removed.held_by) == (2 * per_day, 2, "")
    assert kept(options) == ["r2", "r3", "r4", "r5"]
    assert partitions(options) == 4 * per_day
    advance(options, day=6)
    assert retention.remove_expired().partitions == per_day
    assert read_removed(options) == Removed(
        kept_from_ms=FIRST_MS + 3 * DAY_MS, partitions=3 * per_day, misses=3, held_by=""
    )
    assert retention.remove_expired().partitions == 0


def test_old_is_measured_by_the_partition_furthest_behind(options, retention):
    put_days(options, 6)
    assert retention.remove_expired() == Removed()
    advance(options, day=5)
    advance(options, day=3, partition=1)
    assert retention.remove_expired().partitions == 0
    assert len(kept(options)) == 6


def test_a_day_that_a_training_run_has_not_read_stays_and_status_says_for_whom(options, retention):
    rows = put_days(options, 6)
    PostgresPuts(options).put([clicked(rows[0])])  # number 7, of the first day
    execute(options, "INSERT INTO meta.training_runs (run, state, commit_seq) VALUES ('incremental', 'running', 6)")
    advance(options, day=5)
    removed = retention.remove_expired()
    assert (removed.partitions, removed.misses, removed.busy) == (0, 0, False)
    assert "incremental" in removed.held_by
    assert "incremental" in read_removed(options).held_by
    execute(options, "UPDATE meta.training_runs SET commit_seq = 7")
    assert retention.remove_expired().held_by == ""
    assert kept(options) == ["r2", "r3", "r4", "r5"]
    assert read_removed(options).held_by == ""


def test_a_base_run_holds_what_it_reads_until_it_ends(options, retention):
    put_days(options, 6)
    execute(options, "INSERT INTO meta.training_runs (run, state) VALUES ('base', 'running')")
    advance(options, day=5)
    assert "base" in retention.remove_expired().held_by
    execute(options, "UPDATE meta.training_runs SET state = 'finished'")
    assert retention.remove_expired().partitions > 0


def test_a_day_with_an_item_that_was_shown_later_stays_until_that_is_old_too(options, retention):
    put_days(options, 6)
    late = sample("r0", 2, ts=FIRST_MS + 2 * DAY_MS, asked=FIRST_MS + DAY_MS // 2)
    PostgresPuts(options).put([late])
    advance(options, day=5)
    assert "shown later" in retention.remove_expired().held_by
    advance(options, day=6)
    assert retention.remove_expired().held_by == ""
    assert kept(options) == ["r3", "r4", "r5"]


def test_a_scan_comes_to_its_end_while_new_readers_are_not_locked_out(options, retention):
    put_days(options, 6)
    advance(options, day=5)
    scan = PostgresSampleScan(options, part_blocks=1)
    with scan.open(ScanAsk(from_ms=FIRST_MS, to_ms=FIRST_MS + 6 * DAY_MS, columns=("request_id", "features"))) as plan:
        removed = retention.remove_expired()
        assert (removed.busy, removed.partitions) == (True, 0)
        assert "readers" in removed.held_by
        # The day is being detached: a new scan no longer sees it, and must not take what is left for all there was.
        then = ScanAsk(from_ms=FIRST_MS, to_ms=FIRST_MS + 6 * DAY_MS, as_of_seq=6)
        with pytest.raises(AsOfUnknown), scan.open(then):
            pass
        newer = PostgresSampleStore(options)
        assert newer.stats().rows >= 4  # would wait for the statement's timeout behind a lock
        rows = [row for part in plan.parts for row in scan.read(plan, part).rows()]
        assert sorted(request for request, _ in rows) == [f"r{day}" for day in range(6)]
    assert retention.remove_expired().held_by == ""
    assert kept(options) == ["r2", "r3", "r4", "r5"]


WAITING = """
SELECT pid, query_start FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'rtrec-retention' AND wait_event_type = 'Lock'
"""


@contextmanager
def looking(retention: PostgresSampleRetention) -> Iterator[list[Removed]]:
    """Look after look, in a thread, during the block; gives what they answered."""
    stop, looks = Event(), list[Removed]()

    def look() -> None:
        while not stop.is_set():
            looks.append(retention.remove_expired())

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(look)
        try:
            yield looks
        finally:
            stop.set()
        done.result()


def test_who_comes_while_retention_waits_for_a_reader_is_not_kept_waiting_behind_it(options, retention, eventually):
    put_days(options, 6)
    advance(options, day=5)

    days = count()

    def come_and_go() -> bool:
        """Whether a reader, and the writer of a new day, came to their ends all within one wait of retention."""
        waits = execute(options, WAITING)
        assert execute(options, "SET lock_timeout = '500ms'; SELECT count(*) FROM samples.current")[0][0] >= 4
        new_day = "SET lock_timeout = '500ms'; SELECT samples.ensure_days(ARRAY[DATE '2030-01-01' + %s])"
        execute(options, new_day, (next(days),))
        return bool(waits) and execute(options, WAITING) == waits

    with closing(connect(options)) as reading:
        with transaction(reading) as cursor:
            cursor.execute("SELECT count(*) FROM samples.current")
            with looking(retention) as looks:
                eventually(come_and_go, what="a read and a write while retention waits")
                # It waits 2 s for a lock, and may take 60 s for a statement.
                eventually(lambda: looks, timeout_s=20, what="a look gives up")
        assert all(look.busy and not look.partitions for look in looks), "the reader was there all the time"
    assert retention.remove_expired().held_by == ""
    assert kept(options) == ["r2", "r3", "r4", "r5"]


def test_what_a_look_left_half_done_the_next_one_finishes(options, retention):
    put_days(options, 6)
    whole = partitions(options)
    advance(options, day=5)
    ((day,),) = execute(options, "SELECT to_char(to_timestamp(%s), 'YYYYMMDD')", (FIRST_MS / 1_000,))
    execute(options, f"ALTER TABLE samples.revisions DETACH PARTITION samples.revisions_{day}")
    assert retention.remove_expired().held_by == ""
    assert partitions(options) == whole * 4 // 6
    PostgresPuts(options).put([sample("late", ts=FIRST_MS)])  # a day that is gone can come again
    assert PostgresSampleStore(options).stats().rows == 5


class Looks:
    """Retention that is busy, then done."""

    def __init__(self, stop: Event) -> None:
        self.stop = stop
        self.looks = 0

    def remove_expired(self) -> Removed:
        self.looks += 1
        if self.looks == 3:
            self.stop.set()
        return Removed(held_by="readers of a day", busy=True)


def test_the_keeper_looks_until_it_is_stopped_and_says_what_hinders_it():
    stop = Event()
    looks = Looks(stop)
    keeper = SampleKeeper(looks, every_s=0.001)
    keeper.run(stop)
    assert looks.looks == 3
    assert keeper.trouble == "samples beyond retention stay: readers of a day"
