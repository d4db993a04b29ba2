"""Which of the events count: each once, however often it came, and none that was taken back.

Within its partition and minute of event time an event is told from its duplicates, as in the stream (`Seen`).
"""

from __future__ import annotations

from typing import Final

import polars as pl

from rtrec_ray.eventtime.retract import originals
from rtrec_ray.features.seen import MINUTE_MS

NAME_SCHEMA: Final = pl.Schema({"partition": pl.Int32, "minute": pl.Int64, "event_id": pl.String})
"""What names an event. `minute`: of its event time, minutes since 1970."""

_NAME: Final = NAME_SCHEMA.names()


def counted(events: pl.DataFrame, gone: pl.DataFrame) -> pl.DataFrame:
    """Of the events with one name the first that came, unless it is among `gone` (NAME_SCHEMA); in any order.

    `events`: no retractions; `event_id`, `ts`, `partition`, `offset` and any others; whole minutes of event time.
    """
    first = events.sort("partition", "offset").with_columns(_minute()).unique(subset=_NAME, keep="first")
    return first.join(gone, on=_NAME, how="anti").select(events.columns)


def taken_back(retractions: pl.DataFrame) -> pl.DataFrame:
    """The names of the events that retractions (BEHAVIOR_SCHEMA's `retracts`, and `partition`) take back, in their
    order: (n, NAME_SCHEMA). An original comes from the partition of its retraction, as both are of one user.
    """
    return originals(retractions).select(retractions["partition"], _minute(), pl.col("event_id"))


def _minute() -> pl.Expr:
    return (pl.col("ts") // MINUTE_MS).alias("minute")
