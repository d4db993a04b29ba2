"""The sample store in PostgreSQL, for its one writer: the sample task's partition."""

from __future__ import annotations

from collections import deque

import polars as pl

from rtrec_ray.postgres import counter
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.copy import copy_frame
from rtrec_ray.samples.actions import ActionChanges
from rtrec_ray.samples.columns import (
    ACTION_SCHEMA,
    HELD_SCHEMA,
    IMPRESSION_SCHEMA,
    KEY,
    KEY_SCHEMA,
    KNOWN_SCHEMA,
    OUTCOME_SCHEMA,
    empty,
    without,
)
from rtrec_ray.samples.settlement import Answers, Existing, Place, Questions, Restored, Settled
from rtrec_ray.samples.timeline import Timeline
from rtrec_ray.stores.samples.ledger import MINUTE_MS, complete_minutes
from rtrec_ray.stores.samples.live import read_timeline
from rtrec_ray.stores.samples.statements import copied, fetch, keys_of, one, rows, sql, stage

_COUNTER = "samples"
_EXPIRED_AT_ONCE = 20_000


class PostgresSampleLedger:
    """Writes one partition's samples, in the transaction of the caller's cursor."""

    def __init__(self, *, partition: int) -> None:
        self._partition = partition
        self._days: set[object] = set()
        # (behaviour read up to, first number taken) of the commits that a replay may meet again.
        self._commits: deque[tuple[int, int]] = deque()
        self._first_seq: int | None = None
        self._timeline: Timeline | None = None
        self._change: int | None = None
        self._mixed = False
        self._has_misses = False
        self._told: tuple[int | None, int | None] = (None, None)

    def timeline(self, cursor: Cursor) -> Timeline | None:
        """See SampleLedger."""
        change, self._mixed = one(cursor, "read_settings")
        if change != self._change:
            self._timeline, self._change = read_timeline(cursor), change
        return self._timeline

    def restore(self, cursor: Cursor, *, applied_to: int) -> Restored:
        """See SampleLedger."""
        key = {"partition": self._partition}
        cursor.execute(sql("ensure_completeness"), {"partitions": [self._partition]})
        replay_from, out_from_seq, repeated = (rows(cursor, "read_replay", key) or [(applied_to, None, [])])[0]
        if out_from_seq is not None:
            self._commits.append((applied_to, out_from_seq))
        where = {**key, "replay_from": replay_from, "out_from_seq": out_from_seq}
        settled = [offset for (offset,) in rows(cursor, "read_settled_offsets", where)]
        self.timeline(cursor)
        self._has_misses = one(cursor, "has_misses", key)[0]
        return Restored(
            place=Place(replay_from=replay_from, repeated_offsets=pl.Series(repeated, dtype=pl.Int64)),
            applied_to=applied_to,
            settled_offsets=pl.Series(settled, dtype=pl.Int64),
            held=fetch(cursor, "read_held", key, HELD_SCHEMA),
            has_spilled=one(cursor, "has_spilled", key)[0],
        )

    def load(self, cursor: Cursor, keys: pl.DataFrame) -> pl.DataFrame:
        """See SampleLedger."""
        return _of_keys(cursor, "load_spilled", keys, HELD_SCHEMA, partition=self._partition)

    def answer(self, cursor: Cursor, questions: Questions) -> Answers:
        """See SampleLedger."""
        if self._mixed:  # an impression and its actions may be in two commits at once: one after the other, then
            counter.take(cursor, _COUNTER, 0)
        misses = self._find_misses(cursor, questions)
        asked = pl.concat([questions.acted, questions.drawn])
        out = _of_keys(cursor, "find_out", asked, IMPRESSION_SCHEMA, partition=self._partition)
        acted = pl.concat([questions.acted, misses.select(KEY), out.select(KEY)]).unique()
        ids = [*questions.requests, *out["request_id"]]
        requests = fetch(cursor, "find_requests", {"request_ids": ids}, KNOWN_SCHEMA) if ids else empty(KNOWN_SCHEMA)
        due = questions.due if self._mixed else questions.due.clear()
        return Answers(
            requests=requests,
            outcomes=_of_keys(cursor, "find_outcomes", questions.acted, OUTCOME_SCHEMA),
            misses=misses,
            out=out,
            actions=_of_keys(cursor, "find_actions", acted, ACTION_SCHEMA),
            held=_of_keys(cursor, "find_held", due, ACTION_SCHEMA),
        )

    def write(self, cursor: Cursor, settled: Settled) -> Existing:
        """See SampleLedger."""
        self._put_requests(cursor, settled.requests)
        self._put_misses(cursor, settled)
        put_actions(cursor, settled.actions, partition=self._partition)
        if not settled.revived.is_empty():
            cursor.execute(sql("drop_out"), keys_of(settled.revived))
        out = self._put_out(cursor, settled.out)
        existing = self._put_samples(cursor, settled.samples)
        self.correct(cursor, settled.corrections)
        return Existing(samples=existing, out=out)

    def correct(self, cursor: Cursor, corrections: pl.DataFrame) -> None:
        """See SampleLedger."""
        if corrections.is_empty():
            return
        cursor.execute(
            sql("correct"),
            {
                **keys_of(corrections),
                "revisions": corrections["revision"].to_list(),
                "days": corrections["event_day"].to_list(),
                "labels": corrections["label"].to_list(),
                "all_labels": corrections["labels"].to_list(),
                "first_seq": counter.take(cursor, _COUNTER, corrections.height),
            },
        )
        cursor.execute(sql("notify"))

    def expire(self, cursor: Cursor, *, watermark_ms: int) -> int:
        """See SampleLedger."""
        cursor.execute(
            sql("expire_spilled"),
            {"partition": self._partition, "watermark_ms": watermark_ms, "most": _EXPIRED_AT_ONCE},
        )
        return int(cursor.rowcount)

    def complete(self, cursor: Cursor, *, first_ms: int | None, complete_ms: int | None) -> list[int]:
        """See SampleLedger."""
        told = (first_ms, complete_ms)
        if told == self._told or complete_ms is None:
            return []
        at = {"partition": self._partition, "first_ms": first_ms, "complete_ms": complete_ms}
        cursor.execute(sql("put_completeness"), at)
        before, self._told = self._told, told
        if before[1] is not None and before[1] // MINUTE_MS == complete_ms // MINUTE_MS and before[0] == first_ms:
            return []
        counter.take(cursor, _COUNTER, 0)  # its lock makes one writer after another look at all partitions
        (sent_ms,) = one(cursor, "read_complete")
        minutes = list(complete_minutes(rows(cursor, "read_completeness"), sent_ms=sent_ms))
        if minutes:
            cursor.execute(sql("put_complete"), {"complete_ms": minutes[-1]})
        return minutes

    def remember(self, cursor: Cursor, place: Place, *, read_to: int) -> None:
        """See SampleLedger."""
        if self._first_seq is not None:
            self._commits.append((read_to, self._first_seq))
            self._first_seq = None
        while self._commits and self._commits[0][0] <= place.replay_from:
            self._commits.popleft()
        at = {
            "partition": self._partition,
            "replay_from": place.replay_from,
            "out_from_seq": self._commits[0][1] if self._commits else None,
            "repeated_offsets": place.repeated_offsets.to_list(),
        }
        cursor.execute(sql("put_replay"), at)

    def _find_misses(self, cursor: Cursor, questions: Questions) -> pl.DataFrame:
        # Most partitions never have any; with several that may, one does not know of those that others write.
        missed = questions.missed.to_list() if self._has_misses or self._mixed else []
        if not missed:
            return empty(IMPRESSION_SCHEMA)
        asked = {"request_ids": missed, "partition": self._partition}
        return fetch(cursor, "find_misses", asked, IMPRESSION_SCHEMA)

    def _put_requests(self, cursor: Cursor, requests: pl.DataFrame) -> None:
        if requests.is_empty():
            return
        self._ensure_days(cursor, requests["event_day"].unique())
        ordered = requests.sort("request_id")
        if not copied(cursor, "samples.requests", ordered):
            cursor.execute(sql("stage_requests"))
            stage(cursor, "staged_requests", ordered)
            cursor.execute(sql("put_staged_requests"))

    def _put_samples(self, cursor: Cursor, samples: pl.DataFrame) -> pl.DataFrame:
        if samples.is_empty():
            return empty(OUTCOME_SCHEMA)
        self._first_seq = counter.take(cursor, _COUNTER, samples.height)
        cursor.execute(sql("notify"))
        numbered = (
            samples.sort("event_time_ms", *KEY)
            .with_columns(commit_seq=self._first_seq + pl.int_range(pl.len(), dtype=pl.Int64))
            .with_columns(source_partition=pl.lit(self._partition))
            .sort(KEY)
        )
        if copied(cursor, "samples.revisions", numbered):
            return empty(OUTCOME_SCHEMA)
        existing = _of_keys(cursor, "find_outcomes", samples, OUTCOME_SCHEMA)
        copy_frame(cursor, "samples.revisions", without(numbered, existing))
        return existing

    def _put_misses(self, cursor: Cursor, settled: Settled) -> None:
        if not settled.misses.is_empty():
            self._has_misses = True
            cursor.execute(sql("stage_misses"))
            stage(cursor, "staged_misses", settled.misses.with_columns(source_partition=pl.lit(self._partition)))
            cursor.execute(sql("put_staged_misses"))
        if not settled.completed.is_empty():
            cursor.execute(sql("drop_misses"), keys_of(settled.completed))

    def _put_out(self, cursor: Cursor, out: pl.DataFrame) -> pl.DataFrame:
        if out.is_empty():
            return empty(KEY_SCHEMA)
        self._ensure_days(cursor, out["event_day"].unique())
        cursor.execute(sql("stage_out"))
        stage(cursor, "staged_out", out.sort(KEY).with_columns(source_partition=pl.lit(self._partition)))
        return fetch(cursor, "put_staged_out", {}, KEY_SCHEMA)

    def _ensure_days(self, cursor: Cursor, days: pl.Series) -> None:
        new = set(days.to_list()) - self._days
        if new:
            counter.take(cursor, _COUNTER, 0)  # only for its lock, which every writer takes and none holds for long
            cursor.execute(sql("ensure_days"), {"days": sorted(new)})
            self._days |= new


def put_actions(cursor: Cursor, changes: ActionChanges, *, partition: int) -> None:
    """Write what the store is to learn of actions."""
    if not changes.put.is_empty():
        ordered = changes.put.sort(KEY).with_columns(source_partition=pl.lit(partition))
        if not copied(cursor, "samples.actions", ordered):
            cursor.execute(sql("stage_actions"))
            stage(cursor, "staged_actions", ordered)
            cursor.execute(sql("put_staged_actions"))
    steps = (("take_back", changes.taken_back), ("release", changes.released), ("give_up", changes.dropped))
    for name, frame in steps:
        if not frame.is_empty():
            cursor.execute(sql(name), {**keys_of(frame), "action_ids": frame["action_id"].to_list()})


def _of_keys(cursor: Cursor, name: str, keys: pl.DataFrame, schema: pl.Schema, **more: object) -> pl.DataFrame:
    if keys.is_empty():
        return empty(schema)
    return fetch(cursor, name, {**keys_of(keys), **more}, schema)
