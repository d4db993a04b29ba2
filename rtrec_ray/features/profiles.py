"""Which profile a user had at the time of an event: the newest version with ts ≤ the event's."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.events import PROFILE_SCHEMA
from rtrec_ray.features.definition import PROFILE_FIELDS

_VERSION: Final = ("user_id", "ts")
_NONE: Final = PROFILE_SCHEMA.to_frame()


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
    """The versions of one partition's users; to look up those of some users costs what these are, not what all are.

    Events older than `asked_from_ms` do not ask any more, so nobody needs a version that the next one superseded by
    then; such ones go when they are moved.
    """

    def __init__(self, profiles: pl.DataFrame, *, asked_from_ms: int) -> None:
        self._runs: list[pl.DataFrame] = []
        self._asked_from_ms = asked_from_ms
        self.take(profiles)

    def take(self, profiles: pl.DataFrame) -> None:
        """Add versions (PROFILE_SCHEMA), in the order they came."""
        if profiles.is_empty():
            return
        runs = self._runs
        runs.append(self._run(profiles))
        # Runs in the order they came, each at least twice as long as the next, so that there are few of them and each
        # version is moved O(log n) times.
        while len(runs) > 1 and runs[-2].height < 2 * runs[-1].height:
            last = runs.pop()
            runs[-1] = self._run(pl.concat([runs[-1], last]))

    def forget(self, *, before_ms: int) -> None:
        """No event that is older asks from now on."""
        self._asked_from_ms = before_ms

    def of(self, user_ids: pl.Series) -> pl.DataFrame:
        """The versions of these users, PROFILE_SCHEMA. A user may come several times."""
        wanted = user_ids.unique().sort().to_numpy()
        found = [_of_users(run, wanted) for run in self._runs]
        return newest_per_version(pl.concat([_NONE, *found]))

    def __len__(self) -> int:
        return sum(run.height for run in self._runs)

    def _run(self, profiles: pl.DataFrame) -> pl.DataFrame:
        """One row per version that somebody may ask for, by user."""
        ordered = newest_per_version(profiles.select(PROFILE_SCHEMA.names())).sort(_VERSION)
        superseded = (pl.col("user_id") == pl.col("user_id").shift(-1)) & (
            pl.col("ts").shift(-1) <= self._asked_from_ms
        )
        return ordered.remove(superseded)


def _of_users(run: pl.DataFrame, user_ids: npt.NDArray[np.int64]) -> pl.DataFrame:
    """The rows of a run that are of these users, each named once."""
    users = run["user_id"].to_numpy()
    first = np.searchsorted(users, user_ids, side="left")
    of_each = np.searchsorted(users, user_ids, side="right") - first
    ahead = np.cumsum(of_each) - of_each  # of each user, the rows of those before him
    return run[np.repeat(first - ahead, of_each) + np.arange(of_each.sum())]
