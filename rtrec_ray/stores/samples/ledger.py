"""The sample store as its one writer sees it: the sample task's partition, inside the transaction of a commit."""

from __future__ import annotations

import json
from collections import Counter
from typing import Protocol

import polars as pl

from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.samples.actions import ID, once
from rtrec_ray.samples.columns import (
    ACTION_SCHEMA,
    HELD_SCHEMA,
    IMPRESSION_SCHEMA,
    KEY,
    KNOWN_SCHEMA,
    OUT_SCHEMA,
    OUTCOME_SCHEMA,
    REQUEST_SCHEMA,
    REVISION_SCHEMA,
    empty,
    within,
    without,
)
from rtrec_ray.samples.settlement import Answers, Existing, Place, Questions, Restored, Settled
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.samples.timeline import Timeline
from rtrec_ray.stores.samples.store import MemorySampleStore

MINUTE_MS = 60_000
# A log of last year before today's traffic makes a step of half a million minutes: no rule wants to hear each of them.
MOST_MINUTES = 1_440


class SampleLedger(Protocol):
    """One partition's way into the store. Like the stitcher it is thrown away when a commit fails."""

    def timeline(self, cursor: Cursor) -> Timeline | None:
        """The definitions that hold; none is applied until the transaction ends. None: none was applied ever."""
        ...

    def restore(self, cursor: Cursor, *, applied_to: int) -> Restored:
        """What a new owner begins with; impressions below `applied_to` were taken before."""
        ...

    def load(self, cursor: Cursor, keys: pl.DataFrame) -> pl.DataFrame:
        """Spilled actions on these impressions (n, HELD_SCHEMA), which are spilled no longer."""
        ...

    def answer(self, cursor: Cursor, questions: Questions) -> Answers:
        """Look up what a commit depends on."""
        ...

    def write(self, cursor: Cursor, settled: Settled) -> Existing:
        """Write a commit's outputs; answers what was in the store before and is not written."""
        ...

    def correct(self, cursor: Cursor, corrections: pl.DataFrame) -> None:
        """Append to each of these revisions (n, OUTCOME_SCHEMA) one with their label and labels."""
        ...

    def expire(self, cursor: Cursor, *, watermark_ms: int) -> int:
        """Give up spilled actions that `watermark_ms` has come to be over for, some at a time; answers how many."""
        ...

    def remember(self, cursor: Cursor, place: Place, *, read_to: int) -> None:
        """End the commit: where a new owner begins; behaviour was read up to `read_to`, exclusive."""
        ...

    def complete(self, cursor: Cursor, *, first_ms: int | None, complete_ms: int | None) -> list[int]:
        """All impressions of the partition up to `complete_ms` have their outcome; `first_ms`: of its first event.

        Answers the minutes (ms UTC) up to which the whole store has come to be complete, ascending, each once ever;
        of a step of more than MOST_MINUTES the last ones, which the others follow from.
        """
        ...


def settle(ledger: SampleLedger, cursor: Cursor, stitcher: Stitcher, *, read_to: int) -> Counter[str]:
    """One commit: what the stitcher decides is written. Answers counts."""
    timeline = ledger.timeline(cursor)
    if timeline is not None:
        stitcher.redefine(timeline)
    stitcher.load(ledger.load(cursor, stitcher.admit()))
    settled = stitcher.settle(ledger.answer(cursor, stitcher.ask()))
    counts = Counter(settled.counts)
    existing = ledger.write(cursor, settled)
    if existing:
        # What came for a repetition was done with the impression that was there before, drawn as the repetition may be.
        acted = pl.concat([existing.samples.select(KEY), existing.out.select(KEY)])
        answers = ledger.answer(cursor, Questions(acted=acted))
        amended = stitcher.amend(existing, answers)
        ledger.correct(cursor, amended.corrections)
        counts.update(amended.counts)
    if stitcher.spilled_until_ms is not None:
        counts["expired"] += ledger.expire(cursor, watermark_ms=stitcher.spilled_until_ms)
    ledger.remember(cursor, stitcher.place(), read_to=read_to)
    return counts


class MemorySamples:
    """All that the store keeps, in memory; what is read goes through `store`."""

    def __init__(self) -> None:
        self.store = MemorySampleStore()
        self.timeline: Timeline | None = None
        self.requests = empty(REQUEST_SCHEMA)
        self.outcomes = empty(OUTCOME_SCHEMA)
        self.rows = empty(REVISION_SCHEMA)
        self.out = empty(OUT_SCHEMA)
        self.misses = empty(IMPRESSION_SCHEMA)
        self.actions = empty(HELD_SCHEMA)
        self.held_by: dict[tuple[str, int, int], int] = {}
        self.shown_in: dict[tuple[str, int], int] = {}  # impressions that were missed or not drawn → partition
        self.places: dict[int, Place] = {}
        self.settled: dict[int, pl.Series] = {}
        self.complete: dict[int, tuple[int | None, int | None]] = {}
        self.complete_ms: int | None = None


class MemorySampleLedger:
    """The twin of the PostgreSQL ledger. It has no transactions: what is written is committed."""

    def __init__(self, samples: MemorySamples, *, partition: int) -> None:
        self._samples = samples
        self._partition = partition

    def timeline(self, cursor: Cursor | None) -> Timeline | None:
        """See SampleLedger."""
        return self._samples.timeline

    def restore(self, cursor: Cursor | None, *, applied_to: int) -> Restored:
        """See SampleLedger."""
        kept = self._samples
        kept.complete.setdefault(self._partition, (None, None))
        return Restored(
            place=kept.places.get(self._partition, Place(replay_from=applied_to)),
            applied_to=applied_to,
            settled_offsets=kept.settled.get(self._partition, pl.Series(dtype=pl.Int64)),
            held=self._own_held().filter(~pl.col("spilled")),
            has_spilled=bool(self._own_held()["spilled"].any()),
        )

    def load(self, cursor: Cursor | None, keys: pl.DataFrame) -> pl.DataFrame:
        """See SampleLedger."""
        loaded = within(self._own_held().filter("spilled"), keys).with_columns(spilled=pl.lit(False))
        self._samples.actions = _upsert(self._samples.actions, loaded, ID)
        return loaded

    def answer(self, cursor: Cursor | None, questions: Questions) -> Answers:
        """See SampleLedger."""
        kept = self._samples
        misses = _of_ids(kept.misses, questions.missed)
        asked = pl.concat([questions.acted, questions.drawn])
        out = within(kept.out, asked).select(IMPRESSION_SCHEMA.names())
        wanted = pl.concat([questions.acted, misses.select(KEY), out.select(KEY)]).unique()
        due = questions.due if len(kept.complete) > 1 else questions.due.clear()  # keys may lie in two partitions
        return Answers(
            requests=_of_ids(kept.requests, pl.concat([questions.requests, out["request_id"]])).select(
                KNOWN_SCHEMA.names()
            ),
            outcomes=within(kept.outcomes, questions.acted),
            misses=self._own_offsets(misses),
            out=self._own_offsets(out),
            actions=within(kept.actions, wanted).select(ACTION_SCHEMA.names()),
            held=within(kept.actions.filter("held"), due).select(ACTION_SCHEMA.names()),
        )

    def write(self, cursor: Cursor | None, settled: Settled) -> Existing:
        """See SampleLedger."""
        kept = self._samples
        kept.requests = _upsert(settled.requests, kept.requests, ["request_id"])
        for key in pl.concat([frame.select(KEY) for frame in (settled.misses, settled.out)]).iter_rows():
            kept.shown_in.setdefault(key, self._partition)
        kept.out = without(kept.out, settled.revived)
        existing = Existing(
            samples=within(kept.outcomes, settled.samples),
            out=within(settled.out, pl.concat([kept.outcomes.select(KEY), kept.out.select(KEY)])).select(KEY),
        )
        offsets = [frame["source_offset"] for frame in (settled.samples, settled.out, settled.misses)]
        before = kept.settled.get(self._partition, offsets[0].clear())
        kept.settled[self._partition] = pl.concat([before, *offsets])
        self._append(without(settled.samples, existing.samples))
        kept.out = pl.concat([kept.out, without(settled.out, existing.out)])
        self.correct(cursor, settled.corrections)
        kept.misses = without(pl.concat([kept.misses, settled.misses]), settled.completed)
        self._put_actions(settled)
        kept.store.misses = {"no_inference_record": kept.misses.height} if kept.misses.height else {}
        kept.store.held = int(kept.actions["held"].sum())
        kept.store.sampled_out = kept.out.height
        return existing

    def expire(self, cursor: Cursor | None, *, watermark_ms: int) -> int:
        """See SampleLedger."""
        kept = self._samples
        over = self._own_held().filter(pl.col("spilled") & (pl.col("expires_ms") <= watermark_ms))
        kept.actions = without(kept.actions, over, ID)
        kept.store.held -= over.height
        return over.height

    def remember(self, cursor: Cursor | None, place: Place, *, read_to: int) -> None:
        """See SampleLedger."""
        self._samples.places[self._partition] = place

    def correct(self, cursor: Cursor | None, corrections: pl.DataFrame) -> None:
        """See SampleLedger."""
        if corrections.is_empty():
            return
        old = within(self._samples.outcomes, corrections).select(*KEY, pl.col("label").alias("old_label"))
        changed = corrections.with_columns(pl.col("revision") + 1)
        self._samples.outcomes = _upsert(self._samples.outcomes, changed, KEY)
        rows = within(self._samples.rows, changed).drop("label", "labels")
        new = changed.select(*KEY, "revision", "label", "labels").join(old, on=KEY)
        self._publish(rows.join(new, on=KEY, how="left", maintain_order="left"))

    def complete(self, cursor: Cursor | None, *, first_ms: int | None, complete_ms: int | None) -> list[int]:
        """See SampleLedger."""
        kept = self._samples
        known = kept.complete[self._partition][0]
        kept.complete[self._partition] = (first_ms if known is None else known, complete_ms)
        minutes = complete_minutes(list(kept.complete.values()), sent_ms=kept.complete_ms)
        kept.complete_ms = minutes[-1] if minutes else kept.complete_ms
        return list(minutes)

    def _own_held(self) -> pl.DataFrame:
        kept = self._samples
        mine = [kept.held_by[row] == self._partition for row in kept.actions.select(ID).iter_rows()]
        return kept.actions.filter(pl.col("held") & pl.Series(mine, dtype=pl.Boolean))

    def _own_offsets(self, impressions: pl.DataFrame) -> pl.DataFrame:
        shown_in = self._samples.shown_in
        mine = [shown_in[key] == self._partition for key in impressions.select(KEY).iter_rows()]
        return impressions.with_columns(source_offset=pl.when(pl.Series(mine, dtype=pl.Boolean)).then("source_offset"))

    def _put_actions(self, settled: Settled) -> None:
        kept, changes = self._samples, settled.actions
        new = without(changes.put, kept.actions, ID)
        kept.held_by |= dict.fromkeys(new.select(ID).iter_rows(), self._partition)
        rows = without(pl.concat([kept.actions, new]), changes.dropped, ID)
        gone = pl.concat([changes.taken_back, changes.put.filter("taken_back").select(ACTION_SCHEMA.names())])
        back = within(rows, gone, ID).with_columns(taken_back=pl.lit(True))
        rows = _upsert(rows, back, ID)
        free = within(rows, changes.released, ID).with_columns(held=pl.lit(False))
        kept.actions = _upsert(rows, free, ID)
        assert once(kept.actions).height == kept.actions.height, "an action is stored once"

    def _append(self, rows: pl.DataFrame) -> None:
        kept = self._samples
        if rows.is_empty():
            return
        ordered = rows.sort("event_time_ms", *KEY)
        first = ordered.with_columns(revision=pl.lit(0, dtype=pl.Int64))
        kept.rows = pl.concat([kept.rows, ordered])
        kept.outcomes = pl.concat([kept.outcomes, first.select(OUTCOME_SCHEMA.names())])
        self._publish(first)

    def _publish(self, revisions: pl.DataFrame) -> None:
        asked = self._samples.requests.select("request_id", "model_version", "features", pl.col("arm").alias("its_arm"))
        full = revisions.join(asked, on="request_id", how="left", maintain_order="left")
        merged = [
            json.dumps(json.loads(features) | json.loads(own or "{}"))
            for features, own in full.select("features", "item_features").iter_rows()
        ]
        arm = pl.coalesce("arm", "its_arm")
        self._samples.store.append(full.with_columns(arm=arm, features=pl.Series(merged, dtype=pl.String)))


def complete_minutes(partitions: list[tuple[int | None, int | None]], *, sent_ms: int | None) -> range:
    """The minutes (ms UTC) that all partitions have come to be complete up to, beginning after `sent_ms`.

    `partitions`: of each the time of its first event, and up to where it is complete; None where it is not known.
    The first minute of all is the one after the first event. Of more than MOST_MINUTES they are the last ones.

    >>> list(complete_minutes([(59_000, 185_000), (70_000, 130_000)], sent_ms=None))
    [60000, 120000]
    >>> list(complete_minutes([(59_000, 185_000), (70_000, None)], sent_ms=None))
    []
    >>> len(complete_minutes([(0, 10**12)], sent_ms=None)) == MOST_MINUTES
    True
    """
    begun = [first for first, _ in partitions if first is not None]
    known = [end for _, end in partitions if end is not None]
    if not begun or len(known) < len(partitions):
        return range(0)
    start = min(begun) if sent_ms is None else sent_ms
    return range((start // MINUTE_MS + 1) * MINUTE_MS, min(known) + 1, MINUTE_MS)[-MOST_MINUTES:]


def _of_ids(frame: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    return frame.filter(pl.col("request_id").is_in(ids.implode()))


def _upsert(kept: pl.DataFrame, newer: pl.DataFrame, key: list[str] | tuple[str, ...]) -> pl.DataFrame:
    return pl.concat([without(kept, newer, key), newer])
