"""The sample stage under faults and load: its tables come to be those of a run that nothing disturbed.

As for features, the undisturbed run reads the same log, in one go, into a database of its own.
"""

from __future__ import annotations

import random
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson
import pytest

from configs.settings import ClockSettings, Pipeline, Servers, Settings
from configs.settings import KafkaServer as KafkaSettings
from rtrec_ray.app.pipeline import SAMPLES
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.embedded.kafka import KafkaServer
from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.events import BEHAVIOR, INFERENCE, RETRACT
from rtrec_ray.features.file import load_definitions
from rtrec_ray.kafka.base import EARLIEST
from rtrec_ray.kafka.connect import connect_consumer
from rtrec_ray.postgres.connection import connect
from rtrec_ray.samples.file import load_definition
from tests.conftest import Eventually
from tests.e2e.crew import LEASE_MS, Crew, Watch, Worker, add_partitions, run_alone, send_all
from tests.e2e.feature_content import query
from tests.e2e.feature_load import Load, Record
from tests.e2e.sample_load import CLOCK_MS, ending, records

pytestmark = [pytest.mark.server, pytest.mark.slow]

CONFIGS = Path(__file__).parents[2] / "configs"
WATCH = Watch(stage=SAMPLES, topics=(BEHAVIOR, INFERENCE))
TABLES = {
    "samples": """
        SELECT request_id, item_id, user_id, event_time_ms, label, labels::text, features::text, model_version, arm,
               page_id, position, score, negative_rate, definition_version
        FROM samples.current ORDER BY 1, 2""",
    "misses": "SELECT request_id, item_id, reason FROM samples.misses ORDER BY 1, 2",
    "sampled out": "SELECT request_id, item_id FROM samples.sampled_out ORDER BY 1, 2",
    "actions": "SELECT request_id, item_id, action_id, kind, taken_back, held FROM samples.actions ORDER BY 1, 2, 3",
    "positions": """
        SELECT topic, partition, next_offset, max_ts_ms FROM meta.positions WHERE task = 'samples' ORDER BY 1, 2""",
    "watermarks": "SELECT partition, watermark_ms FROM meta.progress WHERE task = 'samples' ORDER BY 1",
    "complete": "SELECT value FROM meta.events WHERE key = 'SAMPLES_COMPLETE' ORDER BY event_offset",
}


OUTCOMES = """
SELECT request_id, item_id FROM samples.current UNION ALL SELECT request_id, item_id FROM samples.misses
UNION ALL SELECT request_id, item_id FROM samples.sampled_out
"""
SPILLED = "SELECT sum((counts ->> 'spilled')::int) > 0 FROM meta.progress WHERE task = 'samples'"
WAIT_MS = 5_000


@pytest.fixture
def horizon_ms() -> int:
    return 120_000


@pytest.fixture
def system(dsn: str, kafka_bootstrap: str, tmp_path: Path, horizon_ms: int) -> System:
    """Tables and topics; nothing runs yet."""
    shipped = load_definition(CONFIGS / "samples.yaml")
    return prepare(
        System(
            settings=Settings(
                servers=Servers(kafka=KafkaSettings(suffix=f"-faults-{uuid.uuid4().hex[:8]}")),
                clock=ClockSettings(origin_event_ms=CLOCK_MS),
                pipeline=Pipeline(
                    feature_actors=0,
                    sample_actors=2,
                    history_actors=0,
                    sample_commit_s=0.05,
                    disorder_ms=1_000,
                    idle_after_ms=600_000,
                    lease_ttl_ms=LEASE_MS,
                ),
            ),
            directory=tmp_path,
            addresses=Addresses(kafka=kafka_bootstrap, postgres=dsn, ray="local"),
            features=load_definitions(CONFIGS / "features.yaml"),
            samples=replace(shipped, wait_ms=WAIT_MS, horizon_ms=horizon_ms, negative_rate=0.5, cached_actions=3),
        )
    )


@pytest.fixture
def undisturbed(
    system: System, postgres_server: PostgresServer, template_database: str, eventually: Eventually
) -> Iterator[Callable[..., dict[str, object]]]:
    """What one owner of all partitions makes of the log as it is now."""
    with run_alone(WATCH, postgres_server, template_database, eventually) as run:
        yield lambda system=system, **how: content(run(system, **how))


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path, stage=SAMPLES)
    yield crew
    crew.end()


@contextmanager
def load(system: System, eventually: Eventually, stream: Iterator[Record]) -> Iterator[Load]:
    """Records come for as long as the block lasts, and were coming all the time; a minute becomes complete."""
    running = Load(system.kafka, stream)
    try:
        yield running
        eventually(lambda: query(system, TABLES["complete"]), what="a minute is complete")
        assert running.running(), "the stream was long enough"
    finally:
        running.finish()


def content(system: System) -> dict[str, object]:
    """Everything that a fault may not change."""
    return {name: query(system, statement) for name, statement in TABLES.items()}


def assert_undisturbed(system: System, eventually: Eventually, undisturbed: Callable[[], dict[str, object]]) -> None:
    # A click that is taken back within the wait makes a sample early, or none yet, as commits fall: let every wait be
    # over. No action's time is.
    WATCH.until_through(system, eventually)
    ((newest_ms,),) = query(system, "SELECT max(max_ts_ms) FROM meta.positions WHERE task = 'samples'")
    send_all(system, ending(newest_ms + WAIT_MS + 2_000))
    WATCH.until_through(system, eventually)
    expected, found = undisturbed(), content(system)
    for name, value in expected.items():
        assert value, f"the load makes some {name}"
        assert found[name] == value, name
    minutes = [int(value) for (value,) in query(system, TABLES["complete"])]
    assert minutes == list(range(minutes[0], minutes[-1] + 1, 60_000)), "each minute once, in order"
    assert query(system, SPILLED) == [(True,)], "memory had no room for all actions that waited"
    assert_as_logged(system)


def assert_as_logged(system: System) -> None:
    """By the log alone, whatever the stage makes of it: positives, and one outcome for each impression."""
    log = [orjson.loads(value) for value in read_log(system) if value.endswith(b"}")]
    asked = {record["request_id"] for record in log if "model_version" in record}
    events = [event for event in log if "event_type" in event]
    gone = {event["retracts"]["event_id"] for event in events if event["event_type"] == RETRACT}
    shown, clicked = (
        {
            (event["request_id"], event["item_id"]): event["ts"]
            for event in events
            if event["event_type"] == kind and event["event_id"] not in gone and "request_id" in event
        }
        for kind in ("impression", "click")
    )
    positives = query(system, "SELECT request_id, item_id FROM samples.current WHERE label = 1")
    assert set(positives) == {key for key in shown.keys() & clicked.keys() if key[0] in asked}
    outcomes = query(system, OUTCOMES)
    assert len(outcomes) == len(set(outcomes)), "an impression has one outcome"
    come_to = min(watermark for _, watermark in query(system, TABLES["watermarks"]))
    over = {key for key, ts in shown.items() if ts + WAIT_MS <= come_to}
    assert over <= set(outcomes) <= shown.keys(), "every impression has an outcome when its wait is over"


def read_log(system: System) -> list[bytes]:
    parts = WATCH.places(system)
    values: list[bytes] = []
    with closing(connect_consumer(system.kafka)) as consumer:
        consumer.assign(dict.fromkeys(parts, EARLIEST))
        total = sum(consumer.end_offsets(parts).values())
        while len(values) < total:
            for batch in consumer.poll(max_records=10_000, timeout_s=5.0):
                values += [value for value in batch.values if value is not None]
    return values


def test_owners_killed_at_any_moment_are_followed_by_others_and_nothing_changes(
    system: System, crew: Crew, eventually: Eventually, undisturbed: Callable[[], dict[str, object]]
) -> None:
    rng, pause = random.Random(1), threading.Event()
    with load(system, eventually, records(1)):
        workers = [crew.start(system, index=index, of=2) for index in range(2)]
        for victim in (0, 1, 1, 0):
            WATCH.until_more(system, eventually)
            pause.wait(rng.uniform(0, 0.5))
            workers[victim].kill()
            workers[victim] = crew.start(system, index=victim, of=2)
        WATCH.until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    for worker in workers:
        worker.stop()


WAITING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ '^samples-' AND wait_event_type = 'Lock'
"""


@contextmanager
def held_at(system: System, eventually: Eventually, table: str) -> Iterator[int]:
    """A commit stands in front of its write to the table during the block; gives the backend."""
    with closing(connect(system.postgres)) as blocker, blocker.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")
        ((pid, *_), *_) = eventually(lambda: query(system, WAITING), what=f"a commit waits for {table}")
        yield pid


@pytest.mark.parametrize("table", ["samples.actions", "samples.revisions", "meta.events", "meta.positions"])
def test_a_commit_cut_off_at_any_step_counts_once(
    system: System, crew: Crew, eventually: Eventually, undisturbed: Callable[[], dict[str, object]], table: str
) -> None:
    with load(system, eventually, records(2)):
        worker = crew.start(system)
        WATCH.until_more(system, eventually)
        before = WATCH.epochs(system)[0]
        with held_at(system, eventually, table) as backend:
            assert query(system, "SELECT pg_terminate_backend(%s, 5000)", backend) == [(True,)]
        eventually(lambda: WATCH.epochs(system)[0] > before, what="a new session")
        WATCH.until_more(system, eventually)
        with held_at(system, eventually, table):
            worker.kill()
        worker = crew.start(system)
        WATCH.until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    worker.stop()


@pytest.mark.parametrize("in_a_commit", [True, False])
def test_an_owner_that_stood_still_while_it_was_replaced_writes_nothing(
    system: System,
    crew: Crew,
    eventually: Eventually,
    undisturbed: Callable[[], dict[str, object]],
    in_a_commit: bool,
) -> None:
    with load(system, eventually, records(3)):
        first = crew.start(system)
        WATCH.until_more(system, eventually)
        (one,) = set(WATCH.owners(system).values())
        with held_at(system, eventually, "samples.revisions") if in_a_commit else nullcontext():
            first.signal(signal.SIGSTOP)
        second = crew.start(system)
        eventually(lambda: one not in WATCH.owners(system).values(), what="another has all")
        WATCH.until_more(system, eventually)
        first.signal(signal.SIGCONT)
        eventually(lambda: first.facts("session_ended"), what="its session ends")
        WATCH.until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    for worker in (first, second):
        worker.stop()


@pytest.mark.parametrize("which", ["postgres", "kafka"])
def test_a_server_that_went_away_under_load_is_gone_on_with(
    system: System,
    crew: Crew,
    eventually: Eventually,
    undisturbed: Callable[[], dict[str, object]],
    postgres_server: PostgresServer,
    kafka_server: KafkaServer,
    which: str,
) -> None:
    server: PostgresServer | KafkaServer = {"postgres": postgres_server, "kafka": kafka_server}[which]
    with load(system, eventually, records(4)):
        workers: list[Worker] = [crew.start(system, index=index, of=2) for index in range(2)]
        WATCH.until_more(system, eventually)
        server.kill()
        try:
            for worker in workers:
                eventually(lambda worker=worker: worker.facts("session_ended"), what="it is noticed")
        finally:
            server.start()
        WATCH.until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    for worker in workers:
        worker.stop()


# An action may be given up while its impression is in a partition that is behind: event time passes here a hundred
# times as fast as the clock.
@pytest.mark.parametrize("horizon_ms", [3_600_000])
def test_more_partitions_and_actors_under_load_lose_and_double_nothing(
    system: System, crew: Crew, eventually: Eventually, undisturbed: Callable[..., dict[str, object]]
) -> None:
    written_with, stream = system.partitions, records(5)
    with load(system, eventually, stream):
        old = [crew.start(system, index=index, of=2) for index in range(2)]
        WATCH.until_more(system, eventually)
    system = add_partitions(system, 6)
    # One that produces learns of partitions within minutes; this one, which goes on where that stopped, at its start.
    with load(system, eventually, stream):
        eventually(lambda: all(end for end in WATCH.ends(system).values()), what="records in every partition")
        workers = [crew.start(system, index=index, of=3) for index in range(3)]
        old[0].kill()
        old[1].stop()
        WATCH.until_more(system, eventually)
        assert set(WATCH.owners(system)) == set(range(6))
        workers[2].kill()
        workers[2] = crew.start(system, index=2, of=3)
        WATCH.until_more(system, eventually)
    assert_undisturbed(system, eventually, partial(undisturbed, system, written_with=written_with))
    for worker in workers:
        worker.stop()


def test_fewer_actors_under_load_lose_and_double_nothing(
    system: System, crew: Crew, eventually: Eventually, undisturbed: Callable[[], dict[str, object]]
) -> None:
    with load(system, eventually, records(6)):
        three = [crew.start(system, index=index, of=3) for index in range(3)]
        WATCH.until_more(system, eventually)
        alone = crew.start(system)
        three[0].kill()
        three[1].stop()
        three[2].stop()
        eventually(lambda: len(set(WATCH.owners(system).values())) == 1, what="one owner of all")
        WATCH.until_more(system, eventually)
    assert_undisturbed(system, eventually, undisturbed)
    alone.stop()
