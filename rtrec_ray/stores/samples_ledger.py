"""The sample store as its one writer sees it: the sample task's partition, inside the transaction of a commit."""

from __future__ import annotations

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
)
from rtrec_ray.samples.settlement import Answers, Questions, Restored, Settled
from rtrec_ray.stores.samples import MemorySampleStore


class SampleLedger(Protocol):
    """One partition's way into the store. Like the stitcher it is thrown away when a commit fails."""

    def restore(self, cursor: Cursor, *, applied_to: int) -> Restored:
        """What a new owner begins with; impressions below `applied_to` were taken before."""
        ...

    def answer(self, cursor: Cursor, questions: Questions) -> Answers:
        """Look up what a commit depends on."""
        ...

    def write(self, cursor: Cursor, settled: Settled, *, read_to: int) -> pl.DataFrame:
        """Write a commit's outputs; behaviour was read up to `read_to`, exclusive.

        Answers the newest revisions (n, OUTCOME_SCHEMA) of the samples that were in the store before: these are not
        written.
        """
        ...

    def correct(self, cursor: Cursor, corrections: pl.DataFrame) -> None:
        """Append a revision with label 1 after each of these revisions (n, OUTCOME_SCHEMA)."""
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
        self.replay_from: dict[int, int] = {}


class MemorySampleLedger:
    """The twin of the PostgreSQL ledger. It has no transactions: what is written is committed."""

    def __init__(self, samples: MemorySamples, *, partition: int) -> None:
        self._samples = samples
        self._partition = partition

    def restore(self, cursor: Cursor | None, *, applied_to: int) -> Restored:
        """See SampleLedger."""
        kept = self._samples
        return Restored(
            replay_from=kept.replay_from.get(self._partition, applied_to),
            applied_to=applied_to,
            settled_offsets=pl.concat([kept.rows["source_offset"], kept.misses["source_offset"]]),
            held=kept.held.get(self._partition, empty(HELD_SCHEMA)),
            has_misses=not kept.misses.is_empty(),
        )

    def answer(self, cursor: Cursor | None, questions: Questions) -> Answers:
        """See SampleLedger."""
        kept = self._samples
        return Answers(
            requests=_of_ids(kept.requests, questions.requests).select(KNOWN_SCHEMA.names()),
            outcomes=kept.outcomes.join(questions.clicks, on=KEY, how="semi"),
            misses=_of_ids(kept.misses, questions.missed),
        )

    def write(self, cursor: Cursor | None, settled: Settled, *, read_to: int) -> pl.DataFrame:
        """See SampleLedger."""
        kept = self._samples
        kept.requests = _upsert(settled.requests, kept.requests, ["request_id"])
        existing = kept.outcomes.join(settled.samples, on=KEY, how="semi")
        self._append(settled.samples.join(existing, on=KEY, how="anti"))
        self.correct(cursor, settled.corrections)
        kept.misses = _upsert(kept.misses, settled.misses, KEY).join(settled.completed, on=KEY, how="anti")
        held = kept.held.get(self._partition, empty(HELD_SCHEMA)).join(settled.held_drop, on=KEY, how="anti")
        stored = settled.held_put.with_columns(stored=pl.lit(True))
        kept.held[self._partition] = _upsert(held, stored, KEY)
        kept.replay_from[self._partition] = settled.replay_from
        return existing

    def correct(self, cursor: Cursor | None, corrections: pl.DataFrame) -> None:
        """See SampleLedger."""
        if corrections.is_empty():
            return
        changed = corrections.with_columns(pl.col("revision") + 1, label=pl.lit(1, dtype=pl.Int64))
        self._samples.outcomes = _upsert(self._samples.outcomes, changed, KEY)
        rows = self._samples.rows.join(changed, on=KEY, how="semi", maintain_order="left").drop("label", "labels")
        revised = rows.join(changed.select(*KEY, "revision", "label"), on=KEY, how="left", maintain_order="left")
        self._publish(revised.with_columns(labels=pl.lit('{"click":1}'), old_label=pl.lit(0)))

    def _append(self, rows: pl.DataFrame) -> None:
        kept = self._samples
        ordered = rows.sort("event_time_ms", *KEY)
        first = ordered.with_columns(revision=pl.lit(0, dtype=pl.Int64))
        kept.rows = pl.concat([kept.rows, ordered])
        kept.outcomes = pl.concat([kept.outcomes, first.select(OUTCOME_SCHEMA.names())])
        self._publish(first)

    def _publish(self, revisions: pl.DataFrame) -> None:
        asked = self._samples.requests.select("request_id", "model_version", "features", pl.col("arm").alias("its_arm"))
        full = revisions.join(asked, on="request_id", how="left", maintain_order="left")
        self._samples.store.append(full.with_columns(arm=pl.coalesce("arm", "its_arm")))


def _of_ids(frame: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    return frame.filter(pl.col("request_id").is_in(ids.implode()))


def _upsert(kept: pl.DataFrame, newer: pl.DataFrame, key: list[str] | tuple[str, ...]) -> pl.DataFrame:
    return pl.concat([kept.join(newer, on=key, how="anti"), newer])
