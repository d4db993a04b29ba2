"""Which profile a user had at the time of an event: the newest version with ts ≤ the event's."""

from __future__ import annotations

import polars as pl

from rtrec_ray.events import PROFILE_SCHEMA
from rtrec_ray.features.definition import PROFILE_FIELDS

_VERSION = ("user_id", "ts")


def newest_per_version(profiles: pl.DataFrame) -> pl.DataFrame:
    """One row per (user_id, ts), the last that came: a version sent again replaces itself."""
    return profiles.unique(subset=_VERSION, keep="last", maintain_order=True)


def attribute(events: pl.DataFrame, profiles: pl.DataFrame) -> pl.DataFrame:
    """The events with the PROFILE_FIELDS of their users' profiles, null where there was none; in another order.

    `profiles`: PROFILE_SCHEMA, at most one row per version, in any order.

    >>> events = pl.DataFrame({"user_id": [1, 1], "ts": [4, 5]})
    >>> version = {"user_id": 1, "ts": 5, "country": "CN", "gender": "f", "city": None, "age_band": None}
    >>> attribute(events, pl.DataFrame([version], schema=PROFILE_SCHEMA))["country"].to_list()
    [None, 'CN']
    """
    of_these = profiles.join(events.select(pl.col("user_id").unique()), on="user_id", how="semi")
    return events.sort("ts").join_asof(
        of_these.select(*_VERSION, *PROFILE_FIELDS).sort("ts"),
        on="ts",
        by="user_id",
        strategy="backward",
        check_sortedness=False,
    )


class ProfileVersions:
    """The versions of one partition's users, consolidated only when somebody looks."""

    def __init__(self, profiles: pl.DataFrame) -> None:
        self._parts = [profiles]

    def take(self, profiles: pl.DataFrame) -> None:
        """Add versions (PROFILE_SCHEMA), in the order they came."""
        self._parts.append(profiles)

    def frame(self) -> pl.DataFrame:
        """All versions, PROFILE_SCHEMA."""
        if len(self._parts) > 1:
            self._parts = [newest_per_version(pl.concat(self._parts))]
        return self._parts[0].select(PROFILE_SCHEMA.names())
