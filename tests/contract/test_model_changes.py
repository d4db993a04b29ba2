"""Every book of model changes keeps these laws, and so does the life cycle over it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import RegistryUnavailable
from rtrec_ray.metadata import MemoryMetadataStore, MetadataStore, PostgresMetadataStore
from rtrec_ray.notification import MODEL, EventFilter, MemoryNotificationStore, NotificationStore
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.registry.base import Draft, ModelCenter
from rtrec_ray.registry.changes import Change, ChangeBook, MemoryChangeBook, NewChange, Served
from rtrec_ray.registry.changes_postgres import PostgresChangeBook
from rtrec_ray.registry.lifecycle import AliasWatch, LifeCycle, generated, lineage_of
from rtrec_ray.registry.memory import MemoryModelCenter

DRAFT = Draft(
    kind="base",
    model="dcn",
    from_seq=1,
    to_seq=20,
    trained_to_ms=5,
    created_ms=6,
    job="base-1",
    definitions="features=a:1 samples=2 model=0a",
    parameters={"lsn": "0/16B3748"},
)


class Crash(Exception):
    """The process ends here."""


class Setting:
    """A book with what it tells and where."""

    def __init__(self, book: ChangeBook, events: NotificationStore, metadata: MetadataStore, root: Path) -> None:
        self.book = book
        self.events = events
        self.metadata = metadata
        self.center = MemoryModelCenter(root / "center")
        self.root = root

    def life(self) -> LifeCycle:
        return LifeCycle(self.center, self.book)

    def make(self, count: int = 1) -> list[str]:
        folder = self.root / "artifact"
        folder.mkdir(exist_ok=True)
        return [self.center.log_version(folder, DRAFT).version for _ in range(count)]

    def told(self) -> list[tuple[str, str]]:
        return [(event.type, event.value) for event in self.events.list(EventFilter(key=MODEL))]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_ms=1_000)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
def setting(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> Iterator[Setting]:
    if request.param == "memory":
        events, metadata = MemoryNotificationStore(clock=clock), MemoryMetadataStore()
        yield Setting(MemoryChangeBook(events, metadata, clock=clock), events, metadata, tmp_path)
        return
    options = PostgresOptions(dsn=request.getfixturevalue("dsn"))
    made = Setting(
        PostgresChangeBook(options, clock=clock),
        PostgresNotificationStore(options, clock=clock),
        PostgresMetadataStore(options),
        tmp_path,
    )
    yield made
    for each in (made.book, made.events, made.metadata):
        each.close()


def test_a_version_is_announced_once_with_its_lineage(setting: Setting) -> None:
    (number,) = setting.make()
    version = setting.center.get(number)
    assert version is not None
    lineage = lineage_of(version, snapshot="5n4p")
    assert setting.book.generated(generated(version), lineage)
    assert not setting.book.generated(generated(version), lineage)
    assert setting.told() == [("MODEL_GENERATED", number)]
    assert setting.metadata.lineage(number) == lineage
    assert (lineage.from_seq, lineage.to_seq, lineage.feature_version, lineage.label_version) == (1, 21, "a:1", "2")
    assert (lineage.job, lineage.run_id, lineage.lsn) == ("train-base", "base-1", "0/16B3748")


def test_choosing_rejecting_and_rolling_back_are_told_in_one_order(setting: Setting) -> None:
    first, second, bad = setting.make(3)
    life = setting.life()
    life.choose(first, sender="gate", context={"metrics": {"auc": 0.7}})
    life.reject(bad, sender="gate", reason="worse")
    assert life.choose(second, sender="gate").status == "validated"
    back = life.rollback(sender="me", reason="clicks fell")
    assert back is not None
    assert back.version == first
    assert setting.told() == [
        ("MODEL_VALIDATED", first),
        ("MODEL_REJECTED", bad),
        ("MODEL_VALIDATED", second),
        ("MODEL_DEPRECATED", first),
        ("MODEL_REJECTED", second),
        ("MODEL_VALIDATED", first),
    ]
    champion, fallen = setting.center.champion(), setting.center.get(second)
    assert champion is not None
    assert fallen is not None
    assert (champion.version, fallen.reason) == (first, "clicks fell")
    contexts = [event.context for event in setting.events.list(EventFilter(key=MODEL))]
    assert contexts[0]["metrics"] == {"auc": 0.7}
    assert [context.get("reason") for context in contexts[1:3]] == ["worse", ""]
    assert [(change.change, change.previous) for change in setting.book.changes()] == [
        ("champion", None),
        ("rejected", None),
        ("champion", first),
        ("rejected", None),
        ("champion", second),
    ]


def test_without_an_earlier_champion_nothing_is_rolled_back(setting: Setting) -> None:
    (only,) = setting.make()
    setting.life().choose(only, sender="gate")
    assert setting.life().rollback(sender="me", reason="why not") is None
    assert setting.told() == [("MODEL_VALIDATED", only)]


@pytest.mark.parametrize("where", ["before MLflow", "after MLflow", "after the telling"])
def test_a_crash_at_any_point_ends_in_one_change_and_one_telling(
    setting: Setting, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = setting.make(2)
    setting.life().choose(first, sender="gate")
    with monkeypatch.context() as patch:
        _crash(setting, where, patch)
        with pytest.raises(Crash):
            setting.life().choose(second, sender="gate")
    setting.life().settle()
    assert setting.life().settle() == 0
    assert not setting.life().notice()
    champion = setting.center.champion()
    assert champion is not None
    assert champion.version == second
    assert setting.told()[1:] == [("MODEL_VALIDATED", second), ("MODEL_DEPRECATED", first)]


def _crash(setting: Setting, where: str, patch: pytest.MonkeyPatch) -> None:
    target = setting.book if where == "after the telling" else setting.center
    name = "finish" if where == "after the telling" else "set_champion"
    real: Callable[..., object] = getattr(target, name)

    def crash(*given: object) -> object:
        if where != "before MLflow":
            real(*given)
        raise Crash

    patch.setattr(target, name, crash)


def test_an_alias_changed_by_hand_is_told_once(setting: Setting) -> None:
    first, second = setting.make(2)
    setting.life().choose(first, sender="gate")
    assert not setting.life().notice()
    setting.center.set_alias(second)
    assert setting.life().notice()
    assert not setting.life().notice()
    setting.center.set_alias(None)
    assert setting.life().notice()
    assert not setting.life().notice()
    assert setting.told()[1:] == [
        ("MODEL_VALIDATED", second),
        ("MODEL_DEPRECATED", first),
        ("MODEL_DEPRECATED", second),
    ]
    assert [event.sender for event in setting.events.list(EventFilter(key=MODEL))][1:] == ["mlflow"] * 3


def _deployed(version: str) -> NewChange:
    return NewChange(change="deployed", version=version, sender="serving")


def test_what_served_when_is_kept_and_told_once_for_all_replicas(setting: Setting, clock: ManualClock) -> None:
    first, second = setting.make(2)
    for version in (first, second):
        setting.life().choose(version, sender="gate")
        assert [setting.book.deployed(_deployed(version)) for _ in range(2)] == [True, False]
        clock.advance(500)
    assert not setting.book.deployed(_deployed(first))  # a replica that is late
    setting.life().rollback(sender="me", reason="worse")
    assert setting.book.deployed(_deployed(first))
    assert setting.book.served() == (
        Served(version=first, from_ms=1_000, to_ms=1_500),
        Served(version=second, from_ms=1_500, to_ms=2_000),
        Served(version=first, from_ms=2_000),
    )
    told = [value for kind, value in setting.told() if kind == "MODEL_DEPLOYED"]
    assert told == [first, second, first]


def test_mlflow_shows_what_is_deployed_and_what_was(setting: Setting) -> None:
    first, second = setting.make(2)
    life = setting.life()
    for version in (first, second):
        life.choose(version, sender="gate")
        setting.book.deployed(_deployed(version))
        life.mark_served()
    stages = [version.stage for version in setting.center.list()]
    assert stages == ["deployed", "deprecated"]


def test_a_change_of_a_version_that_is_gone_holds_up_no_other(setting: Setting) -> None:
    setting.book.intend(NewChange(change="champion", version="99"))
    (first,) = setting.make()
    setting.life().choose(first, sender="gate")
    assert ("MODEL_VALIDATED", first) in setting.told()
    assert setting.book.next() is None


def test_a_change_that_is_done_is_not_done_again(setting: Setting) -> None:
    (first,) = setting.make()
    setting.book.intend(NewChange(change="rejected", version=first, reason="bad"))
    change: Change | None = setting.book.next()
    assert change is not None
    setting.book.finish(change)
    setting.book.finish(change)
    assert setting.told() == [("MODEL_REJECTED", first)]


def test_the_watch_tells_what_was_changed_by_hand_though_a_server_was_away(
    setting: Setting, eventually: Callable[..., None]
) -> None:
    first, second = setting.make(2)
    setting.life().choose(first, sender="gate")
    setting.book.deployed(_deployed(first))
    setting.center.set_alias(second)
    left, stop = [2], threading.Event()

    def connect() -> tuple[ModelCenter, ChangeBook]:
        left[0] -= 1
        if left[0] >= 0:
            raise RegistryUnavailable("away")
        return setting.center, setting.book

    watch = AliasWatch(connect, every_s=0.02)
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    eventually(lambda: ("MODEL_VALIDATED", second) in setting.told())
    setting.center.set_alias(first)
    eventually(lambda: setting.told()[-1] == ("MODEL_DEPRECATED", second))
    eventually(lambda: [version.stage for version in setting.center.list()] == ["validated", "deployed"])
    stop.set()
    thread.join(10.0)
    assert not thread.is_alive()
