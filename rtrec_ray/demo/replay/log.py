"""The log that is shown: its records by topic, and what is known of it beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from rtrec_ray.demo.replay.record import LogFacts
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.simulate.datasets import open_bandit

OPEN_BANDIT: Final = "open-bandit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A log. `records`: topic → frame with the topic's columns."""

    facts: LogFacts
    records: Mapping[str, pl.DataFrame]

    def __len__(self) -> int:
        """Records over all topics."""
        return sum(frame.height for frame in self.records.values())

    @property
    def clicks(self) -> pl.DataFrame:
        """Its clicks, ascending by time."""
        return self.records[BEHAVIOR].filter(pl.col("event_type") == "click").sort("ts")


def load_log() -> Log:
    """The Open Bandit log.

    >>> facts = load_log().facts
    >>> facts.impressions, facts.clicks, facts.users
    (60000, 287, 337)
    """
    records = open_bandit.records(open_bandit.load())
    behavior = records[BEHAVIOR]
    types = behavior["event_type"]
    facts = LogFacts(
        source=OPEN_BANDIT,
        impressions=int((types == "impression").sum()),
        clicks=int((types == "click").sum()),
        users=behavior["user_id"].n_unique(),
        items=behavior["item_id"].n_unique(),
        first_ms=int(behavior.select(pl.col("ts").min()).item()),
        last_ms=int(behavior.select(pl.col("ts").max()).item()),
    )
    return Log(facts=facts, records=records)
