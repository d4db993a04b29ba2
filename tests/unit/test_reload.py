"""How the model that serves is exchanged."""

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from rtrec_ray.clock import ManualClock
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.features.file import load_definitions
from rtrec_ray.notification import RELOAD_REQUESTED, NewEvent
from serving.memory import LinearScorer, MemoryServers
from serving.metrics import ServingMetrics
from serving.options import ServingOptions
from serving.reload import ModelHolder, Reloader, ReloadLoop, Scored
from serving.replica import Replica

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")


class Answering(LinearScorer):
    """Gives what it is told to, whatever it is asked."""

    answer: object = None

    def predict(self, columns, /):
        given = ANSWERS[self.version]
        if isinstance(given, Exception):
            raise given
        return np.full(len(columns["item_id"]), given)


ANSWERS = {"nan": np.nan, "raises": RuntimeError("no kernel"), "inf": np.inf}


@pytest.fixture
def servers():
    servers = MemoryServers(DEFINITIONS, clock=ManualClock(now_ms=1))
    servers.models |= {str(n): LinearScorer(version=str(n)) for n in range(1, 6)}
    servers.models |= {name: Answering(version=name) for name in ANSWERS}
    return servers


@pytest.fixture
def holder():
    return ModelHolder()


@pytest.fixture
def reloader(servers, holder):
    backends = servers.backends()
    return Reloader(
        holder, wanted=backends.champion, load=backends.load, send=servers.events.send, metrics=ServingMetrics()
    )


def sent(servers):
    return [(event.type, event.value) for event in servers.events.list()]


def test_the_champion_is_deployed_once_and_said_so(servers, holder, reloader):
    assert [reloader.step(), holder.version()] == ["no_champion", "none"]
    servers.champion = "1"
    assert [reloader.step(), reloader.step(), holder.version()] == ["deployed", "unchanged", "1"]
    assert sent(servers) == [("MODEL_DEPLOYED", "1")]


@pytest.mark.parametrize("bad", [*ANSWERS, "missing"])
def test_a_model_that_does_not_work_is_refused_once_and_the_old_one_goes_on(servers, holder, reloader, bad):
    servers.champion = "1"
    reloader.step()
    servers.champion = bad
    assert [reloader.step(), reloader.step(), holder.version()] == ["refused", "unchanged", "1"]
    assert sent(servers) == [("MODEL_DEPLOYED", "1"), ("MODEL_DEPLOY_FAILED", bad)]
    servers.champion = "2"
    assert [reloader.step(), holder.version()] == ["deployed", "2"]


def test_going_back_to_the_version_before_loads_nothing(servers, holder, reloader):
    for version in ("1", "2"):
        servers.champion = version
        reloader.step()
    servers.models.clear()
    servers.champion = "1"
    assert [reloader.step(), holder.version(), holder.previous().version] == ["deployed", "1", "2"]


def test_a_registry_that_is_away_changes_nothing_and_is_asked_again(servers, holder, reloader):
    servers.champion, servers.registry_up = "1", False
    assert [reloader.step(), holder.version()] == ["away", "none"]
    servers.registry_up = True
    assert [reloader.step(), holder.version()] == ["deployed", "1"]


def test_a_champion_without_alias_leaves_the_model_that_serves(servers, holder, reloader):
    servers.champion = "1"
    reloader.step()
    servers.champion = None
    assert [reloader.step(), holder.version()] == ["no_champion", "1"]


def test_what_could_not_be_told_is_told_later(servers, holder):
    told, down = [], [True]

    def send(event):
        if down[0]:
            raise StoreUnavailable("away")
        told.append(event.value)

    backends = servers.backends()
    reloader = Reloader(holder, wanted=backends.champion, load=backends.load, send=send, metrics=ServingMetrics())
    for version in ("1", "2"):
        servers.champion = version
        reloader.step()
    down[0] = False
    reloader.step()
    assert told == ["1", "2"]


def test_a_model_is_tried_on_the_last_requests_before_it_serves(servers, holder, reloader):
    holder.remember(Scored(shared={"weather": "snow"}, rows=[{"item_id": 7}]))
    ANSWERS["snow"] = 0.5

    class HatesSnow(Answering):
        def predict(self, columns, /):
            asked_before = columns["item_id"].tolist() == ["7"]
            return np.full(1, np.nan) if asked_before else super().predict(columns)

    servers.models["snow"] = HatesSnow(version="snow")
    servers.champion = "snow"
    assert [reloader.step(), holder.version()] == ["refused", "none"]


def test_a_model_that_fails_in_a_way_nobody_foresaw_holds_up_no_other(servers):
    def stumble(version):
        raise ZeroDivisionError

    reloaders = [
        Reloader(ModelHolder(), wanted=lambda: "1", load=load, send=servers.events.send, metrics=ServingMetrics())
        for load in (stumble, servers.models.__getitem__)
    ]
    assert ReloadLoop(reloaders).step() is False
    assert [reloader.step() for reloader in reloaders[1:]] == ["unchanged"]


def test_a_loop_has_not_finished_before_its_servers_answered_and_its_events_are_sent(servers, holder, reloader):
    loop = ReloadLoop([reloader])
    servers.champion, servers.registry_up = "1", False
    assert loop.step() is False
    servers.registry_up = True
    assert [loop.step(), holder.version()] == [True, "1"]

    def away(event):
        raise StoreUnavailable("away")

    mute = Reloader(ModelHolder(), wanted=lambda: "1", load=servers.models.get, send=away, metrics=ServingMetrics())
    assert [ReloadLoop([mute]).step(), mute.waiting()] == [False, 1]


def test_a_model_that_serves_no_more_is_forgotten_though_it_refers_to_itself(servers, holder):
    class Knotted(LinearScorer):
        """As TensorFlow's are."""

    made, wanted = [], []

    def load(version):
        model = Knotted(version=version)
        object.__setattr__(model, "itself", model)
        made.append(weakref.ref(model))
        return model

    reloader = Reloader(
        holder, wanted=lambda: wanted[-1], load=load, send=servers.events.send, metrics=ServingMetrics()
    )
    gc.disable()
    try:
        for version in ("1", "2", "3"):
            wanted.append(version)
            ReloadLoop([reloader]).step()
        assert [model() is None for model in made] == [True, False, False]  # the one before may serve again
    finally:
        gc.enable()


def test_an_event_about_a_model_brings_the_champion_at_once(servers, eventually):
    replica = Replica(servers.backends(), options=ServingOptions(champion_poll_s=600.0), clock=ManualClock(now_ms=1))
    replica.start()
    eventually(lambda: replica.metrics.reloads.labels("champion", "no_champion")._value.get() > 0)
    for version in ("1", "2", "3"):
        servers.champion = version
        servers.events.send(NewEvent(key="model", value=version, type=RELOAD_REQUESTED))
        eventually(lambda version=version: replica.models.version() == version)
    replica.close()


def test_a_missed_event_is_made_up_by_polling(servers, eventually):
    replica = Replica(servers.backends(), options=ServingOptions(champion_poll_s=0.05), clock=ManualClock(now_ms=1))
    replica.start()
    servers.champion = "1"
    eventually(lambda: replica.models.version() == "1")
    replica.close()


def test_threads_end_with_the_replica(servers, eventually):
    before = {thread.ident for thread in threading.enumerate()}
    replica = Replica(servers.backends(), options=ServingOptions(), clock=ManualClock(now_ms=1))
    replica.start()
    own = [thread for thread in threading.enumerate() if thread.ident not in before]
    assert len(own) > 10
    replica.close()
    eventually(lambda: not any(thread.is_alive() for thread in own))
