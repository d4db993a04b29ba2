"""Every event log keeps these laws."""

from __future__ import annotations

import threading
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
    Subscription,
)
from rtrec_ray.postgres.connection import PostgresOptions

WAIT_S = 10.0


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest) -> Iterator[NotificationStore]:
    clock = ManualClock(now_ms=1_700_000_000_000)
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


def test_a_subscription_calls_back_in_order_and_repeats_what_failed(
    store: NotificationStore, eventually: Callable[..., None]
) -> None:
    seen: list[str] = []

    def callback(event: Event) -> None:
        seen.append(event.value)
        if seen.count("2") == 1 and event.value == "2":
            raise ValueError("not yet")

    subscription = Subscription(Listener(store, start="cb"), callback)
    _send(store, "1", "2", "3")
    eventually(lambda: store.cursor("cb") == 3)
    subscription.close()
    assert seen == ["1", "2", "2", "3"]
    assert subscription.failure is None


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
