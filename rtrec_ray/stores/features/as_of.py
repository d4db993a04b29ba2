"""Point-in-time values out of the history, a stretch of time after the other, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from rtrec_ray.events import PROFILE
from rtrec_ray.eventtime.tile import tile_start
from rtrec_ray.features.as_of import as_of, fields_of, schema_of
from rtrec_ray.features.definition import FeatureView
from rtrec_ray.features.seen import MINUTE_MS
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.stores.features.past import HistoryPast
from rtrec_ray.stores.features.store import ProfileSource, profiles_of
from rtrec_ray.stores.history.store import HOUR_MS, rows_by_step
from rtrec_ray.stores.progress import read_positions, read_stages

Progress = Callable[[int, int], None]

SLOT_MS: Final = 600_000
EVENTS: Final = 2_000_000
"""Events of the history that are held at once, about; a slot with its windows may have more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsOfReader:
    """Answers many questions about the past at once. `events`: of the history, in memory at once, about."""

    store: ProfileSource
    past: HistoryPast
    events: int = EVENTS

    def read(self, name: str, rows: pl.DataFrame, *, progress: Progress = lambda done, total: None) -> pl.DataFrame:
        """The rows (n, `key`, `time_ms` and any others) in their order, with the columns of `schema_of(view)`.

        `name`: of a view, or "name@version"; `progress` gets rows (done, total). What the values mean says
        features/as_of.py. The history has an event some seconds after it came. Raises UnknownView, StoreUnavailable.
        """
        view = self.store.definitions.view(name)
        numbered = rows.with_row_index("_row")
        slot = (pl.col("time_ms") // SLOT_MS).alias("_slot")
        timed = numbered.filter(pl.col("time_ms").is_not_null()).with_columns(slot)
        slots = {int(str(name)): part for (name,), part in timed.partition_by("_slot", as_dict=True).items()}
        # A row without a time has no value.
        timeless = numbered.filter(pl.col("time_ms").is_null())
        parts = [timeless.with_columns(pl.lit(None, dtype=kind).alias(name) for name, kind in schema_of(view).items())]
        done = timeless.height
        progress(done, rows.height)
        for portion in self._portions(view, {at: part.drop("_slot") for at, part in slots.items()}):
            parts.append(self._answer(view, portion))
            done += portion.height
            progress(done, rows.height)
        return pl.concat(parts).sort("_row").drop("_row")

    def _answer(self, view: FeatureView, rows: pl.DataFrame) -> pl.DataFrame:
        from_ms, to_ms = self._span(view, _range(rows["time_ms"]))
        events = self.past.until(from_ms=from_ms, to_ms=to_ms, columns=fields_of(view))
        profiles = profiles_of(self.store, view, events)
        return as_of(view, rows, events, profiles, tile_ms=self.store.definitions.tile_ms)

    def _portions(self, view: FeatureView, slots: dict[int, pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Rows of slots that follow one another, as long as there are not too many events behind them."""
        if not slots:
            return
        files = self.past.files(
            from_ms=min(slots) * SLOT_MS - view.window_ms - MINUTE_MS, to_ms=(max(slots) + 1) * SLOT_MS
        )
        rows_of = rows_by_step(files, step_ms=HOUR_MS)
        portion: list[int] = []
        for slot in sorted(slots):
            first = portion[0] if portion else slot
            if portion and self._too_much(rows_of, first * SLOT_MS - view.window_ms, (slot + 1) * SLOT_MS):
                yield pl.concat([slots[each] for each in portion])
                portion = []
            portion.append(slot)
        yield pl.concat([slots[each] for each in portion])

    def _too_much(self, rows_of: Mapping[int, float], from_ms: int, to_ms: int) -> bool:
        # From the first question to the last there may be far more hours than the history has.
        first, last = max(from_ms // HOUR_MS, min(rows_of, default=0)), max(rows_of, default=-1)
        hours = range(first, min((to_ms - 1) // HOUR_MS, last) + 1)
        shares = ((min(to_ms, (hour + 1) * HOUR_MS) - max(from_ms, hour * HOUR_MS)) / HOUR_MS for hour in hours)
        return sum(share * rows_of.get(hour, 0) for hour, share in zip(hours, shares, strict=True)) > self.events

    def _span(self, view: FeatureView, times_ms: tuple[int, int]) -> tuple[int, int]:
        """The event times behind the values as of the first to the last of these: whole minutes at the beginning, for
        within its minute an event is told from its duplicates; at the end just what came before.
        """
        tile_ms = self.store.definitions.tile_ms
        first, last = (tile_start(time_ms, tile_ms=tile_ms) for time_ms in times_ms)
        return (first - view.window_ms) // MINUTE_MS * MINUTE_MS, -(-last // MINUTE_MS) * MINUTE_MS


def _range(times_ms: pl.Series) -> tuple[int, int]:
    values = times_ms.to_numpy()
    return int(values.min()), int(values.max())


def reached_ms(cursor: Cursor, view: FeatureView) -> int | None:
    """Up to where all is there that the view's values are out of, ms of event time; None: nothing is for certain.

    Events are in the history. Profiles are versions that the stage of the features has read: while it has not all of
    those that the history has, nobody knows since when they hold.
    """
    stage = read_stages(cursor).get("history")
    if view.needs_profile:
        written, read = (read_positions(cursor, task=task, topic=PROFILE) for task in ("history", "features"))
        if any(read.get(partition, 0) < offset for partition, offset in written.items()):
            return None
    return None if stage is None else stage.watermark_ms


def unknown_yet(times_ms: Sequence[int] | pl.Series, *, watermark_ms: int | None) -> int:
    """How many of these times lie ahead of what is there for certain (`reached_ms`)."""
    column = pl.Series(times_ms, dtype=pl.Int64)
    return len(column) if watermark_ms is None else int((column > watermark_ms).sum())
