"""What a running system is: addresses, clock, definitions, composed from settings and from what `up` wrote down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from configs.settings import ClockSettings, Settings
from rtrec_ray.clock import REAL, ScaledClock, wall_ms
from rtrec_ray.errors import NotRunning
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.definition import Definitions as FeatureDefinitions
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.partitioner import partition_of
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.samples.definition import SampleDefinition

# Below this much wall time, disorder and skew are the network's and the scheduler's, whatever the clock's speed.
LEAST_BOUND_WALL_MS = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the servers are; None is a server that neither runs here nor is named in the settings.

    `ray` is for ray.init; `ray_token` the path of its token, None when the environment already lets a driver in.
    """

    kafka: str | None = None
    postgres: str | None = None
    mlflow: str | None = None
    ray: str | None = None
    ray_dashboard: str | None = None
    ray_token: str | None = None
    http: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A system that runs, or is about to. It goes to the actors as it is, so it holds values only."""

    settings: Settings
    directory: Path
    addresses: Addresses
    features: FeatureDefinitions
    samples: SampleDefinition
    clock: ScaledClock = REAL
    partitions: int = 4

    @property
    def kafka(self) -> KafkaOptions:
        """How to speak to Kafka. Raises NotRunning."""
        server = self.settings.servers.kafka
        return KafkaOptions(
            bootstrap=self._need(self.addresses.kafka, "kafka"),
            library=server.library,  # type: ignore[arg-type]  # checked by KafkaOptions
            client=server.client,
            partitions=self.settings.pipeline.partitions,
            replication=server.replication,
            suffix=server.suffix,
        )

    @property
    def postgres(self) -> PostgresOptions:
        """How to speak to PostgreSQL. Raises NotRunning."""
        return PostgresOptions(dsn=self._need(self.addresses.postgres, "postgres"))

    @property
    def mlflow_url(self) -> str:
        """The MLflow server. Raises NotRunning."""
        return self._need(self.addresses.mlflow, "mlflow")

    @property
    def ray_address(self) -> str:
        """The Ray cluster, for ray.init. Raises NotRunning."""
        return self._need(self.addresses.ray, "ray")

    @property
    def http_url(self) -> str:
        """Where requests are answered. Raises NotRunning."""
        return self._need(self.addresses.http, "serve")

    @property
    def history_uri(self) -> str:
        """Where the history's files are."""
        return self.settings.history.uri or str(self.directory / "history")

    @property
    def training_storage(self) -> str:
        """Where Ray Train keeps the state of its runs."""
        return self.settings.training.storage or str(self.directory / "training")

    @property
    def definition_versions(self) -> str:
        """Versions of the definitions of features and labels, for a model's lineage."""
        views = ",".join(f"{view.name}:{view.version}" for view in self.features.views)
        return f"features={views} samples={self.samples.version}"

    @property
    def watermark(self) -> WatermarkOptions:
        """The bound on disorder, at least 250 ms of wall time, in event time."""
        pipeline = self.settings.pipeline
        return WatermarkOptions(disorder_ms=self._bound(pipeline.disorder_ms), idle_after_ms=pipeline.idle_after_ms)

    @property
    def skew_ms(self) -> int:
        """How far ahead of the clock an event may be, at least 250 ms of wall time, in event time."""
        return self._bound(self.settings.pipeline.skew_ms)

    @property
    def latest_ms(self) -> Callable[[int], int]:
        """Wall time at which a record was written → the latest event time that is believed of it, ms."""
        return LatestBelieved(clock=self.clock, skew_ms=self.skew_ms)

    def partition_of(self, user_id: int) -> int:
        """Where a user's records come from."""
        return partition_of(b"%d" % user_id, partitions=self.partitions)

    def at(self, clock: ScaledClock) -> System:
        """The same system by another clock."""
        return replace(self, clock=clock)

    def answering_at(self, url: str) -> System:
        """The same system with its HTTP address."""
        return replace(self, addresses=replace(self.addresses, http=url))

    def _bound(self, ms: int) -> int:
        return max(ms, round(LEAST_BOUND_WALL_MS * self.clock.speed))

    def _need(self, address: str | None, part: str) -> str:
        if address is None:
            raise NotRunning(
                f"{part} does not run on {self.directory}",
                mend=f"start it with `rtrec up --data-dir {self.directory}`, or give its address in --config",
            )
        return address


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestBelieved:
    """An event further ahead of the clock than `skew_ms`, when its record was written, is not believed.

    Nor is a record written in the future: a broker stamps what it appends, so that stamp is a producer's (CreateTime),
    whose clock may be the very fault. Such a record is judged by the time it is read, and a second reading may judge it
    otherwise once the clock has come to its stamp. Every other one is judged alike whenever it is read.
    """

    clock: ScaledClock
    skew_ms: int
    wall_ms: Callable[[], int] = wall_ms

    def __call__(self, written_ms: int) -> int:
        """The latest event time believed of a record written at `written_ms` (wall), ms."""
        return self.clock.at(min(written_ms, self.wall_ms())) + self.skew_ms


def with_clock(settings: Settings, *, origin_event_ms: int, speed: float) -> Settings:
    """The same settings with another clock."""
    clock = ClockSettings(origin_event_ms=origin_event_ms, speed=speed)
    return settings.model_copy(update={"clock": clock})
