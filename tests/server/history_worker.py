"""A process that runs the history task and, when told to, ends itself by SIGKILL at a named point.

    python history_worker.py DSN BOOTSTRAP SUFFIX FOLDER POINT COUNT

POINT: after-files, after-rows or after-commit, at its COUNT-th time; `never` runs until SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import polars as pl

from actors.history import HistoryOperator, HistoryOptions
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.clock import REAL
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_consumer, connect_producer
from rtrec_ray.postgres.connection import PostgresOptions, connect
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import HistoryFile


class Death:
    """SIGKILL at the `count`-th time that `point` is passed."""

    def __init__(self, point: str, count: int) -> None:
        self._point, self._left = point, count

    def passed(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class MortalFiles(ArrowHistoryFiles):
    """Files, with death after they were written."""

    death: Death

    def write(self, topic: str, frame: pl.DataFrame, /, *, partition: int) -> list[HistoryFile]:
        written = super().write(topic, frame, partition=partition)
        self.death.passed("after-files")
        return written


class MortalManifest(PostgresHistoryManifest):
    """A manifest, with death between its rows and the commit."""

    death: Death

    def add(self, cur: Any, files: Sequence[HistoryFile], /) -> None:
        super().add(cur, files)
        self.death.passed("after-rows")


class MortalOperator(HistoryOperator):
    """The operator, with death right after a commit."""

    death: Death

    def committed(self) -> None:
        super().committed()
        self.death.passed("after-commit")


def main(dsn: str, bootstrap: str, suffix: str, folder: str, point: str, count: str) -> None:
    """Run."""
    postgres, kafka = PostgresOptions(dsn=dsn), KafkaOptions(bootstrap=bootstrap, suffix=suffix)
    files = MortalFiles(HistoryFilesOptions(uri=folder))
    manifest = MortalManifest(postgres)
    files.death = manifest.death = MortalOperator.death = Death(point, int(count))
    producer = connect_producer(kafka)
    loop = TaskLoop(
        TaskOptions(
            task="history", partitions=(0, 1), owner=point, commit_every_s=0.1, poll_s=0.02, max_poll_records=300
        ),
        make_operator=lambda _partition: MortalOperator(
            files=files,
            manifest=manifest,
            producer=producer,
            latest_ms=lambda wall_ms: wall_ms + 60_000,
            options=HistoryOptions(max_bytes=20_000),
        ),
        connect_consumer=lambda: connect_consumer(kafka),
        connect_store=lambda: connect(postgres, application="history", pipeline=True),
        clock=REAL,
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    loop.run(stop)
    manifest.close()
    producer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
