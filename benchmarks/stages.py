"""What the benchmarks of whole stages share: a database, where a topic ends, what a process used."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil

from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.kafka.base import KafkaOptions, TopicPartition
from rtrec_ray.kafka.connect import connect_admin, connect_consumer
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.stores.features.near import NearFeatures


def used(cpu_s: float) -> dict[str, float]:
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return {"cpu_s": time.process_time() - cpu_s, "peak_rss_mb": int(peak.split()[1]) / 1024}


@contextmanager
def database(dsn: str | None) -> Iterator[tuple[PostgresOptions, PostgresServer | None]]:
    if dsn is not None:
        migrate(PostgresOptions(dsn=dsn))
        yield PostgresOptions(dsn=dsn), None
        return
    with tempfile.TemporaryDirectory(prefix="rtrec-bench-") as directory:
        server = PostgresServer(PostgresServerOptions(directory=Path(directory) / "pg"))
        server.start()
        migrate(PostgresOptions(dsn=server.dsn()))
        try:
            yield PostgresOptions(dsn=server.dsn()), server
        finally:
            server.stop()


def server_cpu(server: PostgresServer | None) -> float | None:
    if server is None:
        return None
    root = psutil.Process(int((server.directory / "data" / "postmaster.pid").read_text().split()[0]))
    backends = []
    for backend in root.children():
        with suppress(psutil.NoSuchProcess):
            backends.append(backend.cpu_times())
    own = root.cpu_times()  # last: a backend that ended has left its time to the postmaster
    return sum(each.user + each.system for each in [own, *backends]) + own.children_user + own.children_system


def ends_of(kafka: KafkaOptions, topic: str) -> dict[int, int]:
    with connect_admin(kafka) as admin:
        partitions = admin.partitions(topic)
    if not partitions:
        raise SystemExit(f"there is no topic {kafka.physical(topic)}; fill it with the load generator")
    with closing(connect_consumer(kafka)) as consumer:
        found = consumer.end_offsets([TopicPartition(topic=topic, partition=each) for each in range(partitions)])
    return {part.partition: end for part, end in found.items()}


@contextmanager
def looked_after(near: NearFeatures, *, every_s: float) -> Iterator[NearFeatures]:
    """Windows in memory, kept fresh beside the block as a serving replica does."""
    stop = threading.Event()
    looking = threading.Thread(target=near.run, args=(stop,), kwargs={"every_s": every_s})
    looking.start()
    try:
        yield near
    finally:
        stop.set()
        looking.join()
