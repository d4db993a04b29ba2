"""Conditions against a plain reference over the whole list of events, and schedules against counting minutes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from rtrec_ray.workflow.conditions import (
    Absence,
    AllOf,
    AnyOf,
    Condition,
    Count,
    EventIs,
    Schedule,
    Sequence,
    StatusIs,
    WatermarkAt,
    Within,
)
from rtrec_ray.workflow.cron import parse_cron
from rtrec_ray.workflow.evaluate import handle, initial, wake_ms
from rtrec_ray.workflow.stimuli import Occurred, StatusChanged, Stimulus, Ticked, WatermarkMoved
from tests.workflow_reference import firings

KEYS = "abc"


def event(offset: int, key: str, time_ms: int) -> Occurred:
    return Occurred(offset=offset, key=key, value="", type="T", namespace="n", sender="", time_ms=time_ms)


@st.composite
def logs(draw: st.DrawFn, keys: str = KEYS) -> list[Occurred]:
    steps = draw(st.lists(st.tuples(st.sampled_from(keys), st.integers(0, 4)), max_size=14))
    time_ms, found = 100, []
    for offset, (key, step) in enumerate(steps, 1):
        time_ms += step
        found.append(event(offset, key, time_ms))
    return found


leaf = st.sampled_from([EventIs(key="a"), EventIs(key="b"), EventIs(key="c"), EventIs(key="[ab]")])
terms = lambda inner, least: st.lists(inner, min_size=least, max_size=3).map(tuple)  # noqa: E731
conditions = st.recursive(
    leaf,
    lambda inner: st.one_of(
        terms(inner, 1).map(lambda t: AllOf(terms=t)),
        terms(inner, 1).map(lambda t: AnyOf(terms=t)),
        terms(inner, 1).map(lambda t: Sequence(terms=t)),
        st.builds(lambda n, term: Count(n=n, term=term), st.integers(1, 3), inner),
        st.builds(lambda ms, term: Within(ms=ms, term=term), st.integers(0, 12), inner),
    ),
    max_leaves=5,
)


def run(condition: Condition, stimuli: list[Stimulus], *, start_ms: int = 100) -> list[tuple[Stimulus, int]]:
    """Feed them, time told before each as `wake_ms` asks for it; the state makes the trip through JSON each time."""
    state, met = initial(condition, start_ms), []
    for stimulus in stimuli:
        while (wake := wake_ms(condition, state)) is not None and wake <= stimulus.time_ms:
            tick = Ticked(time_ms=wake)
            state, meeting = handle(condition, orjson.loads(orjson.dumps(state)), tick)
            met += [(tick, meeting.start_ms)] if meeting is not None else []
        state, meeting = handle(condition, orjson.loads(orjson.dumps(state)), stimulus)
        met += [(stimulus, meeting.start_ms)] if meeting is not None else []
    return met


B, C = EventIs(key="b"), EventIs(key="c")
# Two attempts of different memory that end with the same event: the one that began last is the meeting.
TWO_AT_ONCE = Sequence(terms=(EventIs(key="a"), AnyOf(terms=(Sequence(terms=(B, C)), C))))


@given(condition=conditions, log=logs())
@example(condition=TWO_AT_ONCE, log=[event(at, key, 100 + at) for at, key in enumerate("abac")])
def test_a_condition_is_met_when_the_whole_list_says_so(condition: Condition, log: list[Occurred]) -> None:
    expected = [(log[firing.at], firing.start_ms) for firing in firings(condition, log)]
    assert run(condition, list(log)) == expected


@given(log=logs(), ms=st.integers(1, 9), end=st.integers(0, 20))
def test_absence_is_met_once_per_silence_when_it_is_over(log: list[Occurred], ms: int, end: int) -> None:
    last_ms = (log[-1].time_ms if log else 100) + end
    seen = [100, *(each.time_ms for each in log if each.key == "a")]
    expected = [since + ms for since, until in zip(seen, [*seen[1:], last_ms], strict=True) if since + ms <= until]
    stimuli = [*log, Ticked(time_ms=last_ms)]
    assert [start for _, start in run(Absence(ms=ms, term=EventIs(key="a")), stimuli)] == expected


@given(now=st.integers(0, 4_000), every=st.integers(1, 50), late=st.integers(0, 500), grace=st.integers(0, 100))
def test_missed_times_are_skipped_merged_or_caught_up(now: int, every: int, late: int, grace: int) -> None:
    due = list(range(every * (now // every + 1), now + late + 1, every))
    on_time = [time for time in due if now + late - time <= grace]
    expected = {
        "all": due,
        "skip": on_time,
        "latest": due[:1] if len(due) > len(on_time) else due,
    }
    for missed, wanted in expected.items():
        condition = Schedule(every_ms=every, missed=missed, grace_ms=grace)  # type: ignore[arg-type]
        state, met = initial(condition, now), []
        while (wake := wake_ms(condition, state)) is not None and wake <= now + late:
            state, meeting = handle(condition, state, Ticked(time_ms=wake, late_ms=now + late - wake))
            met += [wake] if meeting is not None else []
        assert met == wanted, missed


@given(
    values=st.lists(st.integers(0, 60), max_size=12),
    mark=st.integers(0, 60),
    every=st.integers(1, 20),
    part=st.integers(0, 19),
)
def test_a_watermark_meets_once_at_a_time_and_once_per_advance_over_multiples(
    values: list[int], mark: int, every: int, part: int
) -> None:
    rising = sorted(values)
    moves = [WatermarkMoved(stage="samples", value_ms=value, time_ms=100) for value in rising]
    once = run(WatermarkAt(stage="samples", at_ms=mark), list(moves))
    assert [each for each, _ in once] == [move for move in moves if move.value_ms >= mark][:1]
    late = part % every
    each = run(WatermarkAt(stage="samples", every_ms=every, after_ms=late), list(moves))
    due = {multiple + late for multiple in range(-every, 61, every)}
    assert len(each) == sum(any(before < time <= after for time in due) for before, after in pairwise(rising))
    assert run(WatermarkAt(stage="features", at_ms=0), list(moves)) == []


@given(log=st.lists(st.sampled_from(["a", "up", "down"]), max_size=12))
def test_a_status_beside_an_event_holds_or_not_at_that_moment(log: list[str]) -> None:
    condition = AllOf(terms=(EventIs(key="a"), StatusIs(node="n", states=("up",))))
    stimuli: list[Stimulus] = [
        event(i, "a", 100) if each == "a" else StatusChanged(node="n", state=each, time_ms=100)
        for i, each in enumerate(log)
    ]
    expected, waiting, up = [], False, False
    for stimulus, each in zip(stimuli, log, strict=True):
        rose, up = each == "up" and not up, each == "up" if each != "a" else up
        waiting = waiting or each == "a"
        if waiting and up and (each == "a" or rose):
            expected.append(stimulus)
            waiting = False
    assert [stimulus for stimulus, _ in run(condition, stimuli)] == expected


fields = st.tuples(
    st.sampled_from(["*", "0", "*/7", "5-20/5", "3,59", "10/25"]),
    st.sampled_from(["*", "0", "23", "9-17", "*/6"]),
    st.sampled_from(["*", "1", "31", "13-15", "*/2"]),
    st.sampled_from(["*", "2", "1-3", "12"]),
    st.sampled_from(["*", "0", "7", "1-5", "6"]),
).filter(lambda each: not (each[2] == "31" and each[3] == "2" and each[4] == "*"))


@given(parts=fields, begin=st.datetimes(datetime(2023, 12, 1), datetime(2025, 3, 1)))  # noqa: DTZ001 - made UTC below
def test_cron_finds_the_minute_that_counting_minutes_finds(parts: tuple[str, ...], begin: datetime) -> None:
    cron = parse_cron(" ".join(parts))
    begin = begin.replace(tzinfo=UTC)
    found = datetime.fromtimestamp(cron.after(int(begin.timestamp() * 1_000)) / 1_000, tz=UTC)
    minute = begin.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while not _due(parts, minute):
        minute += timedelta(minutes=1 if _due(("*", "*", *parts[2:]), minute) else 24 * 60 - _of_day(minute))
    assert found == minute


def _of_day(minute: datetime) -> int:
    return minute.hour * 60 + minute.minute


def _due(parts: tuple[str, ...], at: datetime) -> bool:
    values = (at.minute, at.hour, at.day, at.month, at.isoweekday() % 7)
    ok = [_one(part, value, low) for part, value, low in zip(parts, values, (0, 0, 1, 1, 0), strict=True)]
    ok[4] = ok[4] or (values[4] == 0 and _one(parts[4], 7, 0))
    days = ok[2] and ok[4] if parts[2].startswith("*") or parts[4].startswith("*") else ok[2] or ok[4]
    return ok[0] and ok[1] and ok[3] and days


def _one(part: str, value: int, low: int) -> bool:
    if "," in part:
        return any(_one(each, value, low) for each in part.split(","))
    span, _, step = part.partition("/")
    first, _, last = span.partition("-")
    begin = low if first == "*" else int(first)
    end = int(last) if last else (99 if first == "*" or step else begin)
    return begin <= value <= end and (value - begin) % int(step or 1) == 0
