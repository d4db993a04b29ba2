"""The real servers behind a replica, each connected by the first call: a replica starts while they are away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from rtrec_ray.clock import REAL, ScaledClock
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.definition import Definitions
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.notification import PostgresNotificationStore
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.statements import load as load_statements
from rtrec_ray.registry.base import ModelCenter
from rtrec_ray.registry.changes_postgres import PostgresChangeBook
from rtrec_ray.registry.mlflow import MlflowModelCenter, RegistryOptions
from rtrec_ray.stores.features.near import NearFeatures
from rtrec_ray.stores.features.past import Closes, past_of
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from serving.model import fetch
from serving.options import ServingOptions
from serving.rank import Scorer
from serving.replica import Backends
from serving.stages import read_pipeline

FEATURES_TASK: Final = "features"

# A request has given up long before; these only end what would otherwise hold a thread and a connection.
_CONNECT_TIMEOUT_S: Final = 2
_STATEMENT_TIMEOUT_MS: Final = 5_000
_SHARED_CONNECTIONS: Final = 4  # lists, looks at what came, and GET /v1/features
_PROGRESS_KEY: Final = {"task": FEATURES_TASK, "topic": BEHAVIOR}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """All that a replica is told. `history_uri`: where features of times before the tiles are read from, None refuses
    them; `skew_ms`: how far ahead of the clock a posted event may be.

    `on_loopback`: the cluster is this machine, so nobody else need reach the replica's own port.
    """

    postgres: PostgresOptions
    kafka: KafkaOptions
    registry: RegistryOptions
    definitions: Definitions
    serving: ServingOptions = field(default_factory=ServingOptions)
    clock: ScaledClock = REAL
    skew_ms: int = 60_000
    history_uri: str | None = None
    on_loopback: bool = False
    token: str | None = field(default=None, repr=False)


def connect(options: ReplicaOptions) -> Backends:
    """What a replica talks to, over PostgreSQL, Kafka and MLflow."""
    postgres = replace(
        options.postgres, connect_timeout_s=_CONNECT_TIMEOUT_S, statement_timeout_ms=_STATEMENT_TIMEOUT_MS
    )
    pool = Pool(postgres, size=options.serving.store_threads + _SHARED_CONNECTIONS, application="rtrec-serving")
    registry = Registry(partial(MlflowModelCenter, options.registry))
    metadata = PostgresMetadataStore(postgres)
    book = PostgresChangeBook(postgres, clock=options.clock)
    past = None if options.history_uri is None else past_of(options.history_uri, postgres)
    owned: list[Closes] = [pool, metadata, book, *([] if past is None else [past])]
    store = PostgresFeatureStore(options.definitions, pool=pool, past=past)
    near = NearFeatures(store, clock=options.clock, most_rows=options.serving.near_rows)
    return Backends(
        store=near if options.serving.near_refresh_s else store,
        near=near if options.serving.near_refresh_s else None,
        newest_event_ms=partial(newest_event_ms, pool),
        connect_producer=partial(connect_producer, options.kafka),
        champion=registry.champion,
        base=registry.base,
        load=registry.load,
        events=PostgresNotificationStore(postgres, clock=options.clock),
        metadata=metadata,
        deployed=book.deployed,
        pipeline=lambda now_ms: read_pipeline(pool, now_ms=now_ms),
        close=partial(_close, owned),
    )


def _close(connected: Iterable[Closes]) -> None:
    for each in connected:
        each.close()


class Registry:
    """The model center as the reloading thread sees it; connected by the first question that it answers."""

    def __init__(self, connect_center: Callable[[], ModelCenter]) -> None:
        self._connect = connect_center
        self._center: ModelCenter | None = None

    def champion(self) -> str | None:
        """The version that should serve. Raises RegistryUnavailable."""
        found = self._connected().champion()
        return None if found is None else found.version

    def base(self) -> str | None:
        """The base version at the root of the champion's chain. Raises RegistryUnavailable."""
        found = self._connected().champion()
        return None if found is None else found.root

    def load(self, version: str) -> Scorer:
        """The version in memory. Raises RegistryUnavailable, ModelRejected."""
        return fetch(self._connected(), version)

    def _connected(self) -> ModelCenter:
        if self._center is None:
            self._center = self._connect()
        return self._center


def newest_event_ms(pool: Pool) -> int | None:
    """Event time up to which features are computed, ms UTC. Raises StoreUnavailable."""
    with pool.transaction() as cursor:
        cursor.execute(load_statements("serving", "serving.sql")["feature_progress"], _PROGRESS_KEY)
        return freshest(cursor.fetchall())


def freshest(partitions: Iterable[tuple[int | None, bool]]) -> int | None:
    """How far features have come: (newest event's time, whether it is behind its log) of each partition, ms.

    While partitions are behind, as far as the last of these; a partition without new events is no reason to call the
    others old.

    >>> freshest([(900, False), (100, False)]), freshest([(900, False), (100, True)]), freshest([])
    (900, 100, None)
    """
    known = [(newest_ms, behind) for newest_ms, behind in partitions if newest_ms is not None]
    behind = [newest_ms for newest_ms, is_behind in known if is_behind]
    return min(behind) if behind else max((newest_ms for newest_ms, _ in known), default=None)
