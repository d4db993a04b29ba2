"""The feature stage of one source partition: which events count, and what they add to the tiles.

Lateness is judged record by record, against the largest event time of the records before it, so that the outcome
depends neither on how the log is cut into batches nor on when somebody looked at a clock; only a watermark that went
on while the partition was idle can be ahead of that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA, RETRACT
from rtrec_ray.eventtime.identity import hash_events
from rtrec_ray.eventtime.retract import originals
from rtrec_ray.eventtime.window import LONG_AGO_MS
from rtrec_ray.features.compute import TILE_SCHEMA, Sign, compute_all, concerns_some
from rtrec_ray.features.counted import NAME_SCHEMA, named
from rtrec_ray.features.definition import PROFILE_FIELDS, Definitions, FeatureView
from rtrec_ray.features.profiles import ProfileVersions, attribute
from rtrec_ray.features.seen import MINUTE_MS, Seen

Counts = Counter[str]
Places = npt.NDArray[np.intp]
Marks = TypeVar("Marks", int, npt.NDArray[np.int64])

# Asked of every event, whatever the views are: did it come before, when was it, whose, and what does it take back?
_OF_EVERY_EVENT: Final = frozenset({"event_id", "event_type", "ts", "user_id", "retracts"})
_SIGNS: Final[tuple[Sign, ...]] = (1, -1)
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads minutes over all bits (Knuth, TAOCP 3, 6.4)


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
        seen_from_ms: int | None = None,
    ) -> None:
        self.seen = seen
        self.watermark_ms = watermark_ms
        self._oldest_ms = LONG_AGO_MS if seen_from_ms is None else seen_from_ms
        self._disorder_ms = disorder_ms
        self._profiles = ProfileVersions(profiles, asked_from_ms=self._oldest_ms)
        self._pending: list[pl.DataFrame] = []
        self._taken_back: list[pl.DataFrame] = []
        self._define(definitions)

    def take(self, events: pl.DataFrame) -> Counts:
        """Take events (the `columns` of BEHAVIOR_SCHEMA, or more) in offset order.

        Answers how many were `late`, of these `corrected` and `beyond_horizon`; how many `duplicate` and
        `without_profile`; how many events were to be taken back (`retract`), how many of these were (`retracted`: the
        others have not come yet) and how many are too old for that (`retract_beyond_horizon`). What no view counts is
        remembered all the same: a view that is added later must know it.
        """
        counts: Counts = Counter()
        if events.is_empty():
            return counts
        in_time, marks_ms = self._judge(events.select(self.columns), counts)
        retraction = in_time["event_type"] == RETRACT
        if not retraction.any():
            self._take_in(in_time, counts)
            return +counts
        plain, retractions = in_time.filter(~retraction), in_time.filter(retraction)
        at = retraction.to_numpy()
        carried, places = self._carried(retractions, marks_ms[at], np.flatnonzero(at), counts)
        # The outcome must not depend on where a batch ends, so what was taken back before it came is not counted; the
        # order of all others is the same to them.
        early = pl.Series(_precede(carried, places, plain, np.flatnonzero(~at)))
        self._take_back(carried.filter(early), counts)
        self._take_in(plain, counts)
        self._take_back(carried.filter(~early), counts)
        return +counts

    def take_profiles(self, profiles: pl.DataFrame) -> Counts:
        """Take versions of profiles (PROFILE_SCHEMA). They change nothing of the events already taken.

        `late_profile` counts those behind the watermark. One within the bound on disorder is in time, though an event
        that it would explain may have come before it.
        """
        self._profiles.take(profiles)
        late = 0 if self.watermark_ms is None else int((profiles["ts"] < self.watermark_ms).sum())
        return Counter(profile=profiles.height, late_profile=late)

    def advance(self, *, watermark_ms: int) -> None:
        """Event time has come to `watermark_ms`."""
        self._raise_mark(watermark_ms)

    def pending(self) -> int:
        """Events that no tile row was written for."""
        return sum(frame.height for frame in [*self._pending, *self._taken_back])

    def tiles(self) -> dict[str, pl.DataFrame]:
        """View id → rows (TILE_SCHEMA) of the events since the last `settle`."""
        return tiles_of([self])[0]

    def signed(self, sign: Sign) -> Sequence[pl.DataFrame]:
        """The events since the last `settle` that count, or those whose count is taken back."""
        return self._pending if sign > 0 else self._taken_back

    def match(self) -> Counts:
        """Let what was taken back be what was counted, where the event waits for the same commit; answers how often a
        retraction carried something else (`retract_differs`). Of events of earlier commits no more is known than that
        they came: what their retractions carry is taken away.
        """
        if not (self._pending and self._taken_back):
            return Counter()
        gone = named(pl.concat(self._taken_back))
        # Whole rows are compared only of the few users who took something back.
        counted = named(pl.concat(self._pending).filter(pl.col("user_id").is_in(gone["user_id"].unique().implode())))
        unlike = gone.join(counted, on=[*self.columns, "minute"], how="anti", nulls_equal=True)
        instead = counted.join(unlike, on=NAME_SCHEMA.names(), how="semi")
        believed = gone.join(instead, on=NAME_SCHEMA.names(), how="anti")
        self._taken_back = [frame.drop("minute") for frame in (believed, instead)]
        return Counter(retract_differs=instead.height)

    def settle(self) -> None:
        """The rows of `tiles` and the hashes of `seen` are durable."""
        self._pending, self._taken_back = [], []
        self.seen.settle()

    def redefine(self, definitions: Definitions) -> None:
        """Let other views count from the next event on. Nothing may be pending."""
        self._oldest_ms = max(self._oldest_ms, self.seen_from_ms())
        self._define(definitions)

    def seen_from_ms(self) -> int:
        """Of older events it is not known any more whether they came: they are beyond the horizon."""
        return int(self._oldest_of(LONG_AGO_MS if self.watermark_ms is None else self.watermark_ms))

    def forgettable_to_ms(self) -> int | None:
        """The last minute whose events would all be beyond the horizon now."""
        if self.watermark_ms is None:
            return None
        return (self.watermark_ms - self.definitions.horizon_ms) // MINUTE_MS * MINUTE_MS - MINUTE_MS

    def forget(self) -> None:
        """Drop the hashes of those minutes, and let go of profiles that no event will have any more."""
        self._profiles.forget(before_ms=self.seen_from_ms())
        to_ms = self.forgettable_to_ms()
        if to_ms is not None:
            self.seen.forget(before_ms=to_ms + MINUTE_MS)

    def _define(self, definitions: Definitions) -> None:
        self.definitions = definitions
        asked = {name for view in definitions.views for name in view.fields}
        self.columns = [name for name in BEHAVIOR_SCHEMA if name in asked | _OF_EVERY_EVENT]
        self._counts_somewhere = concerns_some(definitions.views).alias("counts")
        by_profile = [view for view in definitions.views if view.needs_profile]
        self._counts_by_profile = concerns_some(by_profile) if by_profile else None

    def _oldest_of(self, marks_ms: Marks) -> Marks:
        """The oldest event time that still corrects, at each of these watermarks."""
        return np.maximum(marks_ms - self.definitions.horizon_ms, self._oldest_ms)  # type: ignore[no-any-return]

    def _take_in(self, events: pl.DataFrame, counts: Counts) -> None:
        """Count events, none of them a retraction, each once."""
        if events.is_empty():
            return
        ts_ms, ids = events["ts"].to_numpy(), hash_events(events["user_id"], events["event_id"])
        first = self.seen.first_time(ts_ms, ids)
        # Whose retraction came first is not counted at all.
        retracted = first & self.seen.taken_back(ts_ms, ids)
        counts["duplicate"] += int(np.count_nonzero(~first))
        counts["retracted"] += int(np.count_nonzero(retracted))
        fresh = events.filter(pl.Series(first & ~retracted) & events.select(self._counts_somewhere).to_series())
        if fresh.height:
            self._pending.append(self._with_profiles(fresh, counts))
        if retracted.any():  # without a profile or not, as if it had come before its retraction
            self._with_profiles(events.filter(pl.Series(retracted)), counts)

    def _carried(
        self, retractions: pl.DataFrame, marks_ms: npt.NDArray[np.int64], places: Places, counts: Counts
    ) -> tuple[pl.DataFrame, Places]:
        """What retractions at these places of a batch carry, if it is not too old, and its places."""
        carried = originals(retractions).select(self.columns)
        beyond = carried["ts"].to_numpy() < self._oldest_of(marks_ms)
        counts["retract_beyond_horizon"] += int(np.count_nonzero(beyond))
        return carried.filter(pl.Series(~beyond)), places[~beyond]

    def _take_back(self, chosen: pl.DataFrame, counts: Counts) -> None:
        """Take back what retractions carry, each event once; what has not come yet will not count."""
        if chosen.is_empty():
            return
        ts_ms, ids = chosen["ts"].to_numpy(), hash_events(chosen["user_id"], chosen["event_id"])
        anew = self.seen.take_back(ts_ms, ids)
        retracted = anew & self.seen.came(ts_ms, ids)
        counts["duplicate"] += int(np.count_nonzero(~anew))
        counts["retract"] += int(np.count_nonzero(anew))
        counts["retracted"] += int(np.count_nonzero(retracted))
        if retracted.any():  # whether it counts somewhere says the event, not what is carried of it
            self._taken_back.append(self._with_profiles(chosen.filter(pl.Series(retracted)), Counter()))

    def _judge(self, events: pl.DataFrame, counts: Counts) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
        """Count the late events, moving the times on; answer those that count, and the watermark before each."""
        ts = events["ts"].to_numpy()
        start = LONG_AGO_MS if self.watermark_ms is None else self.watermark_ms
        after = np.maximum.accumulate(np.concatenate([[start], ts - self._disorder_ms]))
        marks = after[:-1]  # of each event, the watermark that those before it made
        late = ts < marks
        beyond = ts < self._oldest_of(marks)
        counts["late"] += int(np.count_nonzero(late))
        counts["beyond_horizon"] += int(np.count_nonzero(beyond))
        counts["corrected"] += int(np.count_nonzero(late & ~beyond))
        self._raise_mark(int(after[-1]))
        return (events.filter(pl.Series(~beyond)), marks[~beyond]) if beyond.any() else (events, marks)

    def _with_profiles(self, events: pl.DataFrame, counts: Counts) -> pl.DataFrame:
        """The events with the PROFILE_FIELDS too if a view asks for them, filled in for those that it asks them of."""
        if self._counts_by_profile is None:
            return events
        columns = [*self.columns, *PROFILE_FIELDS]
        plain = events.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in PROFILE_FIELDS)
        asked = events.select(self._counts_by_profile.alias("asked")).to_series()
        if not asked.any():
            return plain.select(columns)
        asking = events.filter(asked)
        attributed = attribute(asking, self._profiles.of(asking["user_id"]))
        counts["without_profile"] += int(
            attributed.select(pl.all_horizontal(pl.col(name).is_null() for name in PROFILE_FIELDS)).to_series().sum()
        )
        return pl.concat([plain.filter(~asked).select(columns), attributed.select(columns)])

    def _raise_mark(self, watermark_ms: int) -> None:
        if self.watermark_ms is None or watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms


def tiles_of(streams: Sequence[FeatureStream]) -> list[dict[str, pl.DataFrame]]:
    """`FeatureStream.tiles` of each of these.

    Computed for all of them at once: however few events there are, Polars takes some 3 ms a view.
    """
    found: list[dict[str, pl.DataFrame]] = [{} for _ in streams]
    alike: defaultdict[tuple[tuple[FeatureView, ...], int], list[int]] = defaultdict(list)
    for index, stream in enumerate(streams):
        if stream.pending():
            found[index] = {view.id: TILE_SCHEMA.to_frame() for view in stream.definitions.views}
            alike[stream.definitions.views, stream.definitions.tile_ms].append(index)
    for (views, tile_ms), indices in alike.items():
        for sign in _SIGNS:
            frames = [
                frame.with_columns(stream=pl.lit(index, dtype=pl.Int32))
                for index in indices
                for frame in streams[index].signed(sign)
            ]
            if frames:
                rows = compute_all(views, pl.concat(frames), tile_ms=tile_ms, sign=sign, apart=["stream"])
                for view_id, of_view in rows.items():
                    for (index,), some in of_view.partition_by("stream", as_dict=True, include_key=False).items():
                        found[index][view_id] = pl.concat([found[index][view_id], some])
    return found


def _precede(
    carried: pl.DataFrame, places: Places, events: pl.DataFrame, event_places: Places
) -> npt.NDArray[np.bool_]:
    """Which of what retractions carry is among the events of the same batch only after the retraction. Both have their
    places in the batch, ascending.
    """
    if carried.is_empty() or events.is_empty():
        return np.zeros(carried.height, dtype=np.bool_)
    names, first = np.unique(_names(events), return_index=True)
    asked = _names(carried)
    at = np.minimum(np.searchsorted(names, asked), len(names) - 1)
    early: npt.NDArray[np.bool_] = (names[at] == asked) & (places < event_places[first[at]])
    return early


def _names(events: pl.DataFrame) -> npt.NDArray[np.uint64]:
    """A number for each event's name: of its user, its minute and its id."""
    minutes = (events["ts"] // MINUTE_MS).to_numpy().astype(np.uint64)
    return hash_events(events["user_id"], events["event_id"]) ^ (minutes * _ODD)
