"""One replica: the parts of serving put together over what it talks to, their threads started and ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fastapi import FastAPI

from rtrec_ray.clock import Clock
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.kafka.base import Producer
from rtrec_ray.metadata.base import MetadataStore
from rtrec_ray.metadata.catalogue import Catalogue
from rtrec_ray.notification import (
    MODEL,
    MODEL_DEPLOYED,
    NOW,
    RELOAD_REQUESTED,
    EventFilter,
    Listener,
    NewEvent,
    NotificationStore,
)
from rtrec_ray.registry.changes import NewChange
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.store import FeatureReader
from serving.calls import BoundedCalls
from serving.collect import EventIntake
from serving.feedback import InferenceLog
from serving.http import Service, create_app
from serving.lists import ListsReader
from serving.metrics import ServingMetrics
from serving.notifications import Growth
from serving.options import ModelRole, ServingOptions
from serving.rank import Scorer
from serving.recommend import Recommender
from serving.reload import ModelHolder, Reloader, ReloadLoop
from serving.stages import PipelineState
from serving.user import UserReader

log = logging.getLogger(__name__)

_POLL_S: Final = 1.0
# Callers wait for Kafka's acknowledgement; more of them at once only wait in the broker instead.
_EVENT_THREADS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """What a replica talks to. The functions are called in threads and may raise that their server is away.

    `deployed`: tell that a version serves, once for all replicas. `near`: `store`, where that reads from memory and has
    to be kept fresh.

    `newest_event_ms`: event time up to which features are computed, ms UTC. `champion`: the version that should serve;
    `base`: the one at the root of its chain; `load` brings a version into memory; `pipeline` says how the stages are
    at a time, ms UTC.
    """

    store: FeatureReader
    newest_event_ms: Callable[[], int | None]
    connect_producer: Callable[[], Producer]
    champion: Callable[[], str | None]
    base: Callable[[], str | None]
    load: Callable[[str], Scorer]
    events: NotificationStore
    metadata: MetadataStore
    deployed: Callable[[NewChange], bool]
    pipeline: Callable[[int], PipelineState]
    near: NearFeatures | None = None
    close: Callable[[], None] = lambda: None


class Replica:
    """A running replica. `app` answers HTTP; `close` ends its threads and sends what the inference log still holds.

    `holders`: of each model that is kept loaded; `models` is the champion's.
    """

    def __init__(
        self,
        backends: Backends,
        *,
        options: ServingOptions,
        clock: Clock,
        skew_ms: int = 60_000,
        token: str | None = None,
        name: str = "serving",
    ) -> None:
        self._backends = backends
        self._options = options
        self._name = name
        self._closed = threading.Event()
        self._listening = threading.Thread(target=self._listen, name="model-events", daemon=True)
        self._looking: threading.Thread | None = None
        self.metrics = ServingMetrics()
        self.holders: dict[ModelRole, ModelHolder] = {role: ModelHolder(role) for role in options.roles()}
        self.models = self.holders["champion"]
        self.lists = ListsReader(
            backends.store,
            clock=clock,
            newest_event_ms=backends.newest_event_ms,
            metrics=self.metrics,
            popular=options.recalled_items,
        )
        self.inference_log = InferenceLog(
            connect=backends.connect_producer, capacity=options.log_queue, metrics=self.metrics
        )
        self.intake = EventIntake(
            connect=backends.connect_producer, clock=clock, skew_ms=skew_ms, timeout_s=options.events_deadline_s
        )
        self.reloaders = {role: self._reloader(role) for role in self.holders}
        self.reloading = ReloadLoop(list(self.reloaders.values()))
        self._watch(clock)
        self.growth = Growth(backends.events)
        self.service = self._service(clock, token)
        self.app: FastAPI = create_app(self.service)

    def start(self) -> None:
        """Read the lists once if the store is there, then keep lists and model fresh in threads."""
        try:
            self.lists.refresh(catalogue_s=self._options.catalogue_refresh_s)
        except StoreUnavailable as error:
            log.warning("serving_starts_without_store", extra={"reason": error.message})
        self.lists.start(lists_s=self._options.lists_refresh_s, catalogue_s=self._options.catalogue_refresh_s)
        self.reloading.start(poll_s=self._options.champion_poll_s)
        self._listening.start()
        if self._backends.near is not None:
            look = partial(self._backends.near.run, self._closed, every_s=self._options.near_refresh_s)
            self._looking = threading.Thread(target=look, name="near-features", daemon=True)
            self._looking.start()

    def close(self) -> None:
        """End everything that was started."""
        self._closed.set()
        self.lists.close()
        self.reloading.close()
        self.inference_log.close()
        self.intake.close()
        recommender = self.service.recommender
        for calls in (
            recommender.store_calls,
            recommender.model_calls,
            self.service.read_calls,
            self.service.event_calls,
            self.service.log_calls,
        ):
            calls.close()
        # A thread that is still in a call would open a connection behind the pool's back.
        for thread in (self._listening, self._looking):
            if thread is not None and thread.is_alive():
                thread.join(2 * _POLL_S)
        self.growth.close()
        self._backends.events.close()
        self._backends.close()

    def _reloader(self, role: ModelRole) -> Reloader:
        wanted = {"champion": self._backends.champion, "base": self._backends.base}
        return Reloader(
            self.holders[role],
            wanted=wanted[role],
            load=self._load,
            send=self._announce,
            metrics=self.metrics,
            sender=self._name,
        )

    def _announce(self, event: NewEvent) -> None:
        if event.type == MODEL_DEPLOYED:
            # A change of the model's life, and part of the history of what served: told by the first replica alone.
            context = dict(event.context)
            self._backends.deployed(
                NewChange(change="deployed", version=event.value, sender=event.sender, context=context)
            )
        else:
            self._backends.events.send(event)

    def _load(self, version: str) -> Scorer:
        # Before its first increment the champion is its own base: one copy in memory serves both.
        for holder in self.holders.values():
            for model in (holder.current(), holder.previous()):
                if model is not None and model.version == version:
                    return model
        return self._backends.load(version)

    def _watch(self, clock: Clock) -> None:
        def age_s(then_ms: int | None) -> float | None:
            return None if then_ms is None else (clock.now_ms() - then_ms) / 1_000

        def model_age_s(holder: ModelHolder) -> float | None:
            model = holder.current()
            return None if model is None else age_s(model.trained_to_ms)

        newest = "Clock now less the newest event behind "
        self.metrics.watch(
            "rtrec_feature_age_seconds", newest + "the features.", lambda: age_s(self.lists.current().newest_event_ms)
        )
        if (near := self._backends.near) is not None:
            about = "Wall time since features were looked at; NaN while requests ask the store itself."
            self.metrics.watch("rtrec_near_age_seconds", about, near.age_s)
            self.metrics.watch("rtrec_near_rows", "Rows of feature tiles in memory.", lambda: near.rows)
        for role, holder in self.holders.items():
            name = "rtrec_model_age_seconds" if role == "champion" else f"rtrec_{role}_model_age_seconds"
            self.metrics.watch(name, f"{newest}the {role}.", partial(model_age_s, holder))

    def _service(self, clock: Clock, token: str | None) -> Service:
        options, store = self._options, self._backends.store
        recommender = Recommender(
            options=options,
            clock=clock,
            users=UserReader(store, clock=clock, profile_s=options.profile_refresh_s),
            lists=self.lists,
            holders=self.holders,
            metrics=self.metrics,
            store_calls=BoundedCalls(name="store", threads=options.store_threads, deadline_s=options.store_deadline_s),
            model_calls=BoundedCalls(name="model", threads=options.model_threads, deadline_s=options.model_deadline_s),
        )
        for calls in (recommender.store_calls, recommender.model_calls):
            self.metrics.watch(f"rtrec_{calls.name}_threads_stuck", "Threads in an overdue call.", calls.stuck)
        return Service(
            options=options,
            clock=clock,
            recommender=recommender,
            intake=self.intake,
            store=store,
            inference_log=self.inference_log,
            holders=self.holders,
            lists=self.lists,
            metrics=self.metrics,
            pipeline=self._backends.pipeline,
            read_calls=BoundedCalls(name="reads", threads=2, deadline_s=options.read_deadline_s),
            # The producer's own deadline comes first, with the better reason.
            event_calls=BoundedCalls(name="events", threads=_EVENT_THREADS, deadline_s=options.events_deadline_s + 2.0),
            log_calls=BoundedCalls(name="log", threads=2, deadline_s=options.read_deadline_s),
            notifications=self._backends.events,
            growth=self.growth,
            catalogue=Catalogue(self._backends.metadata),
            token=token,
        )

    def _listen(self) -> None:
        """Look at the registry when asked to; what was missed while the store was away, a look finds."""
        while not self._closed.is_set():
            try:
                listener = Listener(
                    self._backends.events, start=NOW, wanted=EventFilter(key=MODEL, type=RELOAD_REQUESTED)
                )
            except StoreUnavailable:
                self._closed.wait(_POLL_S)
                continue
            self.reloading.wake()
            while not self._closed.is_set():
                for _ in listener.poll(timeout_s=_POLL_S):
                    self.reloading.wake()
