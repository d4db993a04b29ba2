"""Every book of training runs keeps these laws."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rtrec_ray.errors import LeaseLost
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.training import Beat, MemoryTrainingBook, PostgresTrainingBook, ProgressPoint, TrainingBook

BEAT = Beat(
    state="running",
    commit_seq=7,
    event_time_ms=1_700_000_000_000,
    lag_rows=3,
    rows_trained=5,
    version="2",
    base_version="1",
    mlflow_run="abc",
    message="",
    lsn=5_000_000_000,
    followed_by="stream",
    fallbacks=2,
    fallback_reason="slot lost: wal_removed",
)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def book(request: pytest.FixtureRequest) -> Iterator[TrainingBook]:
    made: TrainingBook
    if request.param == "memory":
        made = MemoryTrainingBook()
    else:
        made = PostgresTrainingBook(PostgresOptions(dsn=request.getfixturevalue("dsn")))
    yield made
    made.close()


def test_a_beat_is_what_others_see(book: TrainingBook) -> None:
    epoch = book.open("incremental")
    assert book.runs()["incremental"].up
    assert book.beat("incremental", epoch, BEAT) is False
    run = book.runs()["incremental"]
    assert (run.beat, run.epoch, run.up) == (BEAT, epoch, True)


def test_a_run_that_ended_is_not_up(book: TrainingBook) -> None:
    epoch = book.open("base")
    book.beat("base", epoch, Beat(state="failed", message="no clicks"))
    run = book.runs()["base"]
    assert (run.up, run.beat.message) == (False, "no clicks")


def test_the_newest_start_takes_the_run_over(book: TrainingBook) -> None:
    old = book.open("incremental")
    new = book.open("incremental")
    with pytest.raises(LeaseLost, match="taken over"):
        book.beat("incremental", old, BEAT)
    assert book.beat("incremental", new, BEAT) is False


def test_a_wish_to_stop_reaches_the_run_once_it_beats_and_ends_with_the_next_start(book: TrainingBook) -> None:
    epoch = book.open("incremental")
    assert book.request_stop("incremental")
    assert book.beat("incremental", epoch, BEAT) is True
    assert book.beat("incremental", epoch, Beat(state="stopped")) is True
    assert not book.request_stop("incremental")
    assert book.beat("incremental", book.open("incremental"), BEAT) is False


def test_nobody_stops_a_run_that_never_was(book: TrainingBook) -> None:
    assert not book.request_stop("incremental")


def test_points_come_back_in_their_order(book: TrainingBook) -> None:
    points = [
        ProgressPoint(
            commit_seq=seq,
            event_time_ms=seq * 10,
            rows=5,
            positives=0,
            log_loss=0.5,
            base_log_loss=0.6,
            auc=None,
            base_auc=None,
            calibration=None,
            base_calibration=None,
            lag_rows=0,
            base_version="1",
        )
        for seq in (1, 2, 3)
    ]
    for point in points:
        book.put("incremental", point)
    assert [point.commit_seq for point in book.progress("incremental")] == [1, 2, 3]
    first = book.progress("incremental")[0]
    assert (first.rows, first.log_loss, first.auc, first.base_version) == (5, 0.5, None, "1")
    assert book.progress("other") == []
