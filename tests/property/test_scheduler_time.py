"""What time alone makes a scheduler do: away for long, killed at any step, it orders each meeting once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from rtrec_ray.clock import ManualClock
from rtrec_ray.notification import NewEvent
from rtrec_ray.workflow.conditions import Absence, EventIs, Schedule, WatermarkAt
from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.scheduler import Scheduler
from tests.workflow_desk import Desk, node, on, workflow

BEGIN_MS = 1_000
EVERY, GRACE, SILENCE, MARKS = 7, 3, 11, 5
POLICIES = ("all", "latest", "skip")


def example() -> Workflow:
    rules = [
        on(policy, Schedule(every_ms=EVERY, grace_ms=GRACE, missed=policy), node=policy)  # type: ignore[arg-type]
        for policy in POLICIES
    ]
    rules.append(on("silence", Absence(ms=SILENCE, term=EventIs(key="a")), node="silence"))
    rules.append(on("mark", WatermarkAt(stage="s", every_ms=MARKS), node="mark"))
    return workflow(tuple(node(rule.name) for rule in rules), tuple(rules))


@dataclass(frozen=True)
class Told:
    """Something a scheduler was told: that time came to `upto` while it was `now`; an event `a`; a watermark."""

    upto: int
    now: int
    seen: bool = False
    mark: int | None = None


class Play:
    """One log and one store; a scheduler that is thrown away, and what it was told and stored."""

    def __init__(self) -> None:
        self.clock = ManualClock(now_ms=BEGIN_MS)
        self.desk, self.flow = Desk(self.clock), example()
        self.desk.store.apply(self.flow)
        self.durable: list[Told] = []
        self.pending: list[Told] = []
        self.session = self.desk.store.open_session(owner="test", ttl_ms=10**9)
        self.scheduler = Scheduler()
        self.read(1)
        self.commit(0)
        self.durable.clear()

    def wait(self, ms: int) -> None:
        self.clock.advance(ms)

    def send(self, number: int) -> None:
        self.desk.log.send(NewEvent(key="ab"[number % 2], value=""))

    def read(self, count: int) -> None:
        for event in self.desk.events(self.scheduler.position)[:count]:
            self.scheduler.know(self.flow)
            self.pending.append(Told(upto=event.time_ms, now=self.clock.now_ms(), seen=event.key == "a"))
            self.scheduler.handle(event, now_ms=self.clock.now_ms(), wall_ms=0)

    def look(self, _: int) -> None:
        self.pending.append(Told(upto=self.clock.now_ms(), now=self.clock.now_ms()))
        self.scheduler.tick(now_ms=self.clock.now_ms(), wall_ms=0)

    def mark(self, value: int) -> None:
        self.pending.append(Told(upto=self.clock.now_ms(), now=self.clock.now_ms(), mark=value))
        self.scheduler.move_watermark("s", value, now_ms=self.clock.now_ms(), wall_ms=0)

    def commit(self, _: int) -> None:
        self.session.commit(self.scheduler.changes())
        self.durable += self.pending
        self.pending = []

    def crash(self, _: int) -> None:
        self.pending = []
        self.session.close()
        self.session, loaded = self.desk.store.open_session(owner="test", ttl_ms=10**9), self.desk.store.load()
        self.scheduler = Scheduler(position=loaded.position, time_ms=loaded.time_ms, workflows=loaded.workflows)

    def starts(self) -> dict[str, int]:
        """Rule → starts that were ordered, or wait to be."""
        counted = Counter(order.cause.rule for order in self.desk.store.orders.values())
        for state in self.desk.store.load().workflows["w"].nodes.values():
            counted.update(cause.rule for cause in state.waiting)
        return {rule.name: counted[rule.name] for rule in self.flow.rules}


STEPS = st.tuples(
    st.sampled_from(["wait", "wait", "send", "read", "mark", "mark", "look", "commit", "crash"]), st.integers(1, 30)
)


@settings(deadline=None, max_examples=200)
@given(steps=st.lists(STEPS, min_size=10, max_size=60))
def test_each_due_time_silence_and_mark_is_one_start_whatever_dies(steps: list[tuple[str, int]]) -> None:
    play = Play()
    for what, value in (*steps, ("read", 1_000), ("look", 0), ("commit", 0)):
        getattr(play, what)(value)
    assert play.starts() == {
        **{policy: _due(policy, play.durable) for policy in POLICIES},
        "silence": _silences(play.durable),
        "mark": _marks(each.mark for each in play.durable if each.mark is not None),
    }


def _due(policy: str, told: Iterable[Told]) -> int:
    """A time is due at each whole multiple of EVERY; one that was missed by more than GRACE goes by the policy."""
    after, count = BEGIN_MS, 0
    for each in told:
        due = [ms for ms in range(BEGIN_MS, each.upto + 1) if ms % EVERY == 0 and ms > after]
        for ms in due:
            if ms <= after:  # merged with one before it, or let go
                continue
            missed = each.now - ms > GRACE
            count += not (missed and policy == "skip")
            after = each.now if missed and policy == "latest" else ms
            if missed and policy == "skip":
                after = each.now - GRACE - 1
    return count


def _silences(told: Iterable[Told]) -> int:
    since, said, count = BEGIN_MS, False, 0
    for each in told:
        over = not said and each.upto >= since + SILENCE
        count, said = count + over, said or over
        if each.seen:
            since, said = each.upto, False
    return count


def _marks(values: Iterable[int]) -> int:
    reached, count = None, 0
    for value in values:
        count += reached is not None and value // MARKS > reached
        reached = max(value // MARKS, -1 if reached is None else reached)
    return count
