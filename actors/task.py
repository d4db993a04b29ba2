"""The one loop of every stage: take records, compute, commit outputs and positions together, again.

A session begins with leases and committed state and ends with the first thing that goes wrong; the next one starts from
what was committed. So there is one way to begin, after a start, a crash, a takeover, a lost connection or an unknown
commit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from actors.operator import Operator
from actors.part import Part
from rtrec_ray.backoff import Backoff
from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.errors import LeaseHeld, LeaseLost, ServerUnavailable
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.eventtime.watermark import Watermark, WatermarkOptions
from rtrec_ray.kafka.base import Consumer, RecordBatch, TopicPartition
from rtrec_ray.postgres import lease
from rtrec_ray.postgres.connection import Connection, Cursor, transaction
from rtrec_ray.stores.progress import Committed, read_committed, write_committed

log = logging.getLogger(__name__)

_RENEWALS_PER_LEASE: Final = 3  # one or two may be late


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """One actor's share of a task. Times in wall time.

    `commit_every_s`: from one commit's beginning to the next one's; after one that takes longer than half of that there
    is none for as long, but not longer than that.
    `max_pending_rows` bounds what waits for a commit, in the whole share; `max_open_rows` what waits for event time,
    also in the whole share: a topic that is ahead of a stalled one is then not read until that one has come as far.
    `max_ahead_ms` (event time) bounds how far a topic may be ahead of the slowest that is not idle; None: any distance.
    """

    task: str
    partitions: tuple[int, ...]
    owner: str
    commit_every_s: float = 0.5
    poll_s: float = 0.1
    look_every_s: float = 1.0
    lease_ttl_ms: int = 10_000
    max_poll_records: int = 20_000
    max_pending_rows: int = 200_000
    max_open_rows: int = 4_000_000
    max_ahead_ms: int | None = None
    backoff: Backoff = field(default_factory=Backoff)
    watermark: WatermarkOptions = field(default_factory=WatermarkOptions)


class TaskLoop:
    """Sessions of one actor, one after another, until it is told to stop.

    `first`: partition → offset of behaviour; as long as it names any, the lowest is read up to there, by whoever has
    it, and all others wait. Asked before each session.
    """

    def __init__(
        self,
        options: TaskOptions,
        *,
        make_operator: Callable[[int], Operator],
        connect_consumer: Callable[[], Consumer],
        connect_store: Callable[[], Connection],
        clock: Clock,
        first: Callable[[Cursor], Mapping[int, int]] | None = None,
    ) -> None:
        self._options = options
        self._first = first
        self._make_operator = make_operator
        self._connect_consumer = connect_consumer
        self._connect_store = connect_store
        self._clock = clock
        self.trouble = ""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. A server that is away or a lease that is held is waited for, with back-off."""
        failures, backoff = 0, self._options.backoff
        while not stop.is_set():
            started = monotonic_s()
            try:
                self._session(stop)
            except (LeaseHeld, LeaseLost, ServerUnavailable) as error:
                self.trouble = error.line()
                log.warning("session_ended", extra={"task": self._options.task, "cause": error.line()})
                long_lived = monotonic_s() - started > backoff.longest_s
                failures = 1 if long_lived else failures + 1
                stop.wait(backoff.wait_s(failures))

    def _session(self, stop: threading.Event) -> None:
        connection = self._connect_store()
        try:
            turn = self._turn(connection)
            if turn is None:
                stop.wait(self._options.look_every_s)
                return
            consumer = self._connect_consumer()
            try:
                options = replace(self._options, partitions=turn.partitions)
                session = Session(options, connection=connection, consumer=consumer, clock=self._clock)
                session.begin(self._make_operator, stop=stop)
                self.trouble = ""
                session.serve(stop, upto=turn.upto)
                session.end()
            finally:
                consumer.close()
        finally:
            connection.close()

    def _turn(self, connection: Connection) -> _Turn | None:
        """What the next session reads; None: nothing for now."""
        first: Mapping[int, int] = {}
        if self._first is not None:
            with transaction(connection) as cursor:
                first = self._first(cursor)
        if not first:
            return _Turn(partitions=self._options.partitions)
        partition = min(first)
        place = TopicPartition(topic=BEHAVIOR, partition=partition)
        if partition in self._options.partitions:
            return _Turn(partitions=(partition,), upto={place: first[partition]})
        self.trouble = f"partition {partition} has to come to offset {first[partition]} before others go on"
        log.info("session_waits", extra={"task": self._options.task, "cause": self.trouble})
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """What a session reads. `upto`: where it ends; None: it does not."""

    partitions: tuple[int, ...]
    upto: Mapping[TopicPartition, int] | None = None


class Session:
    """From the taking of the leases to the first fault."""

    def __init__(self, options: TaskOptions, *, connection: Connection, consumer: Consumer, clock: Clock) -> None:
        self._options = options
        self._connection = connection
        self._consumer = consumer
        self._clock = clock
        self._parts: dict[int, Part] = {}
        self._last_renewal = monotonic_s()
        self._commit_from = self._last_renewal + options.commit_every_s
        self._last_look = 0.0
        self._paused: set[TopicPartition] = set()

    def begin(self, make_operator: Callable[[int], Operator], *, stop: threading.Event) -> None:
        """Take the leases, load the state, read the topics that come first. Raises LeaseHeld, ServerUnavailable."""
        for partition in self._options.partitions:
            self._parts[partition] = self._open(partition, make_operator(partition))
        self._drain_preloads(stop)
        self._consumer.assign(self._positions(lambda part, topic: True))

    def serve(self, stop: threading.Event, *, upto: Mapping[TopicPartition, int] | None = None) -> None:
        """Rounds of take, compute, commit, until all of `upto` is read, if that is given."""
        while not stop.is_set() and (upto is None or self._behind(upto)):
            self._round()
            self._commit_or_renew()

    def end(self) -> None:
        """Commit what there is and give the leases back."""
        self.commit()
        lease.release(self._connection, [part.lease for part in self._parts.values()])

    def commit(self) -> None:
        """One transaction: fence, outputs, positions. Raises LeaseLost, StoreUnavailable: then nothing here counts."""
        began, every = monotonic_s(), self._options.commit_every_s
        changed = {p: part for p, part in self._parts.items() if part.dirty or part.operator.pending_rows()}
        operators = [part.operator for part in changed.values()]
        if operators:
            operators[0].prepare(operators)
        with transaction(self._connection) as cursor:
            lease.fence(cursor, [part.lease for part in self._parts.values()])
            for partition, part in changed.items():
                part.counts.update(part.operator.write(cursor))
                self._write_progress(cursor, partition, part)
        for part in changed.values():
            part.operator.committed()
            part.counts.clear()
            part.dirty = False
        self._last_renewal = ended = monotonic_s()
        # From beginning to beginning, but a stage whose commits take long has as much time for its other work.
        self._commit_from = max(began + every, ended + min(every, ended - began))

    def _commit_or_renew(self) -> None:
        if self._commit_is_due():
            self.commit()
        elif (monotonic_s() - self._last_renewal) * 1_000 * _RENEWALS_PER_LEASE >= self._options.lease_ttl_ms:
            self._renew()

    def _renew(self) -> None:
        """Keep the leases of a task that commits less often than they last, or has nothing to commit."""
        with transaction(self._connection) as cursor:
            lease.fence(cursor, [part.lease for part in self._parts.values()])
            for part in self._parts.values():
                part.dirty = part.operator.look(cursor) or part.dirty
        self._last_renewal = monotonic_s()

    def _open(self, partition: int, operator: Operator) -> Part:
        task, options = self._options.task, self._options
        held = lease.take(
            self._connection, task=task, partition=partition, owner=options.owner, ttl_ms=options.lease_ttl_ms
        )
        with transaction(self._connection) as cursor:
            at = read_committed(cursor, task=task, partition=partition)
            applied = {topic: at.next_offset.get(topic, 0) for topic in operator.topics}
            position = {**applied, **operator.restore(cursor, committed=applied)}
        return Part(
            operator=operator,
            lease=held,
            watermark=Watermark(
                operator.timed,
                options=options.watermark,
                value_ms=at.watermark_ms,
                max_ts_ms=at.max_ts_ms,
            ),
            position=position,
            applied=applied,
            dirty=True,  # so that status shows a stage that has had nothing to do yet
        )

    def _drain_preloads(self, stop: threading.Event) -> None:
        positions = self._positions(lambda part, topic: topic in part.operator.preload)
        if not positions:
            return
        self._consumer.assign(positions)
        ends = self._consumer.end_offsets(list(positions))
        while self._behind(ends) and not stop.is_set():
            self._take(self._poll())
            self._commit_or_renew()

    def _behind(self, ends: Mapping[TopicPartition, int]) -> bool:
        return any(self._parts[tp.partition].position[tp.topic] < end for tp, end in ends.items())

    def _round(self) -> None:
        self._take(self._poll())
        now = monotonic_s()
        if now - self._last_look >= self._options.look_every_s:
            self._last_look = now
            ends = self._consumer.end_offsets(list(self._positions(lambda part, topic: True)))
            for partition, part in self._parts.items():
                part.look(ends, partition)
        now_ms = self._clock.now_ms()
        for part in self._parts.values():
            part.advance(now_ms=now_ms)
        self._hold_back()

    def _hold_back(self) -> None:
        """Read no further in topics that are ahead by too much, or while too much waits for a slower one.

        What is not read stays in Kafka: that is where a stream that has to wait is spilled.
        """
        full = sum(part.operator.open_rows() for part in self._parts.values()) >= self._options.max_open_rows
        wanted = {
            TopicPartition(topic=topic, partition=partition)
            for partition, part in self._parts.items()
            for topic in (part.ahead() if full else part.too_far(self._options.max_ahead_ms))
        }
        if wanted != self._paused:
            self._consumer.resume(self._paused - wanted)
            self._consumer.pause(wanted - self._paused)
            self._paused = wanted

    def _poll(self) -> Sequence[RecordBatch]:
        return self._consumer.poll(max_records=self._options.max_poll_records, timeout_s=self._options.poll_s)

    def _take(self, batches: Sequence[RecordBatch]) -> None:
        for batch in batches:
            self._parts[batch.partition].take(batch)

    def _commit_is_due(self) -> bool:
        pending = sum(part.operator.pending_rows() for part in self._parts.values())
        if pending >= self._options.max_pending_rows:
            return True
        changed = pending > 0 or any(part.dirty for part in self._parts.values())
        return changed and monotonic_s() >= self._commit_from

    def _write_progress(self, cursor: Cursor, partition: int, part: Part) -> None:
        at = Committed(
            next_offset=part.applied,
            max_ts_ms={topic: ts for topic, ts in part.times().items() if ts is not None},
            watermark_ms=part.watermark.value_ms,
        )
        write_committed(cursor, task=self._options.task, partition=partition, at=at, lag=part.lag, counts=part.counts)

    def _positions(self, wanted: Callable[[Part, str], bool]) -> dict[TopicPartition, int]:
        return {
            TopicPartition(topic=topic, partition=partition): offset
            for partition, part in self._parts.items()
            for topic, offset in part.position.items()
            if wanted(part, topic)
        }
