"""What a training run is told, and the servers it works with. All of it crosses to Ray's workers as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from rtrec_ray.clock import REAL, Clock
from rtrec_ray.metadata.base import MetadataStore
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.notification.base import NotificationStore
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.registry.base import ModelCenter
from rtrec_ray.registry.changes import ChangeBook
from rtrec_ray.registry.changes_postgres import PostgresChangeBook
from rtrec_ray.registry.options import RegistryOptions
from rtrec_ray.stores.changes.log import ChangeLog
from rtrec_ray.stores.changes.postgres import PostgresChangeLog
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.store import SampleStore
from rtrec_ray.stores.training import PostgresTrainingBook, TrainingBook
from training.dataset import COLUMNS
from training.definition import ModelDefinition

__all__ = ["BaseOptions", "Connections", "GateOptions", "IncrementalOptions", "RayOptions", "ServerConnections"]


class Connections(Protocol):
    """Where a run finds its samples, model versions and events; must pickle, and connects only when asked."""

    @property
    def clock(self) -> Clock:
        """The clock of events."""
        ...

    def samples(self) -> SampleStore:
        """The sample store."""
        ...

    def change_log(self, run: str) -> ChangeLog:
        """The change log, for the consumer of this name: what training reads of a sample."""
        ...

    def center(self) -> ModelCenter:
        """The model center. Raises RegistryUnavailable."""
        ...

    def events(self) -> NotificationStore:
        """The event log."""
        ...

    def book(self) -> TrainingBook:
        """The book of training runs."""
        ...

    def model_changes(self) -> ChangeBook:
        """The book of model changes."""
        ...

    def metadata(self) -> MetadataStore:
        """Where runs are written down."""
        ...

    @property
    def snapshot(self) -> str | None:
        """What the workflow consists of now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConnections:
    """Connections to PostgreSQL and MLflow. `snapshot`: id of the workflow snapshot that the system runs on."""

    postgres: PostgresOptions
    registry: RegistryOptions
    clock: Clock = REAL
    snapshot: str | None = None

    def samples(self) -> SampleStore:
        """See Connections."""
        return PostgresSampleStore(self.postgres)

    def change_log(self, run: str) -> ChangeLog:
        """See Connections."""
        return PostgresChangeLog(self.postgres, name=run, columns=COLUMNS)

    def center(self) -> ModelCenter:
        """See Connections."""
        # Importing MLflow takes seconds, which the tasks that only read samples do not have.
        from rtrec_ray.registry.mlflow import MlflowModelCenter

        return MlflowModelCenter(self.registry)

    def events(self) -> NotificationStore:
        """See Connections."""
        return PostgresNotificationStore(self.postgres, clock=self.clock)

    def book(self) -> TrainingBook:
        """See Connections."""
        return PostgresTrainingBook(self.postgres)

    def model_changes(self) -> ChangeBook:
        """See Connections."""
        return PostgresChangeBook(self.postgres, clock=self.clock)

    def metadata(self) -> MetadataStore:
        """See Connections."""
        return PostgresMetadataStore(self.postgres)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """How a Ray Train run is laid out. `storage`: URI or path where Ray Train keeps its state.

    `cpus_per_worker`: logical CPUs of each. `max_failures`: restarts of the workers, -1 for ever.
    """

    storage: str
    workers: int = 1
    cpus_per_worker: float = 1.0
    max_failures: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOptions:
    """A base model from all samples up to now. `held_out_percent` of requests, by hash, are never trained on.

    `read_rows`: rows of the ledger per reading task. `job`: id of the order; the same job makes one version, also when
    its worker is started again; empty: a new id. `definitions`: versions of features' and labels', for the lineage.
    """

    definition: ModelDefinition
    ray: RayOptions
    held_out_percent: int = 10
    read_rows: int = 50_000
    run: str = "base"
    job: str = ""
    definitions: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementalOptions:
    """A run that follows the ledger. Periods in s of wall time.

    `publish_every_s`: a full version; `look_every_s`: at everything else, while no sample comes; `check_every_s`: for a
    new base, unasked, as nobody may be there to ask; `progress_every_s`: a point of progressive metrics; `window_rows`:
    rows behind AUC and calibration.
    `batches_per_turn`: batches between two looks at everything else.
    """

    ray: RayOptions = field(default_factory=lambda: RayOptions(storage="", max_failures=-1))
    held_out_percent: int = 10
    publish_every_s: float = 60.0
    look_every_s: float = 0.5
    check_every_s: float = 30.0
    progress_every_s: float = 2.0
    window_rows: int = 20_000
    batches_per_turn: int = 8
    run: str = "incremental"
    definitions: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """When a version may serve. Judged on the newest `max_rows` samples of held-out requests.

    `confidence`: of the bootstrap intervals, over `resamples` resamples of whole requests. `calibration`: predicted
    clicks over clicks must not lie outside it beyond doubt. `min_requests`: fewer held-out ones are no proof.
    `negligible`: share of the rival's log loss by which a version may be worse. Two increments in a row differ by so
    little that the interval of their difference leaves out zero for a millionth of a nat, which is nobody's loss.
    """

    held_out_percent: int = 10
    max_rows: int = 20_000
    min_requests: int = 10
    resamples: int = 1_000
    confidence: float = 0.95
    calibration: tuple[float, float] = (0.5, 2.0)
    negligible: float = 0.001
    seed: int = 17
    cursor: str = "validation-gate"
