"""The sample store as its one writer sees it: the sample task's partition, inside the transaction of a commit."""

from __future__ import annotations

import json
from typing import Protocol

import polars as pl

from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.samples.columns import (
    HELD_SCHEMA,
    KEY,
    KNOWN_SCHEMA,
    MISS_SCHEMA,
    OUTCOME_SCHEMA,
    REQUEST_SCHEMA,
    REVISION_SCHEMA,
    empty,
    within,
    without,
)
from rtrec_ray.samples.settlement import Answers, Place, Questions, Restored, Settled
from rtrec_ray.stores.samples import MemorySampleStore


class SampleLedger(Protocol):
    """One partition's way into the store. Like the stitcher it is thrown away when a commit fails."""

    def restore(self, cursor: Cursor, *, applied_to: int) -> Restored:
        """What a new owner begins with; impressions below `applied_to` were taken before."""
        ...

    def answer(self, cursor: Cursor, questions: Questions) -> Answers:
        """Look up what a commit depends on."""
        ...

    def write(self, cursor: Cursor, settled: Settled) -> pl.DataFrame:
        """Write a commit's outputs.

        Answers the newest revisions (n, OUTCOME_SCHEMA) of the samples that were in the store before: these are not
        written.
        """
        ...

    def correct(self, cursor: Cursor, corrections: pl.DataFrame) -> None:
        """Append a revision with label 1 after each of these revisions (n, OUTCOME_SCHEMA)."""
        ...

    def remember(self, cursor: Cursor, place: Place, *, read_to: int) -> None:
        """End the commit: where a new owner begins; behaviour was read up to `read_to`, exclusive."""
        ...


class MemorySamples:
    """All that the store keeps, in memory; what is read goes through `store`."""

    def __init__(self) -> None:
        self.store = MemorySampleStore()
        self.requests = empty(REQUEST_SCHEMA)
        self.outcomes = empty(OUTCOME_SCHEMA)
        self.rows = empty(REVISION_SCHEMA)
        self.misses = empty(MISS_SCHEMA)
        self.held: dict[int, pl.DataFrame] = {}
        self.places: dict[int, Place] = {}
        self.settled: dict[int, pl.Series] = {}


class MemorySampleLedger:
    """The twin of the PostgreSQL ledger. It has no transactions: what is written is committed."""

    def __init__(self, samples: MemorySamples, *, partition: int) -> None:
        self._samples = samples
        self._partition = partition

    def restore(self, cursor: Cursor | None, *, applied_to: int) -> Restored:
        """See SampleLedger."""
        kept = self._samples
        return Restored(
            place=kept.places.get(self._partition, Place(replay_from=applied_to)),
            applied_to=applied_to,
            settled_offsets=kept.settled.get(self._partition, pl.Series(dtype=pl.Int64)),
            held=kept.held.get(self._partition, empty(HELD_SCHEMA)),
            has_misses=not kept.misses.is_empty(),
        )

    def answer(self, cursor: Cursor | None, questions: Questions) -> Answers:
        """See SampleLedger."""
        kept = self._samples
        return Answers(
            requests=_of_ids(kept.requests, questions.requests).select(KNOWN_SCHEMA.names()),
            outcomes=within(kept.outcomes, questions.clicks),
            misses=_of_ids(kept.misses, questions.missed),
        )

    def write(self, cursor: Cursor | None, settled: Settled) -> pl.DataFrame:
        """See SampleLedger."""
        kept = self._samples
        kept.requests = _upsert(settled.requests, kept.requests, ["request_id"])
        existing = within(kept.outcomes, settled.samples)
        offsets = [settled.samples["source_offset"], settled.misses["source_offset"]]
        before = kept.settled.get(self._partition, offsets[0].clear())
        kept.settled[self._partition] = pl.concat([before, *offsets])
        self._append(without(settled.samples, existing))
        self.correct(cursor, settled.corrections)
        kept.misses = without(_upsert(kept.misses, settled.misses, KEY), settled.completed)
        held = without(kept.held.get(self._partition, empty(HELD_SCHEMA)), settled.held_drop)
        stored = settled.held_put.with_columns(stored=pl.lit(True))
        kept.held[self._partition] = _upsert(held, stored, KEY)
        kept.store.misses = {"no_inference_record": kept.misses.height} if kept.misses.height else {}
        kept.store.held = sum(frame.height for frame in kept.held.values())
        return existing

    def remember(self, cursor: Cursor | None, place: Place, *, read_to: int) -> None:
        """See SampleLedger."""
        self._samples.places[self._partition] = place

    def correct(self, cursor: Cursor | None, corrections: pl.DataFrame) -> None:
        """See SampleLedger."""
        if corrections.is_empty():
            return
        changed = corrections.with_columns(pl.col("revision") + 1, label=pl.lit(1, dtype=pl.Int64))
        self._samples.outcomes = _upsert(self._samples.outcomes, changed, KEY)
        rows = within(self._samples.rows, changed).drop("label", "labels")
        revised = rows.join(changed.select(*KEY, "revision", "label"), on=KEY, how="left", maintain_order="left")
        self._publish(revised.with_columns(labels=pl.lit('{"click":1}'), old_label=pl.lit(0)))

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


def _of_ids(frame: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    return frame.filter(pl.col("request_id").is_in(ids.implode()))


def _upsert(kept: pl.DataFrame, newer: pl.DataFrame, key: list[str] | tuple[str, ...]) -> pl.DataFrame:
    return pl.concat([without(kept, newer, key), newer])
