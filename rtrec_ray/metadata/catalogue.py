"""Reading the metadata as `rtrec meta list|show` does, and the datasets that every system has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import polars as pl

from rtrec_ray.errors import RtrecError
from rtrec_ray.events import SCHEMAS
from rtrec_ray.metadata.base import Dataset, JobRun, MetadataStore, ModelLineage
from rtrec_ray.stores import history

Entry = Dataset | JobRun | ModelLineage

_LIST: Final[dict[str, Callable[[MetadataStore], Sequence[Entry]]]] = {
    "datasets": lambda store: store.datasets(),
    "runs": lambda store: store.runs(),
    "models": lambda store: store.lineages(),
}
_SHOW: Final[dict[str, Callable[[MetadataStore, str], Entry | None]]] = {
    "datasets": lambda store, name: store.dataset(name),
    "runs": lambda store, name: store.run(name),
    "models": lambda store, name: store.lineage(name),
}

KINDS: Final = tuple(_LIST)
"""What `meta list` and `meta show` know."""


def list_entries(store: MetadataStore, kind: str) -> list[dict[str, Any]]:
    """Every entry of a kind as plain values. Raises RtrecError for an unknown kind."""
    return [asdict(entry) for entry in _of(_LIST, kind)(store)]


def show_entry(store: MetadataStore, kind: str, name: str) -> dict[str, Any]:
    """One entry as plain values; a model version with its ancestors. Raises RtrecError when there is none."""
    entry = _of(_SHOW, kind)(store, name)
    if entry is None:
        raise RtrecError(f"there is no {name!r} among the {kind}", mend=f"`rtrec meta list {kind}` shows what there is")
    shown = asdict(entry)
    if kind == "models":
        shown["ancestors"] = [asdict(one) for one in store.ancestry(name)[1:]]
    return shown


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


def _of(table: dict[str, Any], kind: str) -> Any:
    if kind not in table:
        raise RtrecError(f"there is no metadata of kind {kind!r}", mend=f"one of {', '.join(KINDS)}")
    return table[kind]
