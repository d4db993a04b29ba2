"""Which of the events count: each once, however often it came, and none that was taken back.

An event is named by its user, its minute of event time and its id, as in the stream (`Seen`). Which partition it came
in tells nothing: when partitions were added, a user's events come in another one, and so may a copy or a retraction.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA
from rtrec_ray.eventtime.retract import originals
from rtrec_ray.features.seen import MINUTE_MS

EVENT_SCHEMA: Final = pl.Schema(
    [*BEHAVIOR_SCHEMA.items(), ("partition", pl.Int32()), ("offset", pl.Int64()), ("kafka_ts", pl.Int64())]
)
"""An event, and where and when Kafka took it (ms of wall time UTC)."""

PLACE: Final = ("partition", "offset", "kafka_ts")
"""Of these, what does not come out of the record itself."""

NAME_SCHEMA: Final = pl.Schema({"user_id": pl.Int64, "minute": pl.Int64, "event_id": pl.String})
"""What names an event. `minute`: of its event time, minutes since 1970."""

_NAME: Final = NAME_SCHEMA.names()


def counted(events: pl.DataFrame, gone: pl.DataFrame) -> pl.DataFrame:
    """Of the events with one name the first that came, unless it is among `gone` (NAME_SCHEMA); in any order.

    `events`: no retractions; `event_id`, `ts`, `user_id`, `partition`, `offset`, `kafka_ts` and any others; whole
    minutes of event time.
    """
    return earliest(named(events)).join(gone, on=_NAME, how="anti").select(events.columns)


def earliest(events: pl.DataFrame) -> pl.DataFrame:
    """Of rows with one name the first that came, in any order: within a partition the one of the lowest offset; of
    several partitions the one that Kafka took first, of equal times that of the lowest partition.
    """
    # A partition's times of writing may go back, its offsets do not.
    by_partition = events.sort("partition", "offset").unique(subset=(*_NAME, "partition"), keep="first")
    return by_partition.sort("kafka_ts", "partition").unique(subset=_NAME, keep="first")


def taken_back(retractions: pl.DataFrame) -> pl.DataFrame:
    """The names of the events that retractions (BEHAVIOR_SCHEMA's `retracts`) take back, in their order:
    (n, NAME_SCHEMA).
    """
    return named(originals(retractions)).select(_NAME)


def named(events: pl.DataFrame) -> pl.DataFrame:
    """The events with the `minute` of their name."""
    return events.with_columns((pl.col("ts") // MINUTE_MS).alias("minute"))
