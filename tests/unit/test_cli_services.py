"""The commands about events and metadata, over stores in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson
import pytest
from click.testing import CliRunner

from rtrec_ray.cli import events as events_cli
from rtrec_ray.cli import meta as meta_cli
from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import MetadataUnknown
from rtrec_ray.metadata import Dataset, Entity, EntityKind, MemoryMetadataStore
from rtrec_ray.notification import MemoryNotificationStore, NewEvent

Run = Callable[..., dict[str, object]]

MIDNIGHT_MS = 1_700_006_400_000  # 2023-11-15 00:00:00 UTC


@pytest.fixture
def run() -> Run:
    def call(*words: str) -> dict[str, object]:
        group = {"events": events_cli.events, "meta": meta_cli.meta}[words[0]]
        done = CliRunner().invoke(group, [*words[1:], "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        answer: dict[str, object] = orjson.loads(done.output)
        return answer

    return call


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryNotificationStore:
    clock = ManualClock(now_ms=MIDNIGHT_MS - 1)
    store = MemoryNotificationStore(clock=clock)
    for number, sender in enumerate(("gate", "gate", "serving"), start=1):
        store.send(NewEvent(key="model", value=str(number), sender=sender))
        clock.advance(1)

    @contextmanager
    def open_log(where: object) -> Iterator[MemoryNotificationStore]:
        yield store

    monkeypatch.setattr(events_cli, "_log", open_log)
    return store


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ((), ["1", "2", "3"]),
        (("--sender", "gate"), ["1", "2"]),
        (("--version", "2"), ["2"]),
        (("--after-version", "1"), ["2", "3"]),
        (("--since", "2023-11-15"), ["2", "3"]),
        (("--until", "2023-11-15T00:00:00"), ["1"]),
        (("--after", "1", "--limit", "1"), ["2"]),
        (("--key", "other"), []),
    ],
    ids=str,
)
def test_events_are_listed_by_what_is_asked(
    run: Run, log: MemoryNotificationStore, words: tuple[str, ...], values: list[str]
) -> None:
    answer = run("events", "list", *words)
    assert [event["value"] for event in answer["events"]] == values  # type: ignore[attr-defined]


def test_tail_follows_only_what_is_wanted(run: Run, log: MemoryNotificationStore) -> None:
    assert run("events", "tail", "--after", "0", "--sender", "serving", "--count", "1")["value"] == "3"


def test_an_event_is_sent_by_command(run: Run, log: MemoryNotificationStore) -> None:
    sent = run("events", "send", "--key", "a", "--value", "b", "--context", '{"x": 1}')
    assert (sent["offset"], sent["version"], sent["context"]) == (4, 1, {"x": 1})


def test_metadata_of_any_kind_are_listed_and_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryMetadataStore()
    store.put_dataset(Dataset(name="samples", address="samples.current", format="postgresql", columns={}))
    store.put_kind(EntityKind(name="shops", schema={"type": "object"}))
    store.put_entity(Entity(kind="shops", name="s", body={"city": "Bern"}))

    @contextmanager
    def open_store(where: object) -> Iterator[MemoryMetadataStore]:
        yield store

    monkeypatch.setattr(meta_cli, "_store", open_store)
    assert run("meta", "list")["datasets"][0]["name"] == "samples"  # type: ignore[index]
    assert run("meta", "list", "shops")["shops"][0]["body"] == {"city": "Bern"}  # type: ignore[index]
    assert run("meta", "show", "shops", "s")["version"] == 1
    with pytest.raises(MetadataUnknown, match="'colours'"):
        run("meta", "list", "colours")
