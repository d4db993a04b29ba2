"""Every sample store keeps these laws, and so does every ledger that writes one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pytest

from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.samples.columns import ACTION_SCHEMA, IMPRESSION_SCHEMA, REQUEST_SCHEMA, SAMPLE_SCHEMA
from rtrec_ray.samples.definition import Label, PageRules, SampleDefinition
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.stores.samples.ledger import MOST_MINUTES, MemorySampleLedger, MemorySamples, SampleLedger, settle
from rtrec_ray.stores.samples.live import enter_partitions
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.store import SampleStore
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

DAY_MS = 86_400_000
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2
RULES = SampleDefinition(wait_ms=10, horizon_ms=10 * DAY_MS)
MANY = replace(
    RULES,
    labels={
        "click": Label(event="click"),
        "long_view": Label(event="view", field="dwell_ms", at_least=10),
        "dwell_ms": Label(event="view", field="dwell_ms", summed=True),
    },
)
NONE_KEPT = replace(RULES, negative_rate=1e-9)


@dataclass
class Backend:
    store: SampleStore
    ledger: Callable[[int], SampleLedger]
    transaction: Callable[[], AbstractContextManager[Any]]
    add_partition: Callable[[], None] = lambda: None


EMPTIED = """
TRUNCATE samples.requests, samples.revisions, samples.misses, samples.actions, samples.replay, samples.sampled_out,
    samples.definitions, samples.completeness;
DELETE FROM meta.counters;
UPDATE samples.settings SET change = change + 1, mixed = false, partitions = NULL;
UPDATE samples.complete SET complete_ms = NULL;
"""


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer, template_database: str) -> Iterator[PostgresOptions]:
    """One for all these tests, emptied before each: a clone takes longer than most of them."""
    postgres_server.create_database("contract_samples", template=template_database)
    yield PostgresOptions(dsn=postgres_server.dsn("contract_samples"))
    postgres_server.drop_database("contract_samples")


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "memory":
        kept = MemorySamples()
        yield Backend(kept.store, lambda partition: MemorySampleLedger(kept, partition=partition), nullcontext)
        return
    options = request.getfixturevalue("database")
    connection = connect(options)
    with transaction(connection) as cursor:
        cursor.execute(EMPTIED)

    def add_partition() -> None:
        with transaction(connection) as cursor:
            for count in (1, 2):
                enter_partitions(cursor, count)

    yield Backend(
        PostgresSampleStore(options),
        lambda partition: PostgresSampleLedger(partition=partition),
        lambda: transaction(connection),
        add_partition,
    )
    connection.close()


class Task:
    """The sample task on one partition."""

    def __init__(
        self, backend: Backend, *, partition: int = 0, applied_to: int = 0, rules: SampleDefinition = RULES
    ) -> None:
        self.backend = backend
        self.ledger = backend.ledger(partition)
        with backend.transaction() as cursor:
            self.restored = self.ledger.restore(cursor, applied_to=applied_to)
        self.stitcher = Stitcher(rules, self.restored)
        self.read_to = applied_to

    def show(self, *impressions, ts=NOON_MS, at=None, page=None):
        first = self.read_to if at is None else at
        rows = [(r, i, 7, ts, page, None, None, first + n) for n, (r, i) in enumerate(impressions)]
        self.stitcher.on_impressions(pl.DataFrame(rows, schema=IMPRESSION_SCHEMA, orient="row"))
        self.read_to = max(self.read_to, first + len(rows))
        self.stitcher.read_to(self.read_to)
        return self

    def act(self, *actions, kind="click", ts=NOON_MS + 1, value=None, back=False, number=0):
        """The `number`-th action of that kind on each of these keys, or that it is taken back."""
        rows = [(r, i, 10 * number + len(kind), kind, ts, value, back) for r, i in actions]
        self.stitcher.on_actions(pl.DataFrame(rows, schema=ACTION_SCHEMA, orient="row"))
        return self

    def click(self, *clicks, ts=NOON_MS + 1, number=0):
        return self.act(*clicks, ts=ts, number=number)

    def serve(self, *requests, ts=NOON_MS, features="{}", items=None):
        rows = [
            (None, r, 7, ts, 3, "v1", "a", features, items and json.dumps(items), '{"view": {"0": 5}}')
            for r in requests
        ]
        frame = pl.DataFrame(rows, schema=REQUEST_SCHEMA, orient="row")
        day = pl.from_epoch("event_time_ms", time_unit="ms").dt.date()
        self.stitcher.on_requests(frame.with_columns(event_day=day))
        return self

    def commit(self, watermark_ms=None):
        if watermark_ms is not None:
            self.stitcher.advance(watermark_ms=watermark_ms)
        with self.backend.transaction() as cursor:
            return settle(self.ledger, cursor, self.stitcher, read_to=self.read_to)


def read(backend: Backend, **how) -> list[dict]:
    return [row for frame in backend.store.scan(to_seq=10**6, **how) for row in frame.rows(named=True)]


def current(backend: Backend, **how) -> dict[tuple[str, int], int]:
    rows = [row for frame in backend.store.current(**how) for row in frame.rows(named=True)]
    return {(row["request_id"], row["item_id"]): row["label"] for row in rows}


LATER = NOON_MS + 10


def test_an_empty_store_says_so(backend):
    assert backend.store.high_water() == 0
    assert read(backend) == []
    assert current(backend) == {}
    assert backend.store.stats().positive_rate is None


def test_a_sample_carries_its_request_overridden_by_its_item(backend):
    items = [{"item_id": 1, "position": 4, "score": 0.5, "propensity": 0.25, "features": {"b": [1, 2], "c": "x"}}]
    task = Task(backend).serve("r", features='{"a": 1.5, "b": 0}', items=items)
    task.show(("r", 1)).click(("r", 1)).commit()
    (row,) = read(backend)
    assert json.loads(row.pop("features")) == {"a": 1.5, "b": [1, 2], "c": "x"}
    assert json.loads(row.pop("labels")) == {"click": 1}
    row.pop("known_at_ms")
    assert row == {
        "commit_seq": 1,
        "request_id": "r",
        "item_id": 1,
        "user_id": 7,
        "event_time_ms": NOON_MS,
        "revision": 0,
        "label": 1,
        "old_label": None,
        "page_id": 3,
        "position": 4,
        "propensity": 0.25,
        "score": 0.5,
        "model_version": "v1",
        "arm": "a",
        "negative_rate": 1.0,
        "definition_version": 1,
    }


def test_a_positive_does_not_wait_and_a_negative_does(backend):
    task = Task(backend).serve("r").show(("r", 1), ("r", 2)).click(("r", 1))
    task.commit(LATER - 1)
    assert current(backend) == {("r", 1): 1}
    task.commit(LATER)
    assert current(backend) == {("r", 1): 1, ("r", 2): 0}


def test_positives_and_negatives_come_together_where_both_wait(backend):
    rules = replace(RULES, emit="on_close")
    task = Task(backend, rules=rules).serve("r").show(("r", 1), ("r", 2)).click(("r", 1))
    task.commit(LATER - 1)
    assert current(backend) == {}
    task.commit(LATER)
    assert current(backend) == {("r", 1): 1, ("r", 2): 0}


def test_a_page_has_its_own_wait_its_own_time_to_write_and_its_own_share(backend):
    patient = PageRules(wait_ms=20, emit="on_close")
    rules = replace(RULES, pages={2: patient, 3: PageRules(negative_rate=1e-9)})
    task = Task(backend, rules=rules).serve("r", "p", "q")
    task.show(("r", 1), ("r", 2), page=1).show(("p", 1), ("p", 2), page=2).show(("q", 1), ("q", 2), page=3)
    task.click(("r", 1), ("p", 1), ("q", 1))
    task.commit(LATER - 1)
    assert current(backend) == {("r", 1): 1, ("q", 1): 1}
    assert task.commit(LATER)["sampled_out"] == 1
    assert current(backend) == {("r", 1): 1, ("r", 2): 0, ("q", 1): 1}
    task.commit(LATER + 9)
    assert ("p", 1) not in current(backend)
    task.commit(LATER + 10)
    assert current(backend) == {("r", 1): 1, ("r", 2): 0, ("q", 1): 1, ("p", 1): 1, ("p", 2): 0}


def test_a_late_click_revises_one_row_and_says_what_it_was(backend):
    task = Task(backend).serve("r").show(("r", 1), ("r", 2))
    task.commit(LATER)
    assert task.click(("r", 1)).commit()["corrected"] == 1
    newest = read(backend)[-1]
    assert (newest["request_id"], newest["item_id"]) == ("r", 1)
    assert (newest["revision"], newest["label"], newest["old_label"], newest["commit_seq"]) == (1, 1, 0, 3)
    assert json.loads(newest["labels"]) == {"click": 1}
    assert current(backend) == {("r", 1): 1, ("r", 2): 0}
    assert current(backend, to_seq=2) == {("r", 1): 0, ("r", 2): 0}
    assert task.click(("r", 1)).commit()["duplicate_action"] == 1
    assert backend.store.high_water() == 3


def test_a_click_at_the_horizon_is_beyond_it(backend):
    task = Task(backend).serve("r").show(("r", 1), ("r", 2))
    task.commit(LATER)
    at = NOON_MS + RULES.horizon_ms
    assert task.click(("r", 1), ts=at - 1).click(("r", 2), ts=at).commit()["corrected"] == 1
    assert current(backend) == {("r", 1): 1, ("r", 2): 0}


def test_an_impression_shown_again_is_no_second_sample_even_after_midnight(backend):
    task = Task(backend).serve("r").show(("r", 1))
    task.commit(LATER)
    task.show(("r", 1), ("r", 2), ts=NOON_MS + DAY_MS)
    task.commit(LATER + 2 * DAY_MS)
    assert current(backend) == {("r", 1): 0, ("r", 2): 0}
    task.show(("r", 1), ts=NOON_MS + 2 * DAY_MS).click(("r", 1), ts=NOON_MS + 2 * DAY_MS).commit()
    assert current(backend) == {("r", 1): 1, ("r", 2): 0}
    assert [row["revision"] for row in read(backend)] == [0, 0, 1]


def test_a_request_without_a_record_is_a_miss_until_the_record_comes(backend):
    task = Task(backend).show(("r", 1), ("r", 2), ("s", 1))
    assert task.commit(LATER)["missed"] == 3
    assert backend.store.stats().misses == {"no_inference_record": 3}
    task.click(("r", 1)).commit()
    assert task.serve("r").commit()["completed"] == 2
    assert current(backend) == {("r", 1): 1, ("r", 2): 0}
    assert task.show(("s", 1)).commit(LATER)["missed"] == 0


def test_a_record_a_click_and_a_repetition_in_one_commit_complete_a_miss_together(backend):
    task = Task(backend).show(("r", 1), ("s", 1))
    task.commit(LATER)
    task.click(("r", 1)).show(("s", 1)).click(("s", 1)).serve("r", "s").commit(LATER)
    assert current(backend) == {("r", 1): 1, ("s", 1): 1}
    assert [row["revision"] for row in read(backend)] == [0, 0]


def test_a_click_too_late_for_an_impression_does_not_hide_an_earlier_one_from_it(backend):
    task = Task(backend).serve("r").show(("r", 1))
    task.commit(LATER)
    again = NOON_MS + RULES.horizon_ms
    task.show(("r", 1), ts=again).click(("r", 1), ts=again + 1).commit()
    assert current(backend) == {("r", 1): 0}
    task.click(("r", 1), ts=again - 1, number=1).commit()
    assert current(backend) == {("r", 1): 1}


def test_a_held_click_beyond_the_horizon_does_not_hide_one_within_it(backend):
    task = Task(backend).click(("r", 1), ts=NOON_MS + RULES.horizon_ms)
    task.commit(NOON_MS)
    task.click(("r", 1), number=1).commit()
    task = Task(backend).serve("r").show(("r", 1))
    task.commit()
    assert current(backend) == {("r", 1): 1}


def test_an_impression_that_comes_late_finds_its_request_in_the_store(backend):
    items = [{"item_id": 5, "position": 2, "score": 0.5}]
    Task(backend).serve("r", items=items).commit(LATER)
    Task(backend).show(("r", 5)).commit(LATER)
    assert [(row["position"], row["score"]) for row in read(backend)] == [(2, 0.5)]


def test_a_held_click_outlives_its_owner(backend):
    Task(backend).click(("r", 1)).commit(NOON_MS)
    task = Task(backend).serve("r").show(("r", 1))
    task.commit()
    assert current(backend) == {("r", 1): 1}
    assert Task(backend).restored.held.is_empty()


FEW = replace(RULES, cached_actions=2)
STRAYS = [(f"r{number}", 1) for number in range(5)]


def test_actions_beyond_what_memory_may_hold_wait_in_the_store(backend):
    task = Task(backend, rules=FEW)
    task.click(*STRAYS[:3]).commit(NOON_MS)
    task.click(*STRAYS[2:], STRAYS[4]).commit()  # the third comes again
    task.act(STRAYS[3], back=True).commit()
    assert backend.store.stats().held == 5
    owner = Task(backend, rules=FEW)
    assert (owner.restored.held.height, owner.restored.has_spilled) == (2, True)
    owner.serve("r0", "r2", "r3").show(STRAYS[0], STRAYS[2], STRAYS[3])
    owner.commit(NOON_MS + 5)
    later = Task(backend, rules=FEW, applied_to=3)
    assert "r3" in later.restored.held["request_id"], "loaded, and as an owner begins it still is"
    later.serve("r4").show(STRAYS[4])
    later.show(STRAYS[2], STRAYS[3], at=1).commit(NOON_MS + 50)
    assert current(backend) == {("r0", 1): 1, ("r2", 1): 1, ("r3", 1): 0, ("r4", 1): 1}
    assert backend.store.stats().held == 1


def test_a_click_that_waited_in_the_store_makes_a_sample_with_the_commit_its_impression_comes_in(backend):
    task = Task(backend, rules=replace(RULES, cached_actions=0))
    task.click(("r", 1)).act(("r", 2), back=True).commit(NOON_MS)
    task.serve("r").show(("r", 1), ("r", 2)).commit(NOON_MS)
    assert current(backend) == {("r", 1): 1}, "before its wait is over"


def test_an_action_in_the_store_alone_is_given_up_at_its_time_unless_its_impression_is_there(backend):
    rules = replace(RULES, horizon_ms=1_000, wait_ms=900, cached_actions=0, emit="on_close")
    task = Task(backend, rules=rules)
    task.click(*STRAYS).commit(NOON_MS)
    task.serve("r1").show(STRAYS[1], ts=NOON_MS + 900)
    task.commit(NOON_MS + 950)
    assert backend.store.stats().held == 5
    task.commit(NOON_MS + 1_001)
    assert backend.store.stats().held == 1, "all but the one whose impression waits"
    task.commit(NOON_MS + 1_800)
    assert current(backend) == {("r1", 1): 1}
    assert backend.store.stats().held == 0


def test_a_new_owner_reads_again_only_what_has_no_outcome(backend):
    task = Task(backend).serve("r").show(("r", 0), ("r", 1), ("r", 2), ("r", 1), ("r", 3)).click(("r", 2))
    task.commit(NOON_MS)
    assert Task(backend, applied_to=5).restored.place.replay_from == 0
    task.show(("r", 4), ts=LATER)
    task.commit(LATER)
    restored = Task(backend, applied_to=6).restored
    assert restored.place.replay_from == 5
    task.show(("r", 5), ts=NOON_MS).commit()
    restored = Task(backend, applied_to=7).restored
    assert restored.place.replay_from == 5
    assert restored.settled_offsets.to_list() == [6] or 6 in restored.settled_offsets.to_list()


def test_reading_again_writes_nothing_again(backend):
    task = Task(backend).serve("r").show(("r", 1), ("r", 2), ("r", 1), ("r", 3), ts=NOON_MS)
    task.show(("r", 4), ts=NOON_MS - 5).click(("r", 2)).commit(NOON_MS + 5)
    before = read(backend)
    again = Task(backend, applied_to=5)
    again.show(("r", 1), ("r", 2), ("r", 1), ("r", 3), at=0)
    counts = again.show(("r", 4), at=4).commit(NOON_MS + 5)
    assert (counts["out"], counts["duplicate"], counts["impression"]) == (0, 0, 0)
    assert read(backend) == before
    again.commit(LATER)
    assert current(backend) == {("r", 1): 0, ("r", 2): 1, ("r", 3): 0, ("r", 4): 0}


def test_partitions_do_not_mix_up_their_offsets(backend):
    Task(backend, partition=0).serve("r").show(("r", 1)).commit(LATER)
    other = Task(backend, partition=1, applied_to=1).serve("s").show(("s", 1), at=0)
    other.commit(LATER)
    assert current(backend) == {("r", 1): 0, ("s", 1): 0}


def test_a_scan_is_the_ledger_in_order_however_it_is_cut(backend):
    task = Task(backend).serve("r").show(*(("r", n) for n in range(10)))
    task.commit(LATER)
    task.click(("r", 3), ("r", 4)).commit()
    whole = read(backend)
    assert [row["commit_seq"] for row in whole] == list(range(1, 13))
    assert read(backend, batch_rows=5) == whole
    assert read(backend, from_seq_exclusive=10, columns=["commit_seq", "label"]) == [
        {"commit_seq": 11, "label": 1},
        {"commit_seq": 12, "label": 1},
    ]
    assert all(frame.height <= 5 for frame in backend.store.scan(to_seq=12, batch_rows=5))
    (frame,) = backend.store.scan(to_seq=12)
    assert frame.schema == SAMPLE_SCHEMA


def test_stats_say_what_is_there(backend):
    task = Task(backend).serve("r").show(("r", 1), ("r", 2), ("r", 3)).click(("r", 2), ("r", 9))
    task.commit(LATER)
    task.click(("r", 1)).commit()
    stats = backend.store.stats()
    assert (stats.rows, stats.positives, stats.requests, stats.corrections, stats.high_water) == (3, 2, 1, 1, 4)
    assert stats.positive_rate == pytest.approx(2 / 3)
    json.dumps(stats.as_dict())


def labels(backend: Backend, **how) -> dict[tuple[str, int], dict]:
    rows = [row for frame in backend.store.current(**how) for row in frame.rows(named=True)]
    return {(row["request_id"], row["item_id"]): json.loads(row["labels"]) for row in rows}


def test_labels_are_those_of_all_actions_that_are_not_taken_back(backend):
    task = Task(backend, rules=MANY).serve("r").show(("r", 1))
    task.act(("r", 1), kind="view", value=9).commit(LATER)
    assert labels(backend) == {("r", 1): {"click": 0, "long_view": 0, "dwell_ms": 9}}
    task.act(("r", 1), kind="view", value=11, number=1).click(("r", 1)).commit()
    assert labels(backend) == {("r", 1): {"click": 1, "long_view": 1, "dwell_ms": 20}}
    task.act(("r", 1), kind="view", value=11, number=1, back=True).commit()
    assert labels(backend) == {("r", 1): {"click": 1, "long_view": 0, "dwell_ms": 9}}
    assert [(row["revision"], row["label"], row["old_label"]) for row in read(backend)] == [
        (0, 0, None),
        (1, 1, 0),
        (2, 1, 1),
    ]


def test_taking_back_one_of_two_clicks_leaves_the_label(backend):
    task = Task(backend).serve("r").show(("r", 1)).click(("r", 1)).click(("r", 1), number=1)
    task.commit(LATER)
    assert task.act(("r", 1), back=True).commit()["corrected"] == 0
    assert current(backend) == {("r", 1): 1}
    assert task.act(("r", 1), number=1, back=True).commit()["corrected"] == 1
    assert current(backend) == {("r", 1): 0}
    assert current(backend, to_seq=1) == {("r", 1): 1}


def test_a_retraction_before_its_original_is_held_and_outlives_its_owner(backend):
    Task(backend).act(("r", 1), back=True).commit(NOON_MS)
    task = Task(backend).serve("r").show(("r", 1)).click(("r", 1))
    task.commit(LATER)
    assert current(backend) == {("r", 1): 0}
    assert task.click(("r", 1)).commit(LATER)["corrected"] == 0
    assert current(backend) == {("r", 1): 0}


def test_a_repeated_action_is_counted_once_in_a_sum_wherever_it_comes_again(backend):
    task = Task(backend, rules=MANY).serve("r").show(("r", 1)).act(("r", 1), kind="view", value=9)
    task.act(("r", 1), kind="view", value=9).commit(LATER)
    task.act(("r", 1), kind="view", value=9).commit()
    Task(backend, rules=MANY, applied_to=1).act(("r", 1), kind="view", value=9).commit(LATER)
    assert labels(backend) == {("r", 1): {"click": 0, "long_view": 0, "dwell_ms": 9}}
    assert backend.store.high_water() == 1


def test_a_negative_that_is_not_drawn_becomes_a_sample_with_a_late_click(backend):
    task = Task(backend, rules=NONE_KEPT).serve("r").show(("r", 1), ("r", 2), ("r", 3)).click(("r", 3))
    counts = task.commit(LATER)
    assert (counts["sampled"], counts["sampled_out"]) == (1, 2)
    assert current(backend) == {("r", 3): 1}
    assert backend.store.stats().sampled_out == 2
    counts = task.click(("r", 1)).commit()
    assert (counts["sampled"], counts["sampled_out"], counts["corrected"]) == (1, -1, 0)
    assert current(backend) == {("r", 1): 1, ("r", 3): 1}
    assert [(row["revision"], row["negative_rate"]) for row in read(backend)] == [(0, 1e-9), (0, 1e-9)]
    assert task.act(("r", 1), back=True).commit()["corrected"] == 1
    assert current(backend) == {("r", 1): 0, ("r", 3): 1}


def test_an_impression_that_was_not_drawn_is_not_drawn_again(backend):
    task = Task(backend, rules=NONE_KEPT).serve("r").show(("r", 1), ("r", 2)).click(("r", 2))
    task.commit(LATER)
    counts = task.show(("r", 1), ("r", 2), ts=NOON_MS + DAY_MS).commit(LATER + 2 * DAY_MS)
    assert (counts["sampled"], counts["sampled_out"], counts["duplicate"]) == (0, 0, 2)
    assert backend.store.stats().sampled_out == 1
    assert current(backend) == {("r", 2): 1}


def test_reading_again_knows_what_was_not_drawn(backend):
    task = Task(backend, rules=NONE_KEPT).serve("r").show(("r", 1)).show(("r", 2), ts=NOON_MS + 5)
    task.commit(LATER)
    again = Task(backend, rules=NONE_KEPT, applied_to=2)
    assert again.restored.place.replay_from == 1
    assert again.show(("r", 2), ts=NOON_MS + 5, at=1).commit(LATER + 5)["duplicate"] == 0
    assert backend.store.stats().sampled_out == 2


def test_what_was_done_while_a_repetition_waits_is_the_samples_though_the_repetition_is_not_drawn(backend):
    task = Task(backend, rules=replace(MANY, negative_rate=1e-9)).serve("r").show(("r", 1)).click(("r", 1))
    task.commit(LATER)
    task.show(("r", 1), ts=NOON_MS + DAY_MS).act(("r", 1), kind="view", ts=NOON_MS + DAY_MS + 1, value=11)
    assert task.commit(LATER + 2 * DAY_MS)["corrected"] == 1
    assert labels(backend) == {("r", 1): {"click": 1, "long_view": 1, "dwell_ms": 11}}
    assert backend.store.stats().sampled_out == 0


# --- partitions were added: what is about one sample may lie in two of them ----------------------------------------


def two_partitions(backend: Backend, **how) -> tuple[Task, Task]:
    """Their owners began before anything was written."""
    backend.add_partition()
    return Task(backend, partition=0, **how), Task(backend, partition=1, **how)


def test_a_click_in_another_partition_is_the_samples_before_and_after_its_outcome(backend):
    one, two = two_partitions(backend)
    two.click(("r", 1)).commit(NOON_MS)
    one.serve("r").show(("r", 1), ("r", 2)).commit(LATER)
    assert current(backend) == {("r", 1): 1, ("r", 2): 0}
    assert two.click(("r", 2)).commit()["corrected"] == 1
    assert current(backend) == {("r", 1): 1, ("r", 2): 1}


def test_a_held_click_that_another_partition_took_back_does_not_count(backend):
    one, two = two_partitions(backend)
    one.click(("r", 1)).commit(NOON_MS)
    two.act(("r", 1), back=True).commit(NOON_MS)
    one.serve("r").show(("r", 1)).commit(LATER)
    assert current(backend) == {("r", 1): 0}


def test_a_record_completes_the_miss_that_another_partition_wrote_meanwhile(backend):
    one, two = two_partitions(backend)
    assert two.show(("r", 1)).commit(LATER)["missed"] == 1
    assert one.serve("r").commit(LATER)["completed"] == 1
    assert current(backend) == {("r", 1): 0}


def test_what_became_a_sample_by_another_partition_hides_no_impression_of_that_when_it_reads_again(backend):
    one, two = two_partitions(backend, rules=NONE_KEPT)
    one.serve("s").show(("r", 1), ("s", 1)).commit(LATER)  # a miss, and one that is not drawn: offsets 0 and 1
    two.serve("r", "t").click(("r", 1), ("s", 1)).show(("t", 1), ("t", 2), ts=LATER).commit(LATER)
    assert current(backend) == {("r", 1): 1, ("s", 1): 1}
    again = Task(backend, partition=1, applied_to=2, rules=NONE_KEPT)
    again.show(("t", 1), ("t", 2), ts=LATER, at=0).commit(LATER + 10)
    assert backend.store.stats().sampled_out == 2


MINUTE = NOON_MS


def test_the_store_is_complete_when_all_partitions_are_each_minute_once(backend):
    one, two = Task(backend, partition=0), Task(backend, partition=1)

    def complete(task, first_ms, minutes):
        with backend.transaction() as cursor:
            return task.ledger.complete(cursor, first_ms=first_ms, complete_ms=int(MINUTE + minutes * 60_000))

    assert complete(one, MINUTE + 5, 1.5) == []
    assert complete(two, MINUTE + 9, 0.5) == []
    assert complete(two, MINUTE + 9, 3) == [MINUTE + 60_000]
    assert complete(one, MINUTE + 5, 2) == [MINUTE + 120_000]
    assert complete(Task(backend, partition=1), None, 3.2) == []
    assert complete(one, MINUTE + 5, 5) == [MINUTE + 180_000]


def test_a_jump_of_event_time_completes_a_day_of_minutes_at_most(backend):
    task = Task(backend)
    with backend.transaction() as cursor:
        minutes = task.ledger.complete(cursor, first_ms=0, complete_ms=MINUTE + 5)
        assert (len(minutes), minutes[-1]) == (MOST_MINUTES, MINUTE)
        assert task.ledger.complete(cursor, first_ms=0, complete_ms=MINUTE + 60_005) == [MINUTE + 60_000]
