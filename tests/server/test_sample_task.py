"""The sample task on a real PostgreSQL: what any crash leaves equals a run without it."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest

from actors.sample import SampleOperator
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.notification.base import EventFilter
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.postgres import counter
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.samples.definition import Label, SampleDefinition
from rtrec_ray.stores.progress import Committed, write_committed
from rtrec_ray.stores.samples.live import apply_definition, enter_definition, enter_partitions
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

pytestmark = pytest.mark.server

START_MS = 1_767_225_600_000 - 300  # the log runs over midnight
RULES = SampleDefinition(
    wait_ms=40,
    horizon_ms=10_000,
    cached_requests=5,
    cached_actions=2,
    negative_rate=0.5,
    labels={"click": Label(event="click"), "dwell_ms": Label(event="view", field="dwell_ms", summed=True)},
)
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
                events += _after(rng, event)
    events += [(START_MS, {"event_id": "x", "event_type": "impression", "user_id": 7, "ts": START_MS})]
    return {
        topic: [json.dumps(row).encode() for _, row in sorted(rows, key=lambda row: row[0])]
        for topic, rows in (("behavior", events), ("inference-log", records))
    }


def _after(rng: random.Random, click: dict) -> list[tuple[int, dict]]:
    """A view that comes twice, and retractions of either, sometimes before what they take back."""
    view = {**click, "event_type": "view", "event_id": f"v{click['event_id']}", "dwell_ms": rng.randint(1, 9)}
    events = [(click["ts"] + rng.randint(-20, 200), view) for _ in range(rng.randint(0, 2))]
    for event in (click, view):
        if rng.random() < 0.2:
            back = {"event_id": f"r{event['event_id']}", "event_type": "retract", "user_id": 7, "ts": click["ts"] + 5}
            events.append((click["ts"] + rng.randint(-30, 300), {**back, "retracts": event}))
    return events


def make_operator(partition: int, send=None, rules: SampleDefinition = RULES) -> SampleOperator:
    ledger = PostgresSampleLedger(partition=partition)
    return SampleOperator(rules, ledger=ledger, latest_ms=lambda wall_ms: 2**62, send=send)


class Partition:
    """The consume-compute-commit loop on one partition, with faults at will."""

    def __init__(self, dsn: str, log: dict[str, list[bytes]], *, seed: int = 0, partition: int = 0, send=None) -> None:
        self.log, self.rng, self.partition, self.send = log, random.Random(seed), partition, send
        self.connection = connect(PostgresOptions(dsn=dsn), pipeline=True)
        self.committed = dict.fromkeys(log, 0)
        self.newest = 0
        self.counts: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        self.operator = make_operator(self.partition, self.send)
        self.mark = 0
        with transaction(self.connection) as cursor:
            self.position = dict(self.operator.restore(cursor, committed=self.committed))
        self.applied, self.fresh = dict(self.committed), Counter()

    def take(self, topic: str, count: int) -> None:
        start = self.position[topic]
        values = self.log[topic][start : start + count]
        outcome = self.operator.apply(record_batch(topic, self.partition, values, first_offset=start))
        self.fresh.update(outcome.counts)
        self.newest = max(self.newest, outcome.max_ts_ms or 0)
        self.position[topic] = start + len(values)
        self.applied[topic] = max(self.applied[topic], self.position[topic])

    def commit(self, *, fail: bool = False) -> None:
        with transaction(self.connection) as cursor:
            self.fresh.update(self.operator.write(cursor))
            at = Committed(next_offset=self.applied, max_ts_ms=dict.fromkeys(self.applied, self.newest))
            write_committed(cursor, task="samples", partition=self.partition, at=at, lag=0, counts={})
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
            cursor.execute("SELECT request_id, item_id FROM samples.misses ORDER BY 1, 2")
            self.missed = cursor.fetchall()
            cursor.execute("SELECT request_id, item_id FROM samples.sampled_out ORDER BY 1, 2")
            self.out = cursor.fetchall()
            cursor.execute("TRUNCATE samples.requests, samples.revisions, samples.misses, samples.actions")
            cursor.execute("TRUNCATE samples.replay, samples.sampled_out, samples.completeness")
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
    assert len(calm.table) + len(calm.missed) + len(calm.out) == 120
    assert calm.out
    assert (shaken.table, shaken.missed, shaken.out) == (calm.table, calm.missed, calm.out)
    for counted in (calm_counts, counts):
        outcomes = counted["sampled"] + counted["missed"] - counted["completed"] + counted["duplicate"]
        outcomes += counted["sampled_out"]
        assert outcomes + counted["unkeyed"] == counted["impression"]
    for name in ("in", "impression", "action", "retract", "dead", "unkeyed", "duplicate"):
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
    expected = {
        "in": 4,
        "dead": 1,
        "retract": 1,
        "retracted_impression": 1,
        "unkeyed": 1,
        "impression": 2,
        "late": 3,
        "missed": 1,
    }
    assert {name: counts[name] for name in expected} == expected
    assert part.missed == [("r", 1)]


def test_a_reader_below_the_high_water_never_misses_a_row_of_two_writers_that_make_the_same_days(dsn):
    days = [START_MS + 86_400_000 * day for day in range(6)]

    def write(partition: int) -> None:
        connection = connect(PostgresOptions(dsn=dsn), pipeline=True)
        operator = make_operator(partition, rules=replace(RULES, negative_rate=1.0))
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


def test_the_end_of_the_ledger_waits_for_the_commit_that_is_under_way(dsn, eventually):
    store, found = PostgresSampleStore(PostgresOptions(dsn=dsn)), []
    writer, watch = connect(PostgresOptions(dsn=dsn)), connect(PostgresOptions(dsn=dsn))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with transaction(writer) as cursor:
        counter.take(cursor, "samples", 5)
    with transaction(writer) as cursor:
        counter.take(cursor, "samples", 3)
        asking = threading.Thread(target=lambda: found.append(store.end()))
        asking.start()
        eventually(lambda: select(watch, waiting) == [(1,)], what="it waits")
        assert found == []
    asking.join()
    assert [place.commit_seq for place in found] == [8]
    writer.close()
    watch.close()


def minutes_log(partition: int) -> dict[str, list[bytes]]:
    """Eight minutes of one user, a request with one item each 4 s."""
    times = range(START_MS + 7 * partition, START_MS + 8 * 60_000, 4_000)
    keys = [{"request_id": f"p{partition}-{ts}", "user_id": partition, "ts": ts} for ts in times]
    events = [{**key, "event_id": f"e{key['ts']}", "event_type": "impression", "item_id": 1} for key in keys]
    records = [{**key, "model_version": "v1", "features": {}} for key in keys]
    return {
        "behavior": [json.dumps(e).encode() for e in events],
        "inference-log": [json.dumps(r).encode() for r in records],
    }


def select(connection, statement: str) -> list[tuple]:
    with transaction(connection) as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def go_on(part: Partition, rng: random.Random) -> None:
    """A few records, event time, and a commit that may be cut off before or in it."""
    for topic in part.log:
        part.take(topic, rng.randint(1, 25))
    both = min(part.position.values())
    part.operator.advance(watermark_ms=START_MS + 4_000 * (both - 1))
    what = rng.choice(["commit", "commit", "crash", "fail"])
    if what == "commit":
        part.commit()
        return
    if what == "fail":
        with pytest.raises(ConnectionError):
            part.commit(fail=True)
    part.begin()


@pytest.mark.parametrize("seed", range(3))
def test_each_minute_is_told_once_in_order_when_all_its_samples_are_readable(dsn, seed):
    rng, options = random.Random(seed), PostgresOptions(dsn=dsn)
    logs = [minutes_log(0), minutes_log(1)]
    shown = sorted(json.loads(value)["ts"] for log in logs for value in log["behavior"])
    with closing(PostgresNotificationStore(options)) as events, closing(connect(options)) as reader:
        with transaction(reader) as cursor:
            enter_definition(cursor, replace(RULES, negative_rate=1.0, wait_ms=30_000, horizon_ms=60_000))
            enter_partitions(cursor, 2)
        parts = [Partition(dsn, log, partition=index, send=events.send_in) for index, log in enumerate(logs)]
        told: list[int] = []
        while not told or told[-1] < START_MS + 7 * 60_000:
            go_on(rng.choice(parts), rng)
            told = [int(event.value) for event in events.list(EventFilter(key="SAMPLES_COMPLETE"), after_offset=0)]
            with transaction(reader) as cursor:
                cursor.execute(
                    "SELECT count(*) FROM samples.current WHERE event_time_ms <= %s", (max(told, default=0),)
                )
                assert cursor.fetchone() == (sum(ts <= max(told, default=0) for ts in shown),)
        first = (START_MS // 60_000 + 1) * 60_000
        assert told == list(range(first, told[-1] + 1, 60_000))
        for part in parts:
            part.connection.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_definition_holds_from_its_start_on_whatever_crashes(dsn, seed):
    rng, options = random.Random(seed), PostgresOptions(dsn=dsn)
    part, second = Partition(dsn, minutes_log(0), seed=seed), replace(RULES, version=2, negative_rate=0.25, wait_ms=90)
    with closing(connect(options)) as admin:
        with transaction(admin) as cursor:
            enter_definition(cursor, replace(RULES, negative_rate=1.0))
        for _ in range(4):
            go_on(part, rng)
        with transaction(admin) as cursor:
            assert apply_definition(cursor, second, dry_run=True).added
            change = apply_definition(cursor, second)
            assert apply_definition(cursor, second) == replace(change, added=False)
        assert START_MS < change.from_ms < START_MS + 8 * 60_000
        for _ in range(4):
            go_on(part, rng)
        part.take("behavior", 1_000)
        part.take("inference-log", 1_000)
        part.operator.advance(watermark_ms=START_MS + 10 * 60_000)
        part.commit()
        found = select(admin, "SELECT event_time_ms, definition_version, negative_rate FROM samples.current")
        out = [ts for (ts,) in select(admin, "SELECT event_time_ms FROM samples.sampled_out")]
    part.connection.close()
    assert {(version, rate) for ts, version, rate in found if ts < change.from_ms} == {(1, 1.0)}
    assert {(version, rate) for ts, version, rate in found if ts >= change.from_ms} == {(2, 0.25)}
    assert out
    assert min(out) >= change.from_ms
    assert len(out) + len(found) == len(part.log["behavior"])
