"""Everything a replica talks to, in memory, to be taken away and given back: for tests, and to try serving alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.clock import Clock
from rtrec_ray.errors import ModelRejected, RegistryUnavailable, StoreUnavailable
from rtrec_ray.events import BEHAVIOR_SCHEMA, BehaviorEvent, CatalogItem, ProfileVersion
from rtrec_ray.features.compute import compute
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Value
from rtrec_ray.features.vector import Columns, ModelInput
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.metadata.memory import MemoryMetadataStore
from rtrec_ray.notification import MemoryNotificationStore
from rtrec_ray.registry.changes import MemoryChangeBook
from rtrec_ray.stores.features.memory import MemoryFeatureStore, MemoryFeatureTables
from rtrec_ray.stores.features.store import CatalogueRead, ProfilesRead, Reading, ReadPoint, TaskOutput
from serving.rank import Scorer
from serving.replica import Backends
from serving.stages import PipelineState


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScorer:
    """The logistic of a weighted sum of number inputs, by name.

    >>> LinearScorer(version="1", weights={"x": 1.0}).predict({"x": np.zeros(2)}).tolist()
    [0.5, 0.5]
    """

    version: str
    weights: Mapping[str, float] = field(default_factory=dict)
    trained_to_ms: int | None = None

    @property
    def inputs(self) -> Sequence[ModelInput]:
        """A number for each weight, and the item."""
        numbers = [ModelInput(name=name, kind="number") for name in self.weights]
        return [*numbers, ModelInput(name="item_id", kind="category")] if "item_id" not in self.weights else numbers

    def predict(self, columns: Columns, /) -> npt.NDArray[np.float64]:
        """(n,) probabilities."""
        rows = len(next(iter(columns.values())))
        total = sum((weight * columns[name] for name, weight in self.weights.items()), np.zeros(rows))
        return 1.0 / (1.0 + np.exp(-total))


class SwitchableFeatureStore(MemoryFeatureStore):
    """A store that can go away (`up`), or hang until `answers` is set."""

    def __init__(self, definitions: Definitions, *, tables: MemoryFeatureTables) -> None:
        super().__init__(definitions, tables=tables)
        self.up = True
        self.answers = threading.Event()
        self.answers.set()

    def read(self, asks: Sequence[ViewKey], *, now_ms: int, cached: bool) -> Reading:
        """As the port says."""
        self._pass()
        return super().read(asks, now_ms=now_ms, cached=cached)

    def get(
        self, asks: Sequence[ViewKey], *, as_of_ms: int | None, now_ms: int, cached: bool = False
    ) -> dict[ViewKey, Value | None]:
        """As the port says."""
        self._pass()
        return super().get(asks, as_of_ms=as_of_ms, now_ms=now_ms, cached=cached)

    def profiles(self, user_ids: Iterable[int], *, as_of_ms: int) -> ProfilesRead:
        """As the port says."""
        self._pass()
        return super().profiles(user_ids, as_of_ms=as_of_ms)

    def catalogue(self) -> CatalogueRead:
        """As the port says."""
        self._pass()
        return super().catalogue()

    def _pass(self) -> None:
        self.answers.wait()
        if not self.up:
            raise StoreUnavailable("the in-memory store is switched off")


class MemoryServers:
    """The servers of a replica. `models` can be loaded by version; `champion` is the one that should serve.

    `roots`: the base version of each increment; a version that is not in it is a base. `loads`: every version loaded.
    """

    def __init__(self, definitions: Definitions, *, clock: Clock) -> None:
        self.clock = clock
        self.tables = MemoryFeatureTables()
        self.store = SwitchableFeatureStore(definitions, tables=self.tables)
        self.broker = MemoryBroker(now_ms=clock.now_ms)
        self.events = MemoryNotificationStore(clock=clock)
        self.metadata = MemoryMetadataStore()
        self.changes = MemoryChangeBook(self.events, self.metadata, clock=clock)
        self.models: dict[str, Scorer] = {}
        self.champion: str | None = None
        self.roots: dict[str, str] = {}
        self.loads: list[str] = []
        self.registry_up = True
        self.newest_event_ms: int | None = None

    def backends(self) -> Backends:
        """What a replica takes."""
        return Backends(
            store=self.store,
            newest_event_ms=lambda: self.newest_event_ms,
            connect_producer=self.broker.producer,
            champion=self._champion,
            base=self._base,
            load=self._load,
            events=self.events,
            metadata=self.metadata,
            deployed=self.changes.deployed,
            pipeline=lambda now_ms: PipelineState(now_ms=now_ms),
        )

    def put_items(self, items: Iterable[CatalogItem]) -> None:
        """Add to the catalogue."""
        new = {item.item_id: item for item in items}
        self.tables.items.update(new)
        self.tables.item_offsets[0] = self.tables.item_offsets.get(0, 0) + len(new)

    def put_profile(self, profile: ProfileVersion) -> None:
        """Add a version of a user's profile."""
        self.tables.profiles[0][(profile.user_id, profile.ts)] = profile
        self.tables.profile_offsets[0] = self.tables.profile_offsets.get(0, 0) + 1

    def put_events(self, events: Sequence[BehaviorEvent]) -> None:
        """Compute the features of these events, as the pipeline would, but for the views that join profiles."""
        definitions = self.store.definitions
        frame = pl.DataFrame([msgspec.structs.asdict(event) for event in events], schema=BEHAVIOR_SCHEMA)
        views = [view for view in definitions.views if not view.needs_profile]
        tiles = {view.id: compute(view, frame, tile_ms=definitions.tile_ms) for view in views}
        self.newest_event_ms = max(event.ts for event in events)
        output = TaskOutput(
            partition=0,
            watermark_ms=None,
            next_offset=self.tables.offsets.get(0, 0) + len(events),
            profile_offset=self.tables.profile_offsets.get(0, 0),
            item_offset=self.tables.item_offsets.get(0, 0),
            tiles=tiles,
        )
        self.store.append(None, output)

    def put_list(self, view: str, key: str, value: Value) -> None:
        """Set a value of a view that is kept as a list."""
        version = self.store.definitions.view(view).version
        self.tables.lists.setdefault((view, version), {})[key] = value
        self.tables.rounds[(view, version)] = ReadPoint(
            as_of_ms=self.clock.now_ms(), offsets=dict(self.tables.offsets), version=version
        )

    def _champion(self) -> str | None:
        self._require_registry()
        return self.champion

    def _base(self) -> str | None:
        champion = self._champion()
        return None if champion is None else self.roots.get(champion, champion)

    def _load(self, version: str) -> Scorer:
        self._require_registry()
        self.loads.append(version)
        if version not in self.models:
            raise ModelRejected(f"there is no model {version}")
        return self.models[version]

    def _require_registry(self) -> None:
        if not self.registry_up:
            raise RegistryUnavailable("the in-memory registry is switched off")
