"""Kafka → history, features, samples: a loop for each share of a stage, in a Ray actor of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.feature import FeatureKeeper, FeatureOperator, KeeperOptions
from actors.history import HistoryOperator, HistoryOptions, HistoryTidier
from actors.operator import Operator
from actors.sample import SampleOperator
from actors.sample_keeper import SampleKeeper
from actors.stage import Work
from actors.task import TaskLoop, TaskOptions
from rtrec_ray.app.cluster import start_actor
from rtrec_ray.app.system import System
from rtrec_ray.kafka.connect import connect_consumer, connect_producer
from rtrec_ray.notification import PostgresNotificationStore, Retention
from rtrec_ray.notification.trimmer import LogTrimmer
from rtrec_ray.postgres.connection import Pool, connect
from rtrec_ray.stores.features.live import unread
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.samples.retention import PostgresSampleRetention
from rtrec_ray.stores.samples.writing import PostgresSampleLedger

HISTORY, FEATURES, SAMPLES = "history", "features", "samples"
_DAY_MS = 86_400_000
STAGES = (HISTORY, FEATURES, SAMPLES)
SAMPLES_AHEAD_MS = 900_000  # a fetch is thrown away with every pause: far enough that live streams never pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One actor of a stage: the `index`-th of `of`, which owns the partitions p with p % of == index."""

    stage: str
    index: int
    of: int
    partitions: int

    @property
    def name(self) -> str:
        """The actor's name in Ray."""
        return f"{self.stage}-{self.index}"

    @property
    def owned(self) -> tuple[int, ...]:
        """Its partitions.

        >>> Share(stage="samples", index=1, of=3, partitions=8).owned
        (1, 4, 7)
        """
        return tuple(range(self.index, self.partitions, self.of))


def shares(system: System) -> list[Share]:
    """The actors of all stages, in flow order."""
    pipeline = system.settings.pipeline
    actors = {HISTORY: pipeline.history_actors, FEATURES: pipeline.feature_actors, SAMPLES: pipeline.sample_actors}
    return [
        Share(stage=stage, index=index, of=min(of, system.partitions), partitions=system.partitions)
        for stage, of in actors.items()
        for index in range(min(of, system.partitions))
    ]


def start_pipeline(system: System) -> list[Any]:
    """Start the actors on the connected Ray cluster; those that run already are left alone. Answers their handles."""
    return [start_actor(share.name, partial(make_work, system, share), cpus=0.5) for share in shares(system)]


def make_work(system: System, share: Share) -> list[Work]:
    """The loop of a share, and what one process does for all partitions; called in the share's actor."""
    chores: dict[str, list[Callable[[System], Work]]] = {
        FEATURES: [_keeper],
        HISTORY: [_tidier, _trimmer],
        SAMPLES: [_sample_keeper],
    }
    wanted = chores.get(share.stage, []) if share.index == 0 else []
    return [_loop(system, share), *(chore(system) for chore in wanted)]


def _keeper(system: System) -> FeatureKeeper:
    pool = Pool(system.postgres, size=2, application="rtrec-lists", pipeline=True)
    store = PostgresFeatureStore(system.features, pool=pool)
    return FeatureKeeper(store, clock=system.clock, options=KeeperOptions())


def _tidier(system: System) -> HistoryTidier:
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=system.history_uri))
    return HistoryTidier(files, PostgresHistoryManifest(system.postgres), every_s=system.settings.history.tidy_every_s)


def _trimmer(system: System) -> LogTrimmer:
    kept = system.settings.events
    retention = Retention(
        keep_ms=None if kept.keep_days is None else round(kept.keep_days * _DAY_MS),
        keep_events=kept.keep_events,
        cursor_alive_ms=round(kept.cursor_alive_days * _DAY_MS),
    )
    return LogTrimmer(lambda: PostgresNotificationStore(system.postgres, clock=system.clock), retention)


def _sample_keeper(system: System) -> SampleKeeper:
    kept, rules = system.settings.samples, system.samples
    keep_ms = max(kept.retention_days * _DAY_MS, rules.longest_horizon_ms + rules.longest_wait_ms)
    return SampleKeeper(PostgresSampleRetention(system.postgres, keep_ms=keep_ms), every_s=kept.look_every_s)


def _loop(system: System, share: Share) -> TaskLoop:
    owner = f"{share.name}-{uuid.uuid4().hex[:8]}"
    commit_s, make_operator = _STAGES[share.stage](system)
    return TaskLoop(
        TaskOptions(
            task=share.stage,
            partitions=share.owned,
            owner=owner,
            commit_every_s=commit_s,
            lease_ttl_ms=system.settings.pipeline.lease_ttl_ms,
            max_ahead_ms=SAMPLES_AHEAD_MS if share.stage == SAMPLES else None,
            watermark=system.watermark,
        ),
        make_operator=make_operator,
        connect_consumer=partial(connect_consumer, system.kafka),
        connect_store=partial(connect, system.postgres, application=owner, pipeline=True),
        clock=system.clock,
        first=partial(unread, partition_of=system.partition_of) if share.stage == FEATURES else None,
    )


_Made = tuple[float, Callable[[int], Operator]]


def _history(system: System) -> _Made:
    every_s = system.settings.pipeline.history_commit_s
    make = partial(
        HistoryOperator,
        files=ArrowHistoryFiles(HistoryFilesOptions(uri=system.history_uri)),
        manifest=PostgresHistoryManifest(system.postgres),
        producer=connect_producer(system.kafka),
        latest_ms=system.latest_ms,
        options=HistoryOptions(),
    )
    return every_s, lambda partition: make()


def _features(system: System) -> _Made:
    pool = Pool(system.postgres, size=1, application="rtrec-features")
    store = PostgresFeatureStore(system.features, pool=pool)
    make = partial(FeatureOperator, store=store, latest_ms=system.latest_ms, watermark=system.watermark)
    return system.settings.pipeline.feature_commit_s, make


def _samples(system: System) -> _Made:
    events = PostgresNotificationStore(system.postgres, clock=system.clock)

    def make(partition: int) -> Operator:
        ledger = PostgresSampleLedger(partition=partition)
        return SampleOperator(system.samples, ledger=ledger, latest_ms=system.latest_ms, send=events.send_in)

    return system.settings.pipeline.sample_commit_s, make


_STAGES: dict[str, Callable[[System], _Made]] = {HISTORY: _history, FEATURES: _features, SAMPLES: _samples}
