"""The system watched from outside, about once a second: how far each stage is, and what became of the models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.demo.record import Moment, StageMoment
from rtrec_ray.errors import ServerUnavailable
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.base import Consumer, KafkaOptions, TopicPartition
from rtrec_ray.kafka.connect import connect_consumer
from rtrec_ray.notification import MODEL, Event, EventFilter, PostgresNotificationStore
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.progress import read_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look saw: the moment, and the events about models since the look before."""

    moment: Moment
    events: Sequence[Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Where to look. `partitions`: of the behaviour topic."""

    kafka: KafkaOptions
    postgres: PostgresOptions
    clock: Clock
    partitions: int


class Timeline:
    """A thread that looks every `every_s` and tells `watch` what it saw. `began_s`: monotonic time of the run's start.

    A look that fails because a server is away is left out.
    """

    def __init__(
        self, watched: Watched, *, began_s: float, watch: Callable[[Seen], None], every_s: float = 1.0
    ) -> None:
        self._kafka = watched.kafka
        self._postgres = watched.postgres
        self._clock = watched.clock
        self._partitions = [TopicPartition(topic=BEHAVIOR, partition=index) for index in range(watched.partitions)]
        self._began_s = began_s
        self._watch = watch
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="timeline", daemon=True)
        self._moments: list[Moment] = []
        self._events: list[Event] = []

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()

    def moments(self) -> tuple[Moment, ...]:
        """What was seen so far."""
        return tuple(self._moments)

    def events(self) -> tuple[Event, ...]:
        """The events about models so far, in their order."""
        return tuple(self._events)

    def _run(self) -> None:
        pool = Pool(self._postgres, size=1, application="rtrec-demo")
        with (
            closing(connect_consumer(self._kafka)) as consumer,
            closing(PostgresNotificationStore(self._postgres)) as notes,
            closing(pool),
        ):
            while not self._stopped.wait(self._every_s):
                self._look(consumer, pool, notes)

    def _look(self, consumer: Consumer, pool: Pool, notes: PostgresNotificationStore) -> None:
        try:
            seen = Seen(moment=self._moment(consumer, pool), events=self._new_events(notes))
        except ServerUnavailable:
            return
        self._moments.append(seen.moment)
        self._events.extend(seen.events)
        self._watch(seen)

    def _moment(self, consumer: Consumer, pool: Pool) -> Moment:
        # The positions first: read the other way round, a stage could seem to be ahead of the log.
        with pool.transaction() as cursor:
            stages = read_stages(cursor)
            cursor.execute(load(__package__, "demo.sql")["applied"], {"topic": BEHAVIOR})
            applied = dict(cursor.fetchall())
        on_log = sum(consumer.end_offsets(self._partitions).values())
        return Moment(
            at_s=monotonic_s() - self._began_s,
            clock_ms=self._clock.now_ms(),
            on_log=on_log,
            stages={
                task: StageMoment(
                    applied=applied.get(task, 0), watermark_ms=stage.watermark_ms, counts=dict(stage.counts)
                )
                for task, stage in stages.items()
            },
        )

    def _new_events(self, notes: PostgresNotificationStore) -> Sequence[Event]:
        after = self._events[-1].offset if self._events else 0
        return notes.list(EventFilter(key=MODEL), after_offset=after)
