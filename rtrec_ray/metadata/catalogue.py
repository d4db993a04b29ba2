"""Reading the metadata as `rtrec meta list|show` does, and the datasets that every system has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import polars as pl

from rtrec_ray.errors import MetadataUnknown
from rtrec_ray.events import SCHEMAS
from rtrec_ray.metadata.base import Dataset, Entity, EntityKind, JobRun, MetadataStore, ModelLineage, Snapshot
from rtrec_ray.stores.history import store as history

Entry = Dataset | Entity | EntityKind | JobRun | ModelLineage | Snapshot

_LIST: Final[dict[str, Callable[[MetadataStore], Sequence[Entry]]]] = {
    "datasets": lambda store: store.datasets(),
    "snapshots": lambda store: store.snapshots(),
    "runs": lambda store: store.runs(),
    "models": lambda store: store.lineages(),
    "kinds": lambda store: store.kinds(),
}
_SHOW: Final[dict[str, Callable[[MetadataStore, str], Entry | None]]] = {
    "datasets": lambda store, name: store.dataset(name),
    "snapshots": lambda store, name: next(iter(store.snapshots(snapshot=name)), None),
    "runs": lambda store, name: store.run(name),
    "models": lambda store, name: store.lineage(name),
    "kinds": lambda store, name: next((kind for kind in store.kinds() if kind.name == name), None),
}

KINDS: Final = ("datasets", "projects", "workflows", "snapshots", "jobs", "runs", "models", "kinds")
"""What `meta list` and `meta show` know in every system; users' own kinds beside them."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The metadata as plain values, by kind and name."""

    store: MetadataStore

    def list(self, kind: str) -> dict[str, Any]:
        """`{kind: [entry, ...]}`. Raises MetadataUnknown, StoreUnavailable."""
        return {kind: list_entries(self.store, kind)}

    def show(self, kind: str, name: str) -> dict[str, Any]:
        """One entry. Raises MetadataUnknown, StoreUnavailable."""
        return show_entry(self.store, kind, name)


def list_entries(store: MetadataStore, kind: str) -> list[dict[str, Any]]:
    """Every entry of a kind as plain values. Raises MetadataUnknown for an unknown kind."""
    if kind in _LIST:
        return [asdict(entry) for entry in _LIST[kind](store)]
    _check(store, kind)
    return [asdict(entity) for entity in store.entities(kind)]


def show_entry(store: MetadataStore, kind: str, name: str) -> dict[str, Any]:
    """One entry as plain values; a model version with its ancestors and its run. Raises MetadataUnknown."""
    if kind not in _SHOW:
        _check(store, kind)
    entry = _SHOW[kind](store, name) if kind in _SHOW else next(iter(store.entities(kind, name=name)), None)
    if entry is None:
        raise MetadataUnknown(
            f"there is no {name!r} among the {kind}", mend=f"`rtrec meta list {kind}` shows what there is"
        )
    shown = asdict(entry)
    if isinstance(entry, ModelLineage):
        run = store.run(entry.run_id)
        shown["run"] = None if run is None else asdict(run)
        shown["ancestors"] = [asdict(one) for one in store.ancestry(name)[1:]]
    return shown


def _check(store: MetadataStore, kind: str) -> None:
    known = [one.name for one in store.kinds()]
    if kind not in known:
        raise MetadataUnknown(
            f"there is no metadata of kind {kind!r}", mend=f"one of {', '.join(dict.fromkeys([*KINDS, *known]))}"
        )


def system_datasets(*, history_uri: str, topics: str) -> tuple[Dataset, ...]:
    """The datasets every system has. `topics`: where Kafka is, `host:port,...`.

    >>> [dataset.name for dataset in system_datasets(history_uri="/data/history", topics="k:9092")][:3]
    ['samples', 'behavior-history', 'behavior-topic']
    """
    samples = Dataset(
        name="samples",
        address="samples.current",
        format="postgresql",
        columns=_SAMPLE_COLUMNS,
        description="Stitched samples, each with its newest label; samples.revisions is the ledger behind it.",
    )
    by_topic = [
        dataset
        for topic, schema in SCHEMAS.items()
        for dataset in (
            Dataset(
                name=f"{topic}-history",
                address=f"{history_uri.rstrip('/')}/topic={topic}",
                format="parquet",
                columns=_types(history.schema(topic)),
                description=f"Accepted records of topic {topic}; meta.history_files names the files that count.",
            ),
            Dataset(
                name=f"{topic}-topic",
                address=f"kafka://{topics}/{topic}",
                format="kafka-json",
                columns=_types(schema),
                description=f"Kafka topic {topic}, a JSON object a record.",
            ),
        )
    ]
    return (samples, *by_topic)


_SAMPLE_COLUMNS: Final = {
    "request_id": "text",
    "item_id": "bigint",
    "user_id": "bigint",
    "event_time_ms": "bigint",
    "known_at": "timestamptz",
    "revision": "int",
    "label": "smallint",
    "labels": "jsonb",
    "features": "jsonb",
    "model_version": "text",
    "arm": "text",
}


def _types(schema: pl.Schema) -> dict[str, str]:
    return {name: str(kind) for name, kind in schema.items()}
