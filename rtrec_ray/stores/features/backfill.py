"""What a backfill writes: slices of event time, each with its tiles in one transaction, so that one is written once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from rtrec_ray.errors import BackfillImpossible
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.backfill import SLICE_MS, slices, tiles_before
from rtrec_ray.features.definition import NOT_BEGUN_MS, FeatureView
from rtrec_ray.postgres.connection import Cursor, Pool
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.live import LiveViews, read_live
from rtrec_ray.stores.features.past import HistoryPast
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import TaskOutput, profiles_of
from rtrec_ray.stores.progress import read_positions


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillPlan:
    """What is to be done for a view. `view_id`: what stands for it in the tables; if it is dropped and applied again
    under the same name and version, another does. `starts`: partition → first behaviour offset that the stream counts.

    `todo`: starts of slices without their tiles, ms; `done`: how many have them already. `complete_from_ms`: since when
    the view has all events when all is done; `kept_from_ms`: since when tiles are kept.
    """

    view: FeatureView
    view_id: int
    starts: Mapping[int, int]
    todo: tuple[int, ...]
    done: int
    complete_from_ms: int
    kept_from_ms: int


class FeatureBackfill:
    """Fills the tiles of live views out of the history. `past` gives the events."""

    def __init__(self, store: PostgresFeatureStore, *, pool: Pool, past: HistoryPast) -> None:
        self._store = store
        self._pool = pool
        self._past = past
        self._sql = load("rtrec_ray.stores.features", "live.sql")

    def plan(self, name: str, *, from_ms: int | None, to_ms: int | None) -> BackfillPlan:
        """What to do for [from_ms, to_ms) of a view; None is as far back as tiles are kept, and up to where it began.
        Of a stretch that began before, only what is kept: so a run that was killed goes on though time did.

        Raises UnknownView, BackfillImpossible, StoreUnavailable.
        """
        with self._pool.transaction() as cursor:
            live = read_live(cursor)
            view = (self._store if live is None else live).definitions.view(name)
            view_id = 0 if live is None else live.view_ids.get(view.id, 0)
            starts, began_ms = self._begun(cursor, live, view, view_id)
            cursor.execute(load("rtrec_ray.stores.features", "features.sql")["raise_kept_upto"])
            (mark_ms,) = cursor.fetchone() or (None,)
            cursor.execute(self._sql["list_slices"], {"view_id": view_id})
            known = {start for (start,) in cursor.fetchall()}
        kept_from_ms = began_ms if mark_ms is None else mark_ms - self._store.definitions.retention_ms
        first_ms = kept_from_ms if from_ms is None else max(from_ms, kept_from_ms)
        last_ms = began_ms if to_ms is None else min(to_ms, began_ms)
        if to_ms is not None and to_ms <= first_ms:
            raise BackfillImpossible(
                f"there is nothing before {to_ms} to fill from {first_ms} on",
                mend=f"tiles are kept from {kept_from_ms} on; older times are read from the history",
            )
        wanted = list(slices(first_ms, last_ms))
        todo = tuple(start for start in wanted if start not in known)
        upto_end = to_ms is None or to_ms >= began_ms
        complete_ms = wanted[0] if wanted and upto_end else began_ms
        return BackfillPlan(
            view=view,
            view_id=view_id,
            starts=starts,
            todo=todo,
            done=len(wanted) - len(todo),
            complete_from_ms=complete_ms,
            kept_from_ms=kept_from_ms,
        )

    def lacks(self, view_id: str) -> bool:
        """Whether something is left to do for a view ("name@version") that has begun.

        Raises UnknownView, BackfillImpossible, StoreUnavailable.
        """
        plan = self.plan(view_id, from_ms=None, to_ms=None)
        with self._pool.transaction() as cursor:
            live = read_live(cursor)
        since_ms = None if live is None else live.definitions.complete_from_ms.get(view_id)
        # A job that was killed after its last slice has not told readers yet.
        return bool(plan.todo) or (since_ms is not None and plan.complete_from_ms < since_ms)

    def reached(self, plan: BackfillPlan) -> bool:
        """Whether the history has all events before the view began."""
        with self._pool.transaction() as cursor:
            offsets = read_positions(cursor, task="history", topic=BEHAVIOR)
        return all(offsets.get(partition, 0) >= start for partition, start in plan.starts.items())

    def fill(self, plan: BackfillPlan, *, from_ms: int) -> int:
        """Write the tiles of one slice, unless somebody did; answers how many rows. Raises StoreUnavailable."""
        found: defaultdict[int, list[pl.DataFrame]] = defaultdict(list)
        for events in self._past.below(plan.starts, from_ms=from_ms, to_ms=from_ms + SLICE_MS):
            tiles = tiles_before(
                plan.view,
                events,
                profiles_of(self._store, plan.view, events),
                definitions=self._store.definitions,
                starts=plan.starts,
                from_ms=from_ms,
            )
            for partition, rows in tiles.items():
                found[partition].append(rows)
        with self._pool.transaction() as cursor:
            if not _still_live(cursor, plan):
                return 0
            cursor.execute(self._sql["add_slice"], {"view_id": plan.view_id, "from_ms": from_ms})
            if not cursor.rowcount:
                return 0
            outputs = [
                TaskOutput(
                    partition=partition,
                    watermark_ms=None,
                    tiles={plan.view.id: pl.concat(frames)},
                    numbers={plan.view.id: plan.view_id},
                )
                for partition, frames in found.items()
            ]
            return sum(self._store.append_tiles(cursor, output) for output in outputs)

    def complete(self, plan: BackfillPlan) -> int:
        """All slices are written: say so to readers; answers since when the view has all events, ms.

        Raises BackfillImpossible when the view was dropped meanwhile, StoreUnavailable.
        """
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["lock_settings"])  # first, as who drops the view does
            if not _still_live(cursor, plan):
                raise BackfillImpossible(
                    f"{plan.view.id} was dropped while it was filled", mend="`rtrec features list` shows what is live"
                )
            done = {"view_id": plan.view_id, "complete_from_ms": plan.complete_from_ms}
            cursor.execute(self._sql["complete_view"], done)
            if plan.view.cached:
                cursor.execute(self._sql["overtake_lists"], {"view_id": plan.view_id})
            cursor.execute(self._sql["note_change"])
            live = read_live(cursor)
        return plan.complete_from_ms if live is None else live.definitions.complete_from_ms[plan.view.id]

    def _begun(
        self, cursor: Cursor, live: LiveViews | None, view: FeatureView, view_id: int
    ) -> tuple[dict[int, int], int]:
        cursor.execute(self._sql["read_starts"], {"view_id": view_id})
        rows = cursor.fetchall()
        since_ms = None if live is None else live.definitions.complete_from_ms.get(view.id)
        if not rows or (since_ms == NOT_BEGUN_MS):
            raise BackfillImpossible(
                f"{view.id} has not begun in every partition", mend="begin with `rtrec up`, and try again"
            )
        begins = [begin for _, _, begin in rows if begin is not None]
        if not begins:
            raise BackfillImpossible(
                f"{view.id} has had all events from the first one on", mend="nothing is to be done"
            )
        return {partition: offset for partition, offset, _ in rows}, max(begins)


def _still_live(cursor: Cursor, plan: BackfillPlan) -> bool:
    live = read_live(cursor)
    return live is not None and live.view_ids.get(plan.view.id) == plan.view_id
