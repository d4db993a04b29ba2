"""Samples of a time range as a tf.data dataset: batches of columns, all of one size."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from rtrec_ray.stores.samples.scan import SampleScan, ScanPlan, select_schema

__all__ = ["frames_of", "tf_dataset"]

_NULLS: dict[Any, Any] = {pl.Int64(): 0, pl.Float64(): float("nan"), pl.String(): ""}
_TYPES: dict[Any, Any] = {pl.Int64(): tf.int64, pl.Float64(): tf.float64, pl.String(): tf.string}


def tf_dataset(scan: SampleScan, plan: ScanPlan, *, batch_rows: int, readers: int = 2, rest: bool = False) -> Any:
    """An open scan as tf.data.Dataset of {column: (batch_rows,)}; of the last rows, fewer than a batch, none come, or
    with `rest` a smaller batch.

    A null is 0, NaN or "". Each pass over the dataset reads the same rows again, as long as the scan is open; an error
    of the store ends the pass as tf.errors.UnknownError. Parts are read ahead by `readers` threads.
    """
    schema = select_schema(plan.ask.columns)
    rows = None if rest else batch_rows
    signature = {name: tf.TensorSpec(shape=(rows,), dtype=_TYPES[dtype]) for name, dtype in schema.items()}

    def batches() -> Iterator[dict[str, Any]]:
        for frame in _rebatched(frames_of(scan, plan, readers=readers), batch_rows, rest=rest):
            yield {name: _column(frame[name]) for name in schema}

    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)


def frames_of(scan: SampleScan, plan: ScanPlan, *, readers: int) -> Iterator[pl.DataFrame]:
    """The parts of an open scan in their order, read by `readers` threads; no more than that wait in memory."""
    parts = iter(plan.parts)
    with ThreadPoolExecutor(readers) as pool:
        waiting: list[Future[pl.DataFrame]] = [pool.submit(scan.read, plan, part) for part in islice(parts, readers)]
        while waiting:
            frame = waiting.pop(0).result()
            waiting += [pool.submit(scan.read, plan, part) for part in islice(parts, 1)]
            if frame.height:
                yield frame


def _rebatched(frames: Iterator[pl.DataFrame], rows: int, *, rest: bool) -> Iterator[pl.DataFrame]:
    left: pl.DataFrame | None = None
    for frame in frames:
        whole = frame if left is None else pl.concat([left, frame])
        full = whole.height // rows * rows
        yield from whole[:full].iter_slices(rows) if full else ()
        left = whole[full:]
    if rest and left is not None and left.height:
        yield left


def _column(values: pl.Series) -> np.ndarray[Any, Any]:
    filled = values.fill_null(_NULLS[values.dtype])
    return filled.to_numpy().astype(object) if values.dtype == pl.String else filled.to_numpy()
