"""Actions that wait: for their impression, or for its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import polars as pl

from rtrec_ray.samples.columns import ACTION_SCHEMA, HELD_SCHEMA, KEY, empty, within, without

ID = (*KEY, "action_id")


def once(actions: pl.DataFrame) -> pl.DataFrame:
    """Each action once (m, the same columns), taken back if any row of it is, whatever the order they come in.

    >>> both = [("r", 1, 5, "click", 9, None, back) for back in (True, False)]
    >>> rows = pl.DataFrame(both, ACTION_SCHEMA, orient="row")
    >>> once(rows)["taken_back"].to_list()
    [True]
    """
    if actions.height < 2:
        return actions
    first = actions.unique(ID, keep="first", maintain_order=True)
    back = actions.filter("taken_back")
    if first.height == actions.height or back.is_empty():
        return first
    back = back.select(ID).unique().with_columns(back=pl.lit(True))
    marked = first.join(back, on=ID, how="left", maintain_order="left")
    return marked.with_columns(taken_back=pl.col("taken_back") | pl.col("back").fill_null(False)).drop("back")


def _none() -> pl.DataFrame:
    return empty(ACTION_SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionChanges:
    """What the store is to learn. `put` (n, HELD_SCHEMA): new rows; `taken_back`: known ones that were taken back;
    `released`: held ones whose impression has an outcome; `dropped`: held ones that are given up.
    """

    put: pl.DataFrame = field(default_factory=partial(empty, HELD_SCHEMA))
    taken_back: pl.DataFrame = field(default_factory=_none)
    released: pl.DataFrame = field(default_factory=_none)
    dropped: pl.DataFrame = field(default_factory=_none)

    def dropping(self, dropped: pl.DataFrame) -> ActionChanges:
        """The same, and these are given up."""
        return replace(self, dropped=dropped)


class WaitingActions:
    """The actions on keys without an outcome, and what the store has yet to learn of all that came.

    An action that is committed is never read again, so each one is a row, marked as held for as long as it waits.
    While `most` wait in memory, further ones whose impression is not known are left to the store.
    """

    def __init__(self, stored: pl.DataFrame, *, most: int) -> None:
        self._frame = stored.select(HELD_SCHEMA.names())
        self._arrived = empty(ACTION_SCHEMA)
        self._most = most

    @property
    def beyond(self) -> int:
        """How many wait in memory beyond `most`: those of impressions without an outcome."""
        return max(0, self._frame.height - self._most)

    @property
    def frame(self) -> pl.DataFrame:
        """Those that wait and, until `settle`, those that came since: (n, ACTION_SCHEMA), each once."""
        return once(pl.concat([self._frame.select(ACTION_SCHEMA.names()), self._arrived]))

    def take(self, actions: pl.DataFrame) -> pl.DataFrame:
        """(n, ACTION_SCHEMA) that came; answers them, each once."""
        self._arrived = once(actions)
        return self._arrived

    def load(self, spilled: pl.DataFrame) -> None:
        """Take back (n, HELD_SCHEMA) what the store alone had: its impression has come."""
        if not spilled.is_empty():
            self._frame = pl.concat([self._frame, without(spilled, self._frame, ID).select(HELD_SCHEMA.names())])

    def settle(
        self,
        *,
        known: pl.DataFrame,
        held: pl.DataFrame,
        settled: pl.DataFrame,
        opened: pl.DataFrame,
        expires_ms: pl.Expr,
    ) -> ActionChanges:
        """After the decisions of a commit. `known`: rows that the store answered; `held`: those that it, or
        another partition, has held and need it no more; `settled`: keys with an outcome; `opened`: impressions that
        are known and have none yet.
        """
        fresh = without(without(self._arrived, self._frame, ID), known, ID)
        back = self._arrived.filter("taken_back")
        back = without(back, fresh, ID) if not fresh.is_empty() else back
        waits = without(fresh, settled).with_columns(held=pl.lit(True), expires_ms=expires_ms, spilled=pl.lit(False))
        rests = within(fresh, settled).with_columns(
            held=pl.lit(False), expires_ms=pl.lit(None, dtype=pl.Int64), spilled=pl.lit(False)
        )
        released = within(self._frame, settled)
        stays = without(self._frame, settled)
        marked = once(pl.concat([stays.select(ACTION_SCHEMA.names()), back]))
        if not back.is_empty() and not stays.is_empty():
            stays = stays.drop("taken_back").join(
                marked.select(*ID, "taken_back"), on=ID, how="left", maintain_order="left"
            )
        waits = self._spill(waits.select(HELD_SCHEMA.names()), opened, room=self._most - stays.height)
        self._frame = pl.concat([stays.select(HELD_SCHEMA.names()), waits.filter(~pl.col("spilled"))])
        self._arrived = empty(ACTION_SCHEMA)
        return ActionChanges(
            put=pl.concat([waits, rests.select(HELD_SCHEMA.names())]),
            taken_back=back,
            released=pl.concat([released.select(ACTION_SCHEMA.names()), held]),
        )

    def _spill(self, waits: pl.DataFrame, opened: pl.DataFrame, *, room: int) -> pl.DataFrame:
        """Mark those for which there is no room in memory; who waits for an outcome that is due has it always."""
        if waits.height <= room:
            return waits
        known = within(waits, opened)
        strays = without(waits, opened)
        over = pl.int_range(pl.len()) >= max(0, room - known.height)
        return pl.concat([known, strays.with_columns(spilled=over)])

    def expire(self, *, watermark_ms: int, but: pl.DataFrame) -> pl.DataFrame:
        """Drop those whose time is over, `but` those of these keys, and answer them (n, ACTION_SCHEMA)."""
        over = without(self._frame.filter(pl.col("expires_ms") <= watermark_ms), but)
        if not over.is_empty():
            self._frame = without(self._frame, over, ID)
        return over.select(ACTION_SCHEMA.names())
