"""What data there is, what it was made from, which jobs ran, and what made each model version."""

from rtrec_ray.metadata.base import (
    Dataset,
    Entity,
    EntityKind,
    JobRun,
    MetadataStore,
    ModelLineage,
    RunKind,
    RunState,
    Snapshot,
    take_snapshot,
)
from rtrec_ray.metadata.catalogue import KINDS, Catalogue, list_entries, show_entry, system_datasets
from rtrec_ray.metadata.memory import MemoryMetadataStore
from rtrec_ray.metadata.postgres import PostgresMetadataStore

__all__ = [
    "KINDS",
    "Catalogue",
    "Dataset",
    "Entity",
    "EntityKind",
    "JobRun",
    "MemoryMetadataStore",
    "MetadataStore",
    "ModelLineage",
    "PostgresMetadataStore",
    "RunKind",
    "RunState",
    "Snapshot",
    "list_entries",
    "show_entry",
    "system_datasets",
    "take_snapshot",
]
