"""Every event log keeps these laws."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import RecordInvalid
from rtrec_ray.notification import (
    NOW,
    Event,
    EventFilter,
    Listener,
    MemoryNotificationStore,
    NewEvent,
    NotificationStore,
    PostgresNotificationStore,
    Retention,
    Switchboard,
)
from rtrec_ray.notification.since import events_since
from rtrec_ray.postgres.connection import PostgresOptions

WAIT_S = 10.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_ms=1_700_000_000_000)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest, clock: ManualClock) -> Iterator[NotificationStore]:
    made: NotificationStore
    if request.param == "memory":
        made = MemoryNotificationStore(clock=clock)
    else:
        made = PostgresNotificationStore(PostgresOptions(dsn=request.getfixturevalue("dsn")), clock=clock)
    yield made
    made.close()


def _send(store: NotificationStore, *values: str, key: str = "model") -> list[Event]:
    return [store.send(NewEvent(key=key, value=value)) for value in values]


def _take(listener: Listener, count: int) -> list[Event]:
    taken: list[Event] = []
    while len(taken) < count and (new := list(listener.poll(timeout_s=WAIT_S))):
        taken += new
    return taken


def test_an_event_comes_back_as_it_was_sent(store: NotificationStore) -> None:
    context = {"log_loss": 0.25, "why": "better \\u0000 'quoted' ü", "nested": {"list": [1, None]}}
    new = NewEvent(key="model", value="7", type="MODEL_VALIDATED", namespace="ns", sender="gate", context=context)
    sent = store.send(new)
    assert store.list() == (sent,)
    assert (sent.offset, sent.version, sent.time_ms) == (1, 1, 1_700_000_000_000)
    assert (sent.key, sent.value, sent.type, sent.namespace, sent.sender, sent.context) == (
        "model",
        "7",
        "MODEL_VALIDATED",
        "ns",
        "gate",
        context,
    )


def test_versions_rise_by_one_per_namespace_and_key(store: NotificationStore) -> None:
    for key, namespace in [("a", "n"), ("b", "n"), ("a", "n"), ("a", "m"), ("a", "n")]:
        store.send(NewEvent(key=key, value="", namespace=namespace))
    events = store.list()
    assert [event.offset for event in events] == [1, 2, 3, 4, 5]
    assert [event.version for event in events] == [1, 1, 2, 1, 3]


def test_list_goes_on_after_an_offset_or_answers_the_newest(store: NotificationStore) -> None:
    _send(store, "1", "2", "3", "4")
    assert [event.value for event in store.list(after_offset=1, limit=2)] == ["2", "3"]
    assert [event.value for event in store.list(after_offset=0)] == ["1", "2", "3", "4"]
    assert [event.value for event in store.list(limit=2)] == ["3", "4"]


def test_list_answers_only_what_is_wanted(store: NotificationStore) -> None:
    store.send(NewEvent(key="a", value="1", type="T", namespace="n", sender="s"))
    store.send(NewEvent(key="b", value="2", type="T", namespace="m", sender="r"))
    wanted = [EventFilter(key="a"), EventFilter(namespace="n"), EventFilter(sender="s"), EventFilter(key="a", type="T")]
    assert {tuple(event.value for event in store.list(one)) for one in wanted} == {("1",)}
    assert [event.value for event in store.list(EventFilter(type="T"))] == ["1", "2"]
    assert store.list(EventFilter(key="a", namespace="m")) == ()


def test_a_listener_from_an_offset_gets_everything_after_it_in_order(store: NotificationStore) -> None:
    _send(store, "1", "2")
    listener = Listener(store, start=1)
    assert [event.value for event in _take(listener, 1)] == ["2"]
    _send(store, "3")
    assert [event.value for event in _take(listener, 1)] == ["3"]


def test_a_listener_from_now_gets_only_what_comes(store: NotificationStore) -> None:
    _send(store, "old")
    listener = Listener(store, start=NOW)
    assert list(listener.poll(timeout_s=0.0)) == []
    _send(store, "new")
    assert [event.value for event in _take(listener, 1)] == ["new"]


def test_a_listener_gets_only_what_is_wanted_and_waits_through_the_rest(store: NotificationStore) -> None:
    listener = Listener(store, start=0, wanted=EventFilter(key="mine"))
    _send(store, "1", key="other")
    timer = threading.Timer(0.05, _send, args=(store, "2"), kwargs={"key": "mine"})
    timer.start()
    assert [event.value for event in listener.poll(timeout_s=WAIT_S)] == ["2"]
    timer.join()


def test_what_is_left_in_the_iterator_comes_with_the_next_poll(store: NotificationStore) -> None:
    _send(store, "1", "2", "3")
    listener = Listener(store, start=0)
    first = []
    while not first:
        for event in listener.poll(timeout_s=WAIT_S):
            first.append(event.value)
            break
    assert first + [event.value for event in _take(listener, 2)] == ["1", "2", "3"]


def test_a_durable_cursor_starts_at_the_beginning_and_goes_on_after_what_was_acknowledged(
    store: NotificationStore,
) -> None:
    events = _send(store, "1", "2", "3")
    listener = Listener(store, start="gate")
    assert [event.value for event in _take(listener, 3)] == ["1", "2", "3"]
    listener.ack(events[1].offset)
    assert [event.value for event in _take(Listener(store, start="gate"), 1)] == ["3"]
    assert [event.value for event in _take(Listener(store, start="another"), 3)] == ["1", "2", "3"]


def test_a_cursor_never_moves_back(store: NotificationStore) -> None:
    store.ack("gate", 5)
    store.ack("gate", 3)
    assert store.cursor("gate") == 5
    assert store.cursor("unknown") == 0


@pytest.fixture
def board(store: NotificationStore) -> Iterator[Switchboard]:
    made = Switchboard(store, threads=2, tidy_s=0.2)
    yield made
    made.close()


def test_a_subscription_calls_back_in_order_and_repeats_what_failed(
    store: NotificationStore, board: Switchboard, eventually: Callable[..., None]
) -> None:
    seen: list[str] = []

    def callback(event: Event) -> None:
        seen.append(event.value)
        if seen.count("2") == 1 and event.value == "2":
            raise ValueError("not yet")

    subscription = board.listen(callback, start="cb")
    _send(store, "1", "2", "3")
    eventually(lambda: store.cursor("cb") == 3)
    assert seen == ["1", "2", "2", "3"]
    eventually(lambda: subscription.failure is None)


def test_a_subscription_that_is_stuck_holds_up_nobody_else(
    store: NotificationStore, board: Switchboard, eventually: Callable[..., None]
) -> None:
    def refuse(event: Event) -> None:
        raise ValueError(event.value)

    heard: list[str] = []
    stuck = [board.listen(refuse, start=f"stuck-{number}") for number in range(5)]
    board.listen(lambda event: heard.append(event.value), start=0)
    _send(store, "1", "2")
    eventually(lambda: heard == ["1", "2"])
    assert all(str(each.failure) == "1" for each in eventually(lambda: all(s.failure for s in stuck) and stuck))
    assert [store.cursor(f"stuck-{number}") for number in range(5)] == [0] * 5


def test_subscriptions_hear_what_they_want_from_where_they_begin(
    store: NotificationStore, board: Switchboard, eventually: Callable[..., None]
) -> None:
    _send(store, "1", "2", key="a")
    heard: dict[str, list[str]] = {name: [] for name in ("all", "later", "b", "now")}
    begin: dict[str, int | str] = {"all": 0, "later": 1, "b": "cursor", "now": NOW}
    for name, start in begin.items():
        wanted = EventFilter(key="b") if name == "b" else None
        board.listen(lambda event, name=name: heard[name].append(event.value), start=start, wanted=wanted)
    _send(store, "3", key="b")
    _send(store, "4", key="a")
    whole = {"all": ["1", "2", "3", "4"], "later": ["2", "3", "4"], "b": ["3"], "now": ["3", "4"]}
    eventually(lambda: heard == whole)


def test_a_cursor_moves_on_past_what_is_not_wanted(
    store: NotificationStore, board: Switchboard, eventually: Callable[..., None]
) -> None:
    board.listen(lambda event: None, start="patient", wanted=EventFilter(key="never"))
    _send(store, "1", "2")
    eventually(lambda: store.cursor("patient") == 2)


def test_a_subscription_that_comes_back_hears_what_was_sent_meanwhile(
    store: NotificationStore, board: Switchboard, eventually: Callable[..., None]
) -> None:
    heard: list[str] = []
    first = board.listen(lambda event: heard.append(event.value), start="durable")
    _send(store, "1")
    eventually(lambda: store.cursor("durable") == 1)
    board.forget(first)
    _send(store, "2", "3")
    board.listen(lambda event: heard.append(event.value), start="durable")
    eventually(lambda: store.cursor("durable") == 3)
    assert heard == ["1", "2", "3"]


def test_events_sent_together_are_numbered_in_their_order(store: NotificationStore) -> None:
    _send(store, "0", key="a")
    sent = store.send_many([NewEvent(key=key, value=str(n)) for n, key in enumerate("abaab", start=1)])
    assert store.list(after_offset=1) == sent
    assert [(event.offset, event.key, event.version) for event in sent] == [
        (2, "a", 2),
        (3, "b", 1),
        (4, "a", 3),
        (5, "a", 4),
        (6, "b", 2),
    ]
    assert store.send_many([]) == ()


def test_events_sent_soon_keep_the_order_of_their_thread(store: NotificationStore) -> None:
    futures = [store.send_soon(NewEvent(key="k", value=str(number))) for number in range(300)]
    offsets = [future.result(timeout=WAIT_S).offset for future in futures]
    assert offsets == list(range(1, 301))
    assert [event.value for event in store.list(limit=300)] == [str(number) for number in range(300)]


def test_list_by_version_and_time(store: NotificationStore, clock: ManualClock) -> None:
    for value in ("1", "2", "3"):
        _send(store, value)
        clock.advance(10)
    begin_ms = 1_700_000_000_000
    wanted = {
        EventFilter(key="model", version=2): ["2"],
        EventFilter(key="model", after_version=1): ["2", "3"],
        EventFilter(from_ms=begin_ms + 10): ["2", "3"],
        EventFilter(from_ms=begin_ms, to_ms=begin_ms + 20): ["1", "2"],
        EventFilter(to_ms=begin_ms): [],
    }
    for one, values in wanted.items():
        assert [event.value for event in store.list(one)] == values
        assert [event.value for event in store.step(one, after_offset=0, timeout_s=0.0).events] in ([], values)


def test_old_events_are_trimmed_and_numbers_go_on(store: NotificationStore, clock: ManualClock) -> None:
    _send(store, "1", "2")
    clock.advance(1_000)
    _send(store, "3")
    clock.advance(500)
    assert store.trim(Retention(keep_ms=1_500)) == 0
    assert store.trim(Retention(keep_ms=1_499)) == 2
    assert [event.value for event in store.list(after_offset=0)] == ["3"]
    clock.advance(10_000)
    assert store.trim(Retention(keep_ms=1_500)) == 1
    assert (store.list(), store.end_offset()) == ((), 3)
    sent = store.send(NewEvent(key="model", value="4"))
    assert (sent.offset, sent.version) == (4, 4)
    assert [event.value for event in _take(Listener(store, start=0), 1)] == ["4"]


def test_only_the_newest_events_are_kept_where_a_number_is_given(store: NotificationStore) -> None:
    _send(store, *map(str, range(10)))
    assert store.trim(Retention(keep_ms=None, keep_events=3)) == 7
    assert [event.value for event in store.list()] == ["7", "8", "9"]
    assert store.trim(Retention(keep_ms=None, keep_events=None)) == 0


def test_nothing_is_trimmed_that_a_living_cursor_has_not_acknowledged(store: NotificationStore) -> None:
    _send(store, *map(str, range(10)))
    store.ack("slow", 4)
    store.ack("fast", 9)
    rule = Retention(keep_ms=None, keep_events=0)
    assert store.trim(rule) == 4
    assert [event.value for event in _take(Listener(store, start="slow"), 6)] == list("456789")
    assert store.trim(Retention(keep_ms=None, keep_events=0, cursor_alive_ms=-60_000)) == 6  # both are dead


def test_nothing_is_trimmed_that_a_new_cursor_has_not_seen(
    store: NotificationStore, board: Switchboard, eventually: Callable[..., None]
) -> None:
    def refuse(event: Event) -> None:
        raise ValueError(event.value)

    everything = Retention(keep_ms=None, keep_events=0)
    sent = _send(store, "1", "2")
    listener = Listener(store, start="new", wanted=EventFilter(key="nothing"))
    assert list(listener.poll(timeout_s=0.0)) == []
    assert store.trim(everything) == 0
    assert _take(Listener(store, start="new"), 2) == sent, "after a restart, for nothing was acknowledged"

    store.ack("new", 2)
    called = board.listen(refuse, start="stuck")
    eventually(lambda: called.failures > 0)
    assert store.trim(everything) == 0


def test_the_log_from_a_time_on_is_read_page_by_page(store: NotificationStore, clock: ManualClock) -> None:
    began_ms = clock.now_ms()
    for number in range(30):
        clock.advance(10_000 if number % 7 else -20_000)  # another sender's clock is behind
        _send(store, str(number))
    times = {event.value: event.time_ms for event in store.list()}
    for keep_events in (30, 20):
        store.trim(Retention(keep_ms=None, keep_events=keep_events))
        for from_ms in (0, began_ms + 45_000, began_ms + 150_000, clock.now_ms(), clock.now_ms() + 1):
            found = [event.value for event in events_since(store, from_ms, page=4)]
            assert found == [event.value for event in store.list() if times[event.value] >= from_ms], from_ms


def test_a_cursor_that_is_taken_up_again_is_alive(store: NotificationStore) -> None:
    _send(store, "1", "2")
    store.ack("gate", 1)
    acked_s = time.monotonic()
    threading.Event().wait(1.0)
    assert store.cursor("gate") == 1
    alive_ms = int(1_000 * (time.monotonic() - acked_s)) - 1
    assert store.trim(Retention(keep_ms=None, keep_events=0, cursor_alive_ms=alive_ms)) == 1


def test_a_listener_looks_after_its_cursor_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    now_s = 0.0

    class Watched(MemoryNotificationStore):
        def cursor(self, name: str, /) -> int:
            taken.append(now_s)
            return super().cursor(name)

    store = Watched()
    monkeypatch.setattr("rtrec_ray.notification.listener.monotonic_s", lambda: now_s)
    listener = Listener(store, start="gate")
    for moment in (10.0, 20.0, 3_609.0, 3_611.0, 3_612.0):
        now_s = moment
        assert list(listener.poll(timeout_s=0.0)) == []
    assert taken == [10.0, 3_611.0]


@pytest.mark.parametrize(
    "fields", [{"key": ""}, {"value": "a\0b"}, {"sender": "\ud800"}, {"type": 7}, {"namespace": None}], ids=str
)
def test_an_event_that_cannot_be_stored_is_refused_before_it_is_sent(fields: dict[str, object]) -> None:
    with pytest.raises(RecordInvalid):
        NewEvent(**{"key": "k", "value": "v", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "context",
    [{"a": object()}, {"a": "\0"}, {1: "a"}, {"a": 1 << 70}],
    ids=["object", "nul", "number as key", "large number"],
)
def test_a_context_that_is_not_json_is_refused_and_nothing_is_sent(
    store: NotificationStore, context: dict[str, object]
) -> None:
    with pytest.raises(RecordInvalid):
        store.send(NewEvent(key="k", value="v", context=context))
    assert store.end_offset() == 0
