"""Events older than the tiles, out of the history."""

from __future__ import annotations

from typing import Final

import polars as pl
import pyarrow.compute as pc

from rtrec_ray.events import BEHAVIOR, BEHAVIOR_SCHEMA, RETRACT
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.history import History
from rtrec_ray.stores.history_files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history_manifest import PostgresHistoryManifest

_COLUMNS: Final = (*BEHAVIOR_SCHEMA.names(), "partition", "offset")


def past_of(uri: str, postgres: PostgresOptions) -> HistoryPast:
    """The history below `uri`, by the manifest in `postgres`."""
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=uri))
    return HistoryPast(History(files, PostgresHistoryManifest(postgres)))


class HistoryPast:
    """Past over the history's files."""

    def __init__(self, history: History) -> None:
        self._history = history

    def behavior(self, *, from_ms: int, to_ms: int) -> pl.DataFrame:
        """Accepted events with ts in [from_ms, to_ms), and all later retractions: one is never older than what it takes
        back. They are few, and the column that tells them compresses to almost nothing.
        """
        frames = [
            *self._history.scan(BEHAVIOR, from_ms=from_ms, to_ms=to_ms, columns=_COLUMNS),
            *self._history.scan(BEHAVIOR, from_ms=to_ms, columns=_COLUMNS, where=pc.field("event_type") == RETRACT),
        ]
        empty = BEHAVIOR_SCHEMA.to_frame().with_columns(
            pl.lit(None, dtype=pl.Int32).alias("partition"), pl.lit(None, dtype=pl.Int64).alias("offset")
        )
        return pl.concat([empty, *frames])
