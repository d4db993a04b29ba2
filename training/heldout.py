"""The newest samples of held-out requests: what versions are examined on."""

from __future__ import annotations

import polars as pl

from rtrec_ray.samples.columns import KEY
from rtrec_ray.stores.samples.store import SampleStore
from training.dataset import COLUMNS, held_out

__all__ = ["HeldOutRows"]

_READ_ROWS = 20_000
# Ledger rows looked at for each held-out row wanted: the share is a hash's, so allow for it to come out low.
_MARGIN = 1.3


class HeldOutRows:
    """At most `max_rows` samples of held-out requests, kept up by reading only what is new in the ledger."""

    def __init__(self, store: SampleStore, *, percent: int, max_rows: int) -> None:
        self._store = store
        self._percent = percent
        self._max_rows = max_rows
        self._seen = 0
        self._rows: pl.DataFrame | None = None

    def upto(self, to_seq: int) -> pl.DataFrame:
        """The newest revision of each, as of `to_seq` or later, in ledger order, with the columns training reads.

        Raises StoreUnavailable.
        """
        span = int(self._max_rows * 100 / max(self._percent, 1) * _MARGIN)
        start = max(self._seen, to_seq - span)
        parts = [] if self._rows is None else [self._rows]
        for frame in self._store.scan(from_seq_exclusive=start, to_seq=to_seq, columns=COLUMNS, batch_rows=_READ_ROWS):
            chosen = held_out(frame["request_id"].to_list(), percent=self._percent)
            parts.append(frame.filter(pl.Series(chosen)))
        if not parts:
            return pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.Int64))
        newest = pl.concat(parts).unique(KEY, keep="last", maintain_order=True).sort("commit_seq")
        self._rows = newest.tail(self._max_rows)
        self._seen = max(self._seen, to_seq)
        return self._rows
