"""Ray Data's part of a base run: ranges of the ledger to columns of trainable samples.

Imports neither TensorFlow nor MLflow: the tasks that read would spend longer on that than on reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
import ray.data
from ray.data import Dataset

from training.dataset import BACKFILLED, COLUMNS, SampleBatch, encode, held_out, seq_ranges
from training.definition import ModelDefinition
from training.options import BaseOptions, Connections
from training.sampling import importance

__all__ = ["PREFIX", "LedgerReader", "Totals", "read_samples", "totals"]

PREFIX: Final = "x."  # before the model's inputs among the columns, so that no input can be taken for a label
_COUNTED: Final = ["label", "event_time_ms", "negative_rate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Of the samples to train on: rows, clicks, event time of the newest, ms UTC.

    `shown`: rows of the world that they stand for.
    """

    rows: int = 0
    positives: int = 0
    newest_ms: int = 0
    shown: float = 0.0


def read_samples(options: BaseOptions, connections: Connections, *, to_seq: int) -> Dataset:
    """The newest revision of every trainable sample as of `to_seq`, in ledger order, read by one task per range."""
    ranges = seq_ranges(to_seq, rows=options.read_rows)
    reader = LedgerReader(
        connections=connections,
        definition=options.definition,
        held_out_percent=options.held_out_percent,
        to_seq=to_seq,
    )
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    spans = ray.data.from_items(
        [{"after": after, "upto": upto} for after, upto in ranges], override_num_blocks=len(ranges)
    )
    return spans.map_batches(reader, batch_size=1, batch_format="numpy").materialize()


def totals(samples: Dataset) -> Totals:
    """Count the samples, by three narrow columns."""
    if samples.count() == 0:
        return Totals()
    found = Totals()
    for block in samples.select_columns(_COUNTED).iter_batches(batch_size=None, batch_format="numpy"):
        found = Totals(
            rows=found.rows + len(block["label"]),
            positives=found.positives + int(block["label"].sum()),
            newest_ms=max(found.newest_ms, int(block["event_time_ms"].max())),
            shown=found.shown + float(importance(block["label"], block["negative_rate"]).sum()),
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReader:
    """A Ray Data task: a range of the ledger in, columns of trainable samples out."""

    connections: Connections
    definition: ModelDefinition
    held_out_percent: int
    to_seq: int

    def __call__(self, spans: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Read each span (after, upto]; held-out requests are left out."""
        store = self.connections.samples()
        columns = (*COLUMNS, BACKFILLED) if self.definition.backfilled else COLUMNS
        for span in zip(spans["after"].tolist(), spans["upto"].tolist(), strict=True):
            for frame in store.current(to_seq=self.to_seq, span=span, columns=columns):
                apart = held_out(frame["request_id"].to_list(), percent=self.held_out_percent)
                mine = frame.filter(pl.Series(~apart))
                if mine.height:
                    yield _block(encode(mine, self.definition.model_inputs, held_out_percent=self.held_out_percent))


def _block(batch: SampleBatch) -> dict[str, Any]:
    columns = {f"{PREFIX}{name}": column for name, column in batch.columns.items()}
    return {**columns, "label": batch.label, "event_time_ms": batch.event_time_ms, "negative_rate": batch.negative_rate}
