"""The loop of every stage against a real PostgreSQL: whatever ends a session, each record counts once."""

import threading

import pytest

from actors.operator import BatchOutcome
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import REAL
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.progress import read_stages

pytestmark = pytest.mark.server

TABLE = "CREATE TABLE public.taken (partition int, value text)"


class Keeper:
    """Writes each record's value as a row: a row too many or too few is a record counted twice or lost."""

    preload = ("profile",)
    timed = ("behavior",)
    topics = ("profile", "behavior")

    def __init__(self, partition: int):
        self._partition = partition
        self._rows = []
        self.order = []

    def restore(self, cursor, *, committed):
        return committed

    def apply(self, batch):
        rows = [value.decode() for value in batch.values]
        self._rows += rows
        self.order += [batch.topic] * len(rows)
        return BatchOutcome(max_ts_ms=int(batch.offsets.max()) * 1_000, counts={"in": len(rows)})

    def advance(self, *, watermark_ms):
        return {}

    def pending_rows(self):
        return len(self._rows)

    def open_rows(self):
        return 0

    @staticmethod
    def prepare(operators):
        pass

    def write(self, cursor):
        for value in self._rows:
            cursor.execute("INSERT INTO public.taken VALUES (%s, %s)", (self._partition, value))
        return {"rows_written": len(self._rows)}

    def committed(self):
        self._rows = []


class Bench:
    """Loops in threads over one broker and one database."""

    def __init__(self, dsn):
        self.options = PostgresOptions(dsn=dsn)
        self.broker = MemoryBroker(partitions=2)
        self.operators = []
        self.loops = []
        self.stops = []
        self.threads = []
        self.query(TABLE)

    def session(self):
        return connect(self.options)

    @staticmethod
    def execute(connection, statement, *arguments):
        with transaction(connection) as cursor:
            cursor.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    def query(self, statement, *arguments):
        connection = self.session()
        try:
            return self.execute(connection, statement, *arguments)
        finally:
            connection.close()

    def rows(self):
        return sorted(value for (value,) in self.query("SELECT value FROM public.taken"))

    def start(self, owner, *, make=None, idle_after_ms=10_000, **options):
        loop = TaskLoop(
            TaskOptions(
                watermark=WatermarkOptions(idle_after_ms=idle_after_ms),
                **options,
                task="keep",
                partitions=(0, 1),
                owner=owner,
                commit_every_s=0.05,
                poll_s=0.02,
                backoff=Backoff(first_s=0.2, longest_s=0.2),
            ),
            make_operator=make or self.make,
            connect_consumer=self.broker.consumer,
            connect_store=lambda: connect(self.options, application=owner, pipeline=True),
            clock=REAL,
        )
        self.loops.append(loop)
        stop = threading.Event()
        thread = threading.Thread(target=loop.run, args=(stop,), name=owner)
        thread.start()
        self.stops.append(stop)
        self.threads.append(thread)
        return stop, thread

    def make(self, partition):
        self.operators.append(Keeper(partition))
        return self.operators[-1]

    def send(self, first, last, topic="behavior"):
        for n in range(first, last):
            self.broker.append(topic, n % 2, b"%s-%05d" % (topic.encode(), n))

    def end(self):
        for stop in self.stops:
            stop.set()
        for thread in self.threads:
            thread.join(timeout=120)
            assert not thread.is_alive()


@pytest.fixture
def bench(dsn):
    bench = Bench(dsn)
    yield bench
    bench.end()


def values(first, last, topic="behavior"):
    return [f"{topic}-{n:05d}" for n in range(first, last)]


def test_every_record_is_written_once(bench, eventually):
    bench.send(0, 500)
    bench.start("one")
    eventually(lambda: bench.rows() == values(0, 500))
    bench.send(500, 700)
    eventually(lambda: bench.rows() == values(0, 700))


def test_a_session_ended_by_the_server_again_and_again_loses_and_doubles_nothing(bench, eventually):
    bench.start("one")
    for n in range(10):
        bench.send(100 * n, 100 * (n + 1))
        bench.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'one'")
    eventually(lambda: len(bench.rows()) >= 1_000)
    assert bench.rows() == values(0, 1_000)


def test_a_second_owner_waits_and_goes_on_where_the_first_ended(bench, eventually):
    stop, thread = bench.start("one")
    bench.send(0, 100)
    eventually(lambda: len(bench.rows()) == 100)
    bench.start("two")
    bench.send(100, 200)
    eventually(lambda: len(bench.rows()) == 200)
    stop.set()
    thread.join(timeout=120)
    bench.send(200, 300)
    eventually(lambda: len(bench.rows()) >= 300)
    assert bench.rows() == values(0, 300)


def test_topics_of_the_preload_are_drained_before_any_other(bench, eventually):
    bench.send(0, 300, topic="profile")
    bench.send(0, 300)
    bench.start("one")
    eventually(lambda: len(bench.rows()) == 600)
    for operator in bench.operators:
        assert operator.order == ["profile"] * 150 + ["behavior"] * 150


def test_a_broker_that_was_away_is_read_on_from_the_committed_position(bench, eventually):
    bench.start("one")
    bench.send(0, 100)
    eventually(lambda: len(bench.rows()) == 100)
    bench.broker.stop()
    eventually(lambda: len(bench.operators) >= 4)  # a session was begun anew
    bench.broker.start()
    bench.send(100, 200)
    eventually(lambda: len(bench.rows()) >= 200)
    assert bench.rows() == values(0, 200)


class Joiner(Keeper):
    """Holds records of `behavior` until `inference-log` has come as far, as a join does."""

    preload = ()
    timed = topics = ("behavior", "inference-log")
    most_open = 0

    def apply(self, batch):
        self._open = getattr(self, "_open", 0) + (len(batch) if batch.topic == "behavior" else 0)
        Joiner.most_open = max(Joiner.most_open, self._open)
        return super().apply(batch)

    def advance(self, *, watermark_ms):
        self._open = 0
        return {}

    def open_rows(self):
        return getattr(self, "_open", 0)


def test_a_stalled_topic_makes_the_others_wait_within_bounds_and_nothing_is_lost(bench, eventually):
    bench.send(0, 20_000)
    bench.start("one", make=Joiner, max_poll_records=100, max_open_rows=1_000, idle_after_ms=600_000)
    eventually(lambda: len(bench.rows()) >= 1_000)
    bench.send(0, 20_000, topic="inference-log")
    eventually(lambda: len(bench.rows()) >= 40_000)
    assert bench.rows() == values(0, 20_000) + values(0, 20_000, topic="inference-log")
    assert 0 < Joiner.most_open <= 1_000 + 100


def test_a_stage_without_records_shows_in_the_status(bench, eventually):
    bench.start("one")
    eventually(lambda: bench.query("SELECT count(*) FROM meta.progress") == [(2,)])


def test_progress_is_what_was_committed(bench, eventually):
    bench.send(0, 100)
    stop, thread = bench.start("one")
    eventually(lambda: len(bench.rows()) == 100)
    stop.set()
    thread.join(timeout=120)
    connection = bench.session()
    with transaction(connection) as cursor:
        stage = read_stages(cursor)["keep"]
    connection.close()
    assert dict(stage.counts) == {"in": 100, "rows_written": 100}
    assert stage.watermark_ms == 49 * 1_000 - 5_000
    assert not stage.up
