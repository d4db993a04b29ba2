"""What data there is, which jobs ran, and what made each model version."""

from rtrec_ray.metadata.base import Dataset, JobRun, MetadataStore, ModelLineage, RunKind, RunState
from rtrec_ray.metadata.catalogue import KINDS, list_entries, show_entry, system_datasets
from rtrec_ray.metadata.memory import MemoryMetadataStore
from rtrec_ray.metadata.postgres import PostgresMetadataStore

__all__ = [
    "KINDS",
    "Dataset",
    "JobRun",
    "MemoryMetadataStore",
    "MetadataStore",
    "ModelLineage",
    "PostgresMetadataStore",
    "RunKind",
    "RunState",
    "list_entries",
    "show_entry",
    "system_datasets",
]
