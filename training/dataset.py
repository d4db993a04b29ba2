"""Samples to batches a model takes, and which of them are held out.

A range of the ledger is the same whenever it is read, so a version names its samples by two numbers. Requests are held
out by a hash of their id: the same ones for every run and every version, so no model that the gate compares has seen
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from rtrec_ray.features.vector import ModelInput, assemble
from training.sampling import SAMPLING_COLUMNS, importance, negative_rates

__all__ = ["BACKFILLED", "COLUMNS", "SampleBatch", "encode", "held_out", "seq_ranges"]

COLUMNS: Final = (
    "commit_seq", "request_id", "item_id", "user_id", "event_time_ms", "revision", "label", "page_id", "position",
    "features", *SAMPLING_COLUMNS,
)  # fmt: skip
"""What training reads of a sample."""

BACKFILLED: Final = "backfilled"
"""What a model reads beside these that takes features computed afterwards where it misses logged ones."""

_OWN: Final = (
    "user_id",
    "item_id",
    "page_id",
    "position",
)  # inputs that are columns of the sample, not logged features
_SALT: Final = b"held-out:"  # or arms of an experiment that split by the same hash would be held out whole


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """n rows. `columns`: the model's inputs; the rest (n,). `first`: not a correction of an earlier revision.

    `negative_rate`: share of the negatives like it that was kept, in (0, 1].
    """

    columns: dict[str, npt.NDArray[Any]]
    label: npt.NDArray[np.float32]
    first: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]
    commit_seq: npt.NDArray[np.int64]
    event_time_ms: npt.NDArray[np.int64]
    negative_rate: npt.NDArray[np.float32]

    @property
    def importance(self) -> npt.NDArray[np.float64]:
        """How many rows of the world each row stands for, (n,)."""
        return importance(self.label, self.negative_rate)

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> SampleBatch:
        """Some of the rows."""
        return SampleBatch(
            columns={name: column[rows] for name, column in self.columns.items()},
            label=self.label[rows],
            first=self.first[rows],
            held_out=self.held_out[rows],
            commit_seq=self.commit_seq[rows],
            event_time_ms=self.event_time_ms[rows],
            negative_rate=self.negative_rate[rows],
        )


def held_out(request_ids: Sequence[str], *, percent: int) -> npt.NDArray[np.bool_]:
    """Which requests no model may learn from, (n,): `percent` of 100, chosen by hash.

    >>> held_out(["r1", "r2"], percent=100).tolist()
    [True, True]
    """
    # Polars' and NumPy's own hashes differ between versions; a model must not meet its exam after an upgrade.
    hashes = np.fromiter((crc32(_SALT + text.encode()) for text in request_ids), dtype=np.int64, count=len(request_ids))
    return hashes % 100 < percent


def encode(frame: pl.DataFrame, inputs: Sequence[ModelInput], *, held_out_percent: int) -> SampleBatch:
    """Rows of the sample store, with `COLUMNS`, as a batch for a model of these inputs.

    With `BACKFILLED` a feature that was not logged is the one that was computed afterwards.
    """
    rows = [_raw(features) for features in frame["features"].to_list()]
    if BACKFILLED in frame.columns:
        rows = [{**_raw(later), **logged} for later, logged in zip(frame[BACKFILLED].to_list(), rows, strict=True)]
    for name in _OWN:
        for row, value in zip(rows, frame[name].to_list(), strict=True):
            if value is not None:
                row[name] = value
    return SampleBatch(
        columns=assemble(inputs, rows),
        label=frame["label"].to_numpy().astype(np.float32),
        first=frame["revision"].to_numpy() == 0,
        held_out=held_out(frame["request_id"].to_list(), percent=held_out_percent),
        commit_seq=frame["commit_seq"].to_numpy().astype(np.int64),
        event_time_ms=frame["event_time_ms"].to_numpy().astype(np.int64),
        negative_rate=negative_rates(frame),
    )


def seq_ranges(to_seq: int, *, rows: int) -> list[tuple[int, int]]:
    """The ledger up to `to_seq` in ranges (after, upto] of at most `rows` numbers, one per reading task.

    >>> seq_ranges(25, rows=10)
    [(0, 10), (10, 20), (20, 25)]
    """
    return [(start, min(start + rows, to_seq)) for start in range(0, to_seq, rows)]


def _raw(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    found = orjson.loads(text)
    return found if isinstance(found, dict) else {}
