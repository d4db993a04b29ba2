"""The feature stage of one source partition: which events count, and what they add to the tiles.

Lateness is judged record by record, against the largest event time of the records before it, so that the outcome
depends neither on how the log is cut into batches nor on when somebody looked at a clock; only a watermark that went
on while the partition was idle can be ahead of that.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA
from rtrec_ray.features.compute import PROFILED_SCHEMA, compute, concerns_some
from rtrec_ray.features.definition import PROFILE_FIELDS, Definitions
from rtrec_ray.features.profiles import ProfileVersions, attribute
from rtrec_ray.features.seen import MINUTE_MS, Seen, hash_ids

Counts = Counter[str]

_LONG_AGO_MS: Final = -(1 << 62)


class FeatureStream:
    """Takes events and profiles in the log's order, and answers the tile rows of what came since the last `settle`."""

    def __init__(
        self,
        definitions: Definitions,
        *,
        disorder_ms: int,
        seen: Seen,
        profiles: pl.DataFrame,
        watermark_ms: int | None = None,
    ) -> None:
        self.seen = seen
        self.watermark_ms = watermark_ms
        self._definitions = definitions
        self._disorder_ms = disorder_ms
        self._profiles = ProfileVersions(profiles)
        self._pending: list[pl.DataFrame] = []
        self._counts_somewhere = concerns_some(definitions.views)
        self._counts_by_profile = concerns_some(view for view in definitions.views if view.needs_profile)

    def take(self, events: pl.DataFrame) -> Counts:
        """Take events (BEHAVIOR_SCHEMA) in offset order.

        Answers how many were `late`, of these `corrected` and `beyond_horizon`, how many `duplicate`, `deferred`
        (retractions) and `without_profile`. Of kinds that no view counts duplicates are not looked for.
        """
        counts: Counts = Counter()
        if events.is_empty():
            return counts
        in_time = self._judge(events, counts)
        chosen = in_time.filter(self._counts_somewhere)
        first = self.seen.first_time(chosen["ts"].to_numpy(), hash_ids(chosen["event_id"]))
        counts["duplicate"] += int(np.count_nonzero(~first))
        counts["deferred"] += int((in_time["event_type"] == "retract").sum())
        fresh = chosen.filter(pl.Series(first))
        if fresh.height:
            self._pending.append(self._with_profiles(fresh, counts))
        return counts

    def take_profiles(self, profiles: pl.DataFrame) -> Counts:
        """Take versions of profiles (PROFILE_SCHEMA). Those older than events already taken change nothing of these."""
        self._profiles.take(profiles)
        late = 0 if self.watermark_ms is None else int((profiles["ts"] < self.watermark_ms).sum())
        return Counter(profile=profiles.height, late_profile=late)

    def advance(self, *, watermark_ms: int) -> None:
        """Event time has come to `watermark_ms`."""
        self._raise_mark(watermark_ms)

    def pending(self) -> int:
        """Events that no tile row was written for."""
        return sum(frame.height for frame in self._pending)

    def tiles(self) -> dict[str, pl.DataFrame]:
        """View name → rows (TILE_SCHEMA) of the events since the last `settle`, without what no window reaches."""
        if not self._pending:
            return {}
        events = pl.concat(self._pending)
        rows = {view.name: compute(view, events, tile_ms=self._definitions.tile_ms) for view in self._definitions.views}
        kept_from_ms = self._kept_from_ms()
        if kept_from_ms is None:
            return rows
        return {name: frame.filter(pl.col("tile_start_ms") >= kept_from_ms) for name, frame in rows.items()}

    def settle(self) -> None:
        """The rows of `tiles` and the hashes of `seen` are durable."""
        self._pending = []
        self.seen.settle()

    def forgettable_to_ms(self) -> int | None:
        """The last minute whose events would all be beyond the horizon now."""
        if self.watermark_ms is None:
            return None
        return (self.watermark_ms - self._definitions.horizon_ms) // MINUTE_MS * MINUTE_MS - MINUTE_MS

    def forget(self) -> None:
        """Drop the hashes of those minutes."""
        to_ms = self.forgettable_to_ms()
        if to_ms is not None:
            self.seen.forget(before_ms=to_ms + MINUTE_MS)

    def _judge(self, events: pl.DataFrame, counts: Counts) -> pl.DataFrame:
        """Count the late events and answer those that count, moving the times on."""
        ts = events["ts"].to_numpy()
        start = _LONG_AGO_MS if self.watermark_ms is None else self.watermark_ms
        after = np.maximum.accumulate(np.concatenate([[start], ts - self._disorder_ms]))
        marks = after[:-1]  # of each event, the watermark that those before it made
        late = ts < marks
        beyond = ts < marks - self._definitions.horizon_ms
        counts["late"] += int(np.count_nonzero(late))
        counts["beyond_horizon"] += int(np.count_nonzero(beyond))
        counts["corrected"] += int(np.count_nonzero(late & ~beyond))
        self._raise_mark(int(after[-1]))
        return events.filter(pl.Series(~beyond)) if beyond.any() else events

    def _with_profiles(self, events: pl.DataFrame, counts: Counts) -> pl.DataFrame:
        """The events with PROFILED_SCHEMA's columns, filled in for those that a view asks them of."""
        columns = [*BEHAVIOR_SCHEMA.names(), *PROFILE_FIELDS]
        plain = events.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in PROFILE_FIELDS)
        asked = events.select(self._counts_by_profile.alias("asked")).to_series()
        if not asked.any():
            return plain.select(columns)
        attributed = attribute(events.filter(asked), self._profiles.frame())
        counts["without_profile"] += int(
            attributed.select(pl.all_horizontal(pl.col(name).is_null() for name in PROFILE_FIELDS)).to_series().sum()
        )
        both = pl.concat([plain.filter(~asked).select(columns), attributed.select(columns)])
        return both.match_to_schema(PROFILED_SCHEMA)

    def _kept_from_ms(self) -> int | None:
        return None if self.watermark_ms is None else self.watermark_ms - self._definitions.retention_ms

    def _raise_mark(self, watermark_ms: int) -> None:
        if self.watermark_ms is None or watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms
