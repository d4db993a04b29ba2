"""Laws of event time where watermark, idleness and features meet: partitions that rest, stall and die, clocks that lie.

A schedule says what happens in turn: an event is sent, an owner has its turn, with or without reading, commits or dies,
or the one clock of all goes on.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field, replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.feature import FeatureOperator
from actors.part import Part
from rtrec_ray.app.system import LatestBelieved
from rtrec_ray.clock import REAL, ManualClock
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.eventtime.watermark import Watermark, WatermarkOptions
from rtrec_ray.kafka.base import TopicPartition
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.postgres.lease import Lease
from rtrec_ray.stores.features.memory import MemoryFeatureStore
from tests.property.test_features import (
    ALL_KEYS,
    BASE,
    DEFINITIONS,
    DISORDER,
    EDGE,
    HORIZON,
    MINUTE,
    PARTITIONS,
    SECOND,
    TILE,
    WINDOWS,
    expected,
    name_of,
    present,
    span,
)

SKEW, IDLE, HOUR, YEAR = MINUTE, 10 * SECOND, 60 * MINUTE, 365 * 24 * 60 * MINUTE
OPTIONS = WatermarkOptions(disorder_ms=DISORDER, idle_after_ms=IDLE)


# --- one operator's watermark over several sources --------------------------------------------------------------------

SOURCES = ["a", "b", "c"]
brought = st.tuples(st.just("brought"), st.sampled_from(SOURCES), st.sampled_from([None, *range(0, 30, 3)]))
looks = st.tuples(st.just("looked"), st.sampled_from(["abc", "abc", "ab", "c", ""]), st.none())
waits = st.tuples(st.just("wait"), st.sampled_from([1, 5, 9, 10]), st.none())


class Sources:
    """A watermark, and what is known of its sources in plain words: `run` lets one step happen to both."""

    def __init__(self):
        self.mark = Watermark(SOURCES, options=WatermarkOptions(disorder_ms=5, idle_after_ms=10))
        self.newest = dict.fromkeys(SOURCES)
        self.at_end_since = dict.fromkeys(SOURCES)
        self.goes_on = None
        self.now = 0

    def run(self, kind, what, ts):
        if kind == "brought":
            self.mark.arrived(what, max_ts_ms=ts)
            self.newest[what] = max((ms for ms in (self.newest[what], ts) if ms is not None), default=None)
            self.at_end_since[what] = self.goes_on = None
        elif kind == "looked":
            for source in SOURCES:
                self.mark.looked(source, at_end=source in what, wall_ms=self.now)
                since = self.now if self.at_end_since[source] is None else self.at_end_since[source]
                self.at_end_since[source] = since if source in what else None
        else:
            self.now += what

    def allowed(self, before):
        """How far event time may be by now: as far as the slowest source that is not idle has come; if all are idle, on
        from where it was.
        """
        since = self.at_end_since
        waited_for = [name for name in SOURCES if since[name] is None or self.now - since[name] < 10]
        if waited_for:
            self.goes_on = None
            times = [self.newest[name] for name in waited_for]
            return None if None in times else min(times) - 5
        newest = max((ts for ts in self.newest.values() if ts is not None), default=None)
        if newest is None:
            return None
        if self.goes_on is None:
            self.goes_on = newest - 5 if before is None else max(newest - 5, before), self.now
        start, since = self.goes_on
        return min(start + self.now - since, max(newest, self.now) - 5)


@given(st.lists(st.one_of(brought, brought, looks, looks, waits, waits), min_size=15, max_size=50))
def test_a_watermark_never_moves_back_waits_for_the_stalled_and_not_for_the_idle(steps):
    sources, before = Sources(), None
    for step in steps:
        sources.run(*step)
        mark = sources.mark.advance(wall_ms=sources.now, now_ms=sources.now)
        assert mark == max((ms for ms in (before, sources.allowed(before)) if ms is not None), default=None)
        before = mark


# --- the feature stage ------------------------------------------------------------------------------------------------

# On both sides of every bound that decides about an event: skew, disorder, horizon; and a clock that is a year ahead.
leads = st.sampled_from(
    [0, 0, 0, 0, 1, SKEW, SKEW + 1, YEAR, -1, -TILE, -DISORDER, -DISORDER - 1, -MINUTE, -EDGE, -EDGE - 1]
)
pauses = st.sampled_from([1, SECOND, IDLE - 1, IDLE, TILE, MINUTE, 5 * MINUTE, HORIZON])
partitions = st.integers(0, PARTITIONS - 1)
kinds = st.sampled_from(
    [
        {"event_type": "view", "item_id": 1, "item_type": "product", "page_id": 3, "dwell_ms": 5},
        {"event_type": "view", "item_id": 2, "item_type": "ad", "page_id": 4},
        {"event_type": "click", "item_id": 1, "category_id": 7},
        {"event_type": "search", "query": "b"},
    ]
)
sends = st.tuples(
    st.just("send"),
    st.builds(
        lambda number, user, fields: present(event_id=f"e{number}", user_id=user, **fields),
        st.integers(0, 3), st.sampled_from([1, 1, 2, 3]), kinds,
    ),
    leads,
    st.sampled_from(["broker", "broker", "producer"]),
)  # fmt: skip
acts = ["turn", "turn", "rest", "turn_without_reading", "commit", "die", "hand_over"]
turns = st.tuples(st.sampled_from(acts), partitions)
waiting = st.tuples(st.just("wait"), pauses)
schedules = st.lists(st.one_of(sends, sends, turns, turns, waiting), min_size=12, max_size=40)


@dataclass
class Account:
    """What must have become of one partition's records so far, and how far its event time must be."""

    read: int = 0
    kept: list[dict] = field(default_factory=list)
    names: set = field(default_factory=set)
    counts: Counter = field(default_factory=Counter)
    newest: int | None = None
    mark: int | None = None
    at_end_since: int | None = None
    goes_on: tuple[int, int] | None = None

    def take(self, event, *, believed_to):
        self.read += 1
        self.counts["in"] += 1
        self.at_end_since = self.goes_on = None
        if event["ts"] > believed_to:
            self.counts["dead"] += 1
        elif not self.beyond_horizon(event):
            self.counts["duplicate"] += name_of(event) in self.names
            self.kept += [] if name_of(event) in self.names else [event]
            self.names.add(name_of(event))

    def beyond_horizon(self, event):
        mark = self.mark
        self.newest = event["ts"] if self.newest is None else max(event["ts"], self.newest)
        self.raise_mark(self.newest - DISORDER)
        if mark is None or event["ts"] >= mark:
            return False
        beyond = event["ts"] < mark - HORIZON
        self.counts["late"] += 1
        self.counts["beyond_horizon" if beyond else "corrected"] += 1
        return beyond

    def look(self, *, at_end, now):
        self.at_end_since = (now if self.at_end_since is None else self.at_end_since) if at_end else None
        if self.at_end_since is None or now - self.at_end_since < IDLE:
            self.goes_on = None
        elif self.newest is not None:
            self.goes_on = (self.mark, now) if self.goes_on is None else self.goes_on
            start, since = self.goes_on
            self.raise_mark(min(start + now - since, max(now, self.newest) - DISORDER))

    def raise_mark(self, ms):
        self.mark = ms if self.mark is None else max(self.mark, ms)

    def without_owner(self):
        """The same, by somebody who never saw the log's end."""
        return replace(copy.deepcopy(self), at_end_since=None, goes_on=None)


class Partition:
    """One partition's log and whoever owns it, with the account of what must have become of it."""

    def __init__(self, number, *, store, time):
        self.number, self.store, self.time = number, store, time
        self.place = TopicPartition(topic=BEHAVIOR, partition=number)
        self.broker = MemoryBroker(partitions=PARTITIONS)
        self.consumer = self.broker.consumer()
        self.log, self.account, self.totals = [], Account(), Counter()
        self.committed, self.progress = Account(), {}
        self.part = None

    def send(self, event, lead, stamped_by):
        """Send an event so far ahead of the clock. A producer that stamps it does so by the clock it took `ts` from."""
        sent, now = {**event, "ts": self.time.now_ms() + lead}, self.time.now_ms()
        stamp = sent["ts"] if stamped_by == "producer" else now
        self.broker.append(BEHAVIOR, self.number, msgspec.json.encode(sent), timestamp_ms=stamp)
        self.log.append((sent, stamp))

    def turn(self):
        """Read on, and look."""
        part = self.owned()
        for batch in self.consumer.poll(max_records=3, timeout_s=0):
            part.take(batch)
            for sent, stamp in self.log[self.account.read : batch.next_offset]:
                self.account.take(sent, believed_to=min(stamp, self.time.now_ms()) + SKEW)
        self.turn_without_reading()

    def turn_without_reading(self):
        """Compare the position with the log's end, and let event time come to where it stands."""
        part, now, before = self.owned(), self.time.now_ms(), self.mark()
        part.look(self.consumer.end_offsets([self.place]), self.number)
        part.advance(now_ms=now)
        self.account.look(at_end=self.account.read == len(self.log), now=now)
        assert self.mark() == self.account.mark
        assert before is None or self.mark() >= before

    def rest(self):
        """Have turns until the partition is idle, if nothing else is in the log."""
        self.turn()
        self.time.advance(IDLE)
        self.turn()

    def commit(self):
        """What is one transaction."""
        part = self.owned()
        part.operator.write(None)
        part.operator.committed()
        self.totals += part.counts
        part.counts.clear()
        self.committed = self.account.without_owner()
        newest = {topic: ts for topic, ts in part.times().items() if ts is not None}
        self.progress = {"value_ms": part.watermark.value_ms, "max_ts_ms": newest}

    def die(self):
        """Lose the owner, with what it has not committed; who has the next turn goes on from there."""
        self.part, self.account = None, self.committed.without_owner()

    def hand_over(self):
        """Let somebody else own the partition, with nothing lost."""
        self.commit()
        self.die()

    def owned(self):
        if self.part is None:
            believed = LatestBelieved(clock=REAL, skew_ms=SKEW, wall_ms=self.time.now_ms)
            operator = FeatureOperator(self.number, store=self.store, latest_ms=believed, watermark=OPTIONS)
            position = dict.fromkeys(operator.topics, 0) | {BEHAVIOR: self.account.read}
            self.part = Part(
                operator=operator,
                lease=Lease(task="features", partition=self.number, epoch=1, ttl_ms=1),
                watermark=Watermark([BEHAVIOR], options=OPTIONS, **self.progress),
                position={**position, **operator.restore(None, committed=position)},
                applied=position,
                wall_ms=self.time.now_ms,
            )
            self.consumer.assign({self.place: position[BEHAVIOR]})
        return self.part

    def mark(self):
        return self.owned().watermark.value_ms

    def drain(self):
        """Read to the log's end, and commit."""
        self.turn()
        while self.account.read < len(self.log):
            self.turn()
        self.commit()


class Stage:
    """All partitions over one store, by one clock, after a schedule and with all logs read."""

    def __init__(self, schedule, *, definitions=DEFINITIONS):
        self.time = ManualClock(now_ms=BASE)
        self.store = MemoryFeatureStore(definitions)
        self.store.apply(None)
        self.partitions = [Partition(number, store=self.store, time=self.time) for number in range(PARTITIONS)]
        for kind, *rest in schedule:
            if kind == "wait":
                self.time.advance(*rest)
            elif kind == "send":
                self.partitions[rest[0]["user_id"] % PARTITIONS].send(*rest)
            else:
                getattr(self.partitions[rest[0]], kind)()
        for partition in self.partitions:
            partition.drain()

    def kept(self):
        return [event for partition in self.partitions for event in partition.account.kept]

    def stay_quiet(self, ms):
        """Nothing comes for so long."""
        for step in (0, IDLE, ms):
            self.time.advance(step)
            for partition in self.partitions:
                partition.turn()


@given(schedules)
def test_values_and_outcomes_are_those_of_the_accepted_events_however_partitions_rest_stall_and_die(schedule):
    stage = Stage(schedule)
    for partition in stage.partitions:
        counts, account = partition.totals, partition.account
        assert counts["in"] == len(partition.log)
        assert counts["in"] == len(account.kept) + counts["dead"] + counts["beyond_horizon"] + counts["duplicate"]
        assert {name: n for name, n in counts.items() if n and name != "rows_written"} == +account.counts
    kept, now = stage.kept(), stage.time.now_ms()
    edges = {event["ts"] + window for event in kept for window in (0, *WINDOWS.values())}
    moments = sorted({edge - edge % TILE + step for edge in edges for step in (0, TILE)})
    for as_of_ms in [None, *moments[:: len(moments) // 16 + 1]]:
        values = stage.store.get(ALL_KEYS, as_of_ms=as_of_ms, now_ms=now)
        for ask in ALL_KEYS:
            start, end = span(ask.view, as_of_ms=as_of_ms, now_ms=now)
            assert values[ask] == expected(ask, kept, [], start=start, end=end), (ask, as_of_ms)


# What comes after a schedule needs fewer of them, and two views say as much about time as all do.
FEW = replace(DEFINITIONS, views=(DEFINITIONS.view("user_browse_5m"), DEFINITIONS.view("top_viewed_30m")))
HALF = settings(max_examples=settings.default.max_examples // 2)
FEW_KEYS = [ask for ask in ALL_KEYS if ask.view in ("user_browse_5m", "top_viewed_30m")]


@HALF
@given(schedules, st.sampled_from(["broker", "producer"]))
def test_an_event_beyond_the_skew_moves_no_watermark_and_counts_nowhere(schedule, stamped_by):
    stage = Stage(schedule, definitions=FEW)
    for partition in stage.partitions:
        mark, counts = partition.mark(), partition.totals.copy()
        partition.send({"event_id": "ahead", "event_type": "view", "user_id": partition.number}, SKEW + 1, stamped_by)
        partition.drain()
        assert partition.mark() == mark
        assert partition.totals - counts == {"in": 1, "dead": 1}


@HALF
@given(schedules)
def test_a_partition_at_rest_goes_on_with_the_clock_and_one_with_unread_records_stands(schedule):
    stage = Stage(schedule, definitions=FEW)
    quiet, stalled = stage.partitions
    for partition in stage.partitions:
        partition.send({"event_id": "last", "event_type": "view", "user_id": partition.number}, 0, "broker")
        partition.drain()
    stood = stalled.mark()
    stalled.send({"event_id": "unread", "event_type": "view", "user_id": 1}, 0, "broker")
    for step in (0, IDLE, HORIZON):
        stage.time.advance(step)
        quiet.turn()
        stalled.turn_without_reading()
    assert quiet.mark() >= stage.time.now_ms() - IDLE - DISORDER
    assert stalled.mark() == stood
    stalled.drain()
    assert stalled.totals["in"] == len(stalled.log)


@HALF
@given(schedules)
def test_windows_expire_and_their_tiles_are_dropped_though_nothing_comes(schedule):
    stage = Stage(schedule, definitions=FEW)
    stage.stay_quiet(SKEW + max(WINDOWS.values()) + TILE)
    assert set(stage.store.get(FEW_KEYS, as_of_ms=None, now_ms=stage.time.now_ms()).values()) == {None}
    stage.stay_quiet(3 * HOUR)
    for partition in stage.partitions:
        partition.commit()
    stage.store.drop_expired()
    assert not any(rows for keys in stage.store.tables.tiles.values() for rows in keys.values())
