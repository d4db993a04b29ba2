"""The sample task on a real PostgreSQL: what any crash leaves equals a run without it."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter

import pytest

from actors.sample import SampleOperator
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.stores.samples_postgres import PostgresSampleLedger, PostgresSampleStore

pytestmark = pytest.mark.server

START_MS = 1_767_225_600_000 - 300  # the log runs over midnight
RULES = SampleDefinition(wait_ms=40, horizon_ms=10_000, cached_requests=5)
TABLE = """
SELECT request_id, item_id, user_id, event_time_ms, label, labels::text, features::text, model_version, position
FROM samples.current ORDER BY 1, 2
"""


def make_log(seed: int) -> dict[str, list[bytes]]:
    """Forty requests of three items; a third is clicked, some long after; disorder, repetitions, lost records."""
    rng = random.Random(seed)
    records, events = [], []
    for number in range(40):
        ts = START_MS + 15 * number
        items = [{"item_id": i, "position": i, "score": 0.5, "features": {"rank": i}} for i in range(1, 4)]
        record = {"request_id": f"r{number}", "user_id": 7, "ts": ts, "model_version": "v1", "features": {"n": number}}
        records += [(ts + rng.randint(0, 60), {**record, "items": items})] if number % 9 else []
        for item in range(1, 4):
            event = {"event_type": "impression", "user_id": 7, "item_id": item, "request_id": f"r{number}"}
            shown = ts + rng.randint(0, 5)
            event = {**event, "event_id": f"i{number}-{item}", "ts": shown}
            events.append((shown + rng.randint(0, 60), event))
            if rng.random() < 0.2:
                events.append((shown + rng.randint(0, 300), event))
            if rng.random() < 0.35:
                clicked = shown + rng.choice([1, 10, 39, 40, 41, 200])
                event = {**event, "event_type": "click", "event_id": f"c{number}-{item}", "ts": clicked}
                events.append((clicked + rng.randint(-20, 60), event))
    events += [(START_MS, {"event_id": "x", "event_type": "impression", "user_id": 7, "ts": START_MS})]
    return {
        topic: [json.dumps(row).encode() for _, row in sorted(rows, key=lambda row: row[0])]
        for topic, rows in (("behavior", events), ("inference-log", records))
    }


def make_operator(partition: int) -> SampleOperator:
    return SampleOperator(RULES, ledger=PostgresSampleLedger(partition=partition), latest_ms=lambda wall_ms: 2**62)


class Partition:
    """The consume-compute-commit loop on one partition, with faults at will."""

    def __init__(self, dsn: str, log: dict[str, list[bytes]], *, seed: int = 0) -> None:
        self.log, self.rng = log, random.Random(seed)
        self.connection = connect(PostgresOptions(dsn=dsn), pipeline=True)
        self.committed = dict.fromkeys(log, 0)
        self.counts: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        self.operator = make_operator(0)
        with transaction(self.connection) as cursor:
            self.position = dict(self.operator.restore(cursor, committed=self.committed))
        self.applied, self.fresh = dict(self.committed), Counter()

    def take(self, topic: str, count: int) -> None:
        start = self.position[topic]
        values = self.log[topic][start : start + count]
        outcome = self.operator.apply(record_batch(topic, 0, values, first_offset=start))
        self.fresh.update(outcome.counts)
        self.position[topic] = start + len(values)
        self.applied[topic] = max(self.applied[topic], self.position[topic])

    def commit(self, *, fail: bool = False) -> None:
        with transaction(self.connection) as cursor:
            self.fresh.update(self.operator.write(cursor))
            if fail:
                raise ConnectionError
        self.operator.committed()
        self.counts.update(self.fresh)
        self.fresh.clear()
        self.committed = dict(self.applied)

    def step(self) -> None:
        action = self.rng.choice(["take", "take", "take", "advance", "commit", "crash", "fail"])
        if action == "take":
            self.take(self.rng.choice(list(self.log)), self.rng.randint(1, 25))
        elif action == "advance":
            self.operator.advance(watermark_ms=START_MS + self.rng.randint(0, 900))
        elif action == "commit":
            self.commit()
        else:
            if action == "fail":
                with pytest.raises(ConnectionError):
                    self.commit(fail=True)
            self.begin()

    def finish(self) -> Counter[str]:
        for topic in self.log:
            self.take(topic, 10_000)
        self.operator.advance(watermark_ms=START_MS + 5_000)
        self.commit()
        with transaction(self.connection) as cursor:
            cursor.execute(TABLE)
            self.table = cursor.fetchall()
            cursor.execute("SELECT request_id, item_id, click_ms FROM samples.misses ORDER BY 1, 2")
            self.missed = cursor.fetchall()
            cursor.execute("TRUNCATE samples.requests, samples.revisions, samples.misses, samples.held_clicks")
            cursor.execute("TRUNCATE samples.replay")
        self.connection.close()
        return self.counts


@pytest.mark.parametrize("seed", range(6))
def test_after_any_crash_the_table_equals_that_of_a_run_without_it(dsn, seed):
    log = make_log(seed)
    calm = Partition(dsn, log)
    calm_counts = calm.finish()
    shaken = Partition(dsn, log, seed=seed)
    for _ in range(60):
        shaken.step()
    counts = shaken.finish()
    assert len(calm.table) + len(calm.missed) == 120
    assert (shaken.table, shaken.missed) == (calm.table, calm.missed)
    for counted in (calm_counts, counts):
        outcomes = counted["sampled"] + counted["missed"] - counted["completed"] + counted["duplicate"]
        assert outcomes + counted["unkeyed"] == counted["impression"]
    for name in ("in", "impression", "click", "dead", "unkeyed", "duplicate"):
        assert counts[name] == calm_counts[name], name


def test_what_is_dead_late_or_not_yet_understood_is_counted_once(dsn):
    event = {"event_type": "impression", "user_id": 7, "item_id": 1, "request_id": "r"}
    rows = [
        {**event, "event_id": "a", "ts": START_MS},
        {**event, "event_id": "b", "ts": "now"},
        {
            **event,
            "event_id": "c",
            "ts": START_MS,
            "event_type": "retract",
            "retracts": {**event, "event_id": "a", "ts": START_MS},
        },
        {**event, "event_id": "d", "ts": START_MS, "request_id": "r" * 600},
    ]
    part = Partition(dsn, {"behavior": [json.dumps(row).encode() for row in rows], "inference-log": []})
    part.operator.advance(watermark_ms=START_MS + 1)
    counts = part.finish()
    expected = {"in": 4, "dead": 1, "deferred": 1, "unkeyed": 1, "impression": 2, "late": 3, "missed": 1}
    assert {name: counts[name] for name in expected} == expected
    assert part.missed == [("r", 1, None)]


def test_a_reader_below_the_high_water_never_misses_a_row_of_two_writers_that_make_the_same_days(dsn):
    days = [START_MS + 86_400_000 * day for day in range(6)]

    def write(partition: int) -> None:
        connection = connect(PostgresOptions(dsn=dsn), pipeline=True)
        operator = make_operator(partition)
        with transaction(connection) as cursor:
            operator.restore(cursor, committed={})
        for number, ts in enumerate(days):
            key = {"request_id": f"p{partition}-{number}", "user_id": partition, "ts": ts}
            record = json.dumps({**key, "model_version": "v1", "features": {}}).encode()
            event = json.dumps({**key, "event_id": "e", "event_type": "impression", "item_id": 1}).encode()
            operator.apply(record_batch("inference-log", partition, [record], first_offset=number))
            operator.apply(record_batch("behavior", partition, [event], first_offset=number))
            operator.advance(watermark_ms=ts + RULES.wait_ms)
            with transaction(connection) as cursor:
                operator.write(cursor)
            operator.committed()
        connection.close()

    writers = [threading.Thread(target=write, args=(partition,)) for partition in range(4)]
    for writer in writers:
        writer.start()
    store, seen, at = PostgresSampleStore(PostgresOptions(dsn=dsn)), [], 0
    while any(writer.is_alive() for writer in writers) or at < store.high_water():
        mark = store.high_water()
        seen += [n for frame in store.scan(from_seq_exclusive=at, to_seq=mark) for n in frame["commit_seq"].to_list()]
        at = mark
    assert seen == list(range(1, 4 * len(days) + 1))
