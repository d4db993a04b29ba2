"""Processes that work at a stage under faults, and how far they have come."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient, NewPartitions

from rtrec_ray.app.pipeline import Share, make_work
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import System
from rtrec_ray.embedded.postgres import PostgresServer
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.base import TopicPartition
from rtrec_ray.kafka.connect import connect_consumer, connect_producer
from rtrec_ray.kafka.topics import topic_specs
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.stores.samples.live import enter_partitions
from tests.conftest import Eventually
from tests.e2e.feature_content import query
from tests.e2e.feature_load import send
from tests.e2e.feature_worker import work

LEASE_MS = 2_000

_POSITIONS = "SELECT topic, partition, next_offset FROM meta.positions WHERE task = %s"
_LEASES = "SELECT partition, epoch, owner FROM meta.leases WHERE task = %s ORDER BY partition"


@dataclass(kw_only=True)
class Worker:
    """One share of a stage as a process of its own."""

    process: Any
    log: Path

    def facts(self, event: str) -> list[dict[str, Any]]:
        """What it logged under that name."""
        told = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [fact for fact in told if fact["event"] == event]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        """End it in order."""
        self.process.terminate()
        self.process.join(timeout=120)
        if self.process.exitcode is None:
            self.signal(signal.SIGUSR1)  # it says where its threads are
            self.process.join(timeout=1)
        assert self.process.exitcode == 0, self.log.read_text()[-20_000:]


class Crew:
    """The workers of a test; whoever is left at its end is killed."""

    def __init__(self, folder: Path, *, stage: str) -> None:
        self._folder = folder
        self._stage = stage
        self._workers: list[Worker] = []
        # Every process imports the same; the server that they are forked from has done it for all.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["actors.stage", "rtrec_ray.app.pipeline"])

    def start(self, system: System, *, index: int = 0, of: int = 1) -> Worker:
        """Start the `index`-th of `of` workers, which has to wait when its partitions have an owner."""
        share = Share(stage=self._stage, index=index, of=of, partitions=system.partitions)
        log = self._folder / f"worker-{len(self._workers)}.log"
        log.touch()
        process = self._context.Process(target=work, args=(system, share, log))
        process.start()
        self._workers.append(Worker(process=process, log=log))
        return self._workers[-1]

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How far a stage has come in its topics."""

    stage: str
    topics: tuple[str, ...]

    def places(self, system: System) -> list[TopicPartition]:
        return [
            TopicPartition(topic=topic, partition=partition)
            for topic in self.topics
            for partition in range(system.partitions)
        ]

    def ends(self, system: System) -> dict[TopicPartition, int]:
        with closing(connect_consumer(system.kafka)) as consumer:
            return consumer.end_offsets(self.places(system))

    def applied(self, system: System) -> dict[TopicPartition, int]:
        rows = query(system, _POSITIONS, self.stage)
        return {TopicPartition(topic=topic, partition=partition): offset for topic, partition, offset in rows}

    def events_applied(self, system: System) -> int:
        return sum(offset for place, offset in self.applied(system).items() if place.topic == BEHAVIOR)

    def epochs(self, system: System) -> dict[int, int]:
        return {partition: epoch for partition, epoch, _ in query(system, _LEASES, self.stage)}

    def owners(self, system: System) -> dict[int, str]:
        return {partition: owner for partition, _, owner in query(system, _LEASES, self.stage)}

    def until_more(self, system: System, eventually: Eventually) -> None:
        """Wait until events that are not applied yet are, in every partition."""
        upto = {place: end for place, end in self.ends(system).items() if place.topic == BEHAVIOR}

        def more() -> bool:
            now = self.applied(system)
            return all(now.get(place, 0) > end for place, end in upto.items())

        eventually(more, what="commits in every partition")

    def until_through(self, system: System, eventually: Eventually) -> None:
        """Wait until all that is in the log is applied."""
        upto = self.ends(system)
        eventually(lambda: self.applied(system) == upto, what="the whole log is applied")


@contextmanager
def run_alone(
    watch: Watch, server: PostgresServer, template: str, eventually: Eventually
) -> Iterator[Callable[..., System]]:
    """Lets one owner of all partitions make what it makes of a system's log, in a database of its own.

    `written_with`: partitions that the log began with, fewer than it has: the store has to know of it.
    """
    name = f"undisturbed_{uuid.uuid4().hex[:8]}"

    def run(system: System, *, written_with: int | None = None) -> System:
        server.create_database(name, template=template)
        alone = replace(system, addresses=replace(system.addresses, postgres=server.dsn(name)))
        with closing(connect(alone.postgres)) as connection, transaction(connection) as cursor:
            enter_partitions(cursor, system.partitions if written_with is None else written_with)
        alone = prepare(alone)
        (loop, *_) = make_work(alone, Share(stage=watch.stage, index=0, of=1, partitions=system.partitions))
        stop = threading.Event()
        thread = threading.Thread(target=loop.run, args=(stop,))
        thread.start()
        try:
            watch.until_through(alone, eventually)
        finally:
            stop.set()
            thread.join()
        return alone

    yield run
    server.drop_database(name)


def add_partitions(system: System, count: int) -> System:
    """The system with so many partitions of each topic, known to its store."""
    names = [system.kafka.physical(spec.topic) for spec in topic_specs(partitions=count)]
    admin = AdminClient({"bootstrap.servers": system.kafka.bootstrap})
    for done in admin.create_partitions([NewPartitions(name, count) for name in names]).values():
        done.result(30)
    return prepare(system)


def send_all(system: System, batch: list[Any]) -> None:
    with closing(connect_producer(system.kafka)) as producer:
        send(producer, batch)
        producer.flush()
