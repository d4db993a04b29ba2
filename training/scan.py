"""Samples of a time range in Ray Data: a task for each part of a scan, all out of one moment of the table.

The scan stays open, by a connection of the caller, as long as the dataset is read: a task that dies is begun again by
Ray and reads the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import ray.data
from polars import CompatLevel
from ray.data import Dataset

from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.samples.scan import SampleScan, ScanAsk, ScanPart, ScanPlan, select_schema

__all__ = ["PartReader", "open_dataset"]

_PLAIN: Final = CompatLevel.oldest()  # Ray Data neither sorts nor joins string views


@contextmanager
def open_dataset(scan: SampleScan, ask: ScanAsk) -> Iterator[tuple[Dataset, ScanPlan]]:
    """The range as a lazy dataset with the columns of `ask`, in no particular order, to be read within the block.

    Needs a Ray connection. Raises StoreUnavailable; reading it after the block raises SnapshotEnded in its tasks.
    """
    with scan.open(ask) as plan:
        if not plan.parts:
            yield ray.data.from_arrow(_empty(ask)), plan
            return
        numbers = ray.data.from_items(
            [{"number": number} for number in range(len(plan.parts))], override_num_blocks=len(plan.parts)
        )
        reader = PartReader(scan=scan, plan=plan)
        yield numbers.map_batches(reader, batch_size=1, batch_format="numpy"), plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReader:
    """A Ray Data task: the number of a part in, its rows out."""

    scan: SampleScan
    plan: ScanPlan

    def __call__(self, numbers: Mapping[str, Any]) -> Iterator[pa.Table]:
        """The rows of each part; a block without rows has the columns all the same."""
        for number in numbers["number"].tolist():
            part: ScanPart = self.plan.parts[number]
            yield self.scan.read(self.plan, part).to_arrow(compat_level=_PLAIN)


def _empty(ask: ScanAsk) -> pa.Table:
    return SAMPLE_SCHEMA.to_frame().select(select_schema(ask.columns).names()).to_arrow(compat_level=_PLAIN)
