"""Display ⋈ actions ⋈ inference log: the state machine behind the sample task, for one partition.

Records come in with `on_impressions`, `on_actions`, `on_requests` and event time with `advance`; nothing is decided
then. A commit is steps: `admit` takes the impressions and `load` what waited for them in the store alone; `ask` joins
what came and says which stored rows the decision depends on; `settle` takes these and answers everything that is to be
written. So the outcome of an impression depends on the records and on the store, never on how records were cut into
batches and commits; its labels depend on nothing but the actions on its key.

Every impression ends in one outcome: a sample, `sampled_out` (a negative that was not drawn; a late click makes it a
sample after all), a miss (no record of the inference log came within the wait; a later one completes it), a repetition
of an impression before it, or `unkeyed`.
"""

from __future__ import annotations

from collections import Counter

import polars as pl

from rtrec_ray.samples.actions import ActionChanges, WaitingActions, once
from rtrec_ray.samples.columns import (
    ACTION_SCHEMA,
    IMPRESSION_SCHEMA,
    KEY,
    OPEN_SCHEMA,
    REQUEST_SCHEMA,
    empty,
    gather,
    within,
    without,
)
from rtrec_ray.samples.definition import CLICK, SampleDefinition
from rtrec_ray.samples.labels import with_labels
from rtrec_ray.samples.outcomes import corrected, judged
from rtrec_ray.samples.requests import RequestCache, with_requests
from rtrec_ray.samples.settlement import Answers, Existing, Place, Questions, Restored, Settled
from rtrec_ray.samples.timeline import Timeline


class Stitcher:
    """The open impressions of one partition, the actions that wait for theirs, and the newest requests."""

    def __init__(self, rules: Timeline | SampleDefinition, restored: Restored | None = None) -> None:
        restored = restored or Restored()
        self._timeline = rules if isinstance(rules, Timeline) else Timeline.of(rules)
        self._applied_to = restored.applied_to
        self._open = empty(OPEN_SCHEMA)
        self._waiting = WaitingActions(restored.held, most=self._timeline.newest.cached_actions)
        self._has_spilled = restored.has_spilled
        # A request is asked for until its impressions' wait is over; serving logs it within moments of showing it.
        self._cache = RequestCache(
            keep_ms=2 * self._timeline.longest_wait_ms + 60_000, most=self._timeline.newest.cached_requests
        )
        self._watermark_ms: int | None = None
        self._next_offset = restored.place.replay_from
        self._repeated = restored.place.repeated_offsets
        self._settled = pl.concat([restored.settled_offsets, self._repeated]).implode()
        self._impressions: list[pl.DataFrame] = []
        self._actions: list[pl.DataFrame] = []
        self._requests: list[pl.DataFrame] = []
        self._counts: Counter[str] = Counter()
        self._arrived = empty(ACTION_SCHEMA)
        self._strays = empty(ACTION_SCHEMA)
        self._new_requests = empty(REQUEST_SCHEMA)
        self._due = empty(OPEN_SCHEMA)
        self._written = Settled()

    # --- records in -------------------------------------------------------------------------------------------------

    def on_impressions(self, impressions: pl.DataFrame) -> None:
        """(n, IMPRESSION_SCHEMA), in log order; those taken before an owner's restart that have an outcome are passed
        over.
        """
        before = pl.col("source_offset") < self._applied_to
        unsettled = impressions.filter(~(before & pl.col("source_offset").is_in(self._settled)))
        if not unsettled.is_empty():
            self._impressions.append(unsettled.select(IMPRESSION_SCHEMA.names()))

    def on_actions(self, actions: pl.DataFrame) -> None:
        """(n, ACTION_SCHEMA), of offsets not applied before: a committed action is never read again."""
        if not actions.is_empty():
            self._actions.append(actions.select(ACTION_SCHEMA.names()))

    def on_requests(self, requests: pl.DataFrame) -> None:
        """(n, REQUEST_SCHEMA), in log order."""
        if not requests.is_empty():
            self._requests.append(requests.select(REQUEST_SCHEMA.names()))

    def read_to(self, next_offset: int) -> None:
        """Behaviour was read up to `next_offset`, exclusive."""
        self._next_offset = max(self._next_offset, next_offset)

    def advance(self, *, watermark_ms: int) -> None:
        """Event time has come to `watermark_ms`, never less than before."""
        self._watermark_ms = watermark_ms

    def redefine(self, timeline: Timeline) -> None:
        """Other definitions hold: impressions without an outcome are judged by them."""
        if timeline != self._timeline:
            self._timeline = timeline
            self._open = self._ruled(self._open)

    # --- a commit ---------------------------------------------------------------------------------------------------

    def admit(self) -> pl.DataFrame:
        """Take the impressions that came since the last commit; answers the keys (n, KEY_SCHEMA) of which the store may
        have actions that memory has not.
        """
        opened = self._admit_impressions(gather(self._impressions, IMPRESSION_SCHEMA)).select(KEY)
        return opened if self._has_spilled else opened.clear()

    def load(self, spilled: pl.DataFrame) -> None:
        """Take them (n, HELD_SCHEMA) back: a click among them makes its impression due."""
        self._waiting.load(spilled)

    def ask(self) -> Questions:
        """Join what came since the last commit, and say which stored rows its outcome depends on."""
        came = gather(self._actions, ACTION_SCHEMA)
        self._arrived = self._waiting.take(came)
        self._counts.update(action=came.height, duplicate_action=came.height - self._arrived.height)
        unsettled = self._open.filter(~pl.col("emitted"))
        self._strays = without(self._arrived, unsettled)
        arrived = gather(self._requests, REQUEST_SCHEMA)
        self._new_requests = self._cache.admit(arrived)
        self._counts["duplicate_request"] += arrived.height - self._new_requests.height
        self._due = self._due_of(unsettled)
        unknown = without(self._due, self._cache.of(self._due), "request_id")
        ids = [frame["request_id"] for frame in (self._new_requests, self._strays, unknown)]
        return Questions(
            requests=unknown["request_id"].unique(),
            acted=self._strays.select(KEY).unique(maintain_order=True),
            missed=pl.concat(ids).unique(),
            due=self._due.select(KEY),
            drawn=self._due.select(KEY) if self._timeline.draws else empty(OPEN_SCHEMA).select(KEY),
        )

    def settle(self, answers: Answers) -> Settled:
        """Decide with what the store answered; the caller writes all of it or throws this stitcher away."""
        self._cache.admit(answers.requests)
        actions = once(pl.concat([self._waiting.frame, answers.actions, answers.held]))
        completed = within(answers.misses, self._new_requests, "request_id")
        revived = within(answers.out, actions.filter(pl.col("kind") == CLICK))
        candidates = self._candidates(revived, completed, answers.out)
        found, missing = with_requests(candidates, self._cache.of(candidates))
        samples, out, waiting = judged(with_labels(found, actions, self._timeline), self._timeline)
        out = without(out, revived)  # its click was too late
        missing = without(missing, waiting)
        misses = without(missing.select(IMPRESSION_SCHEMA.names()), answers.misses)
        self._repeat(within(missing, answers.misses))
        settled = pl.concat([frame.select(KEY) for frame in (samples, out, missing)])
        self._close(settled)
        have = [answers.outcomes, answers.misses, answers.out]
        changes = self._place_actions(pl.concat([settled, *(frame.select(KEY) for frame in have)]), answers)
        self._cache.forget(watermark_ms=self._watermark_ms)
        revived = within(revived, samples)
        self._written = Settled(
            requests=self._new_requests,
            samples=samples,
            out=out,
            revived=revived.select(KEY),
            corrections=corrected(answers.outcomes, actions, self._timeline),
            misses=misses,
            completed=completed.select(KEY),
            actions=changes,
            counts=self._counts,
        )
        self._count(self._written)
        self._counts = Counter()
        return self._written

    def amend(self, existing: Existing, answers: Answers) -> Settled:
        """Some of what was just settled was in the store before: its impressions were repeated. It is not written
        again; an action on the repetition is one on the first. `answers`: the outcomes of these samples, their actions.
        """
        samples = within(self._written.samples, existing.samples)
        out = within(self._written.out, existing.out)
        corrections = corrected(answers.outcomes, answers.actions, self._timeline)
        self._open = without(self._open, samples)
        self._repeat(samples)
        self._repeat(out)
        counts = Counter(
            out=corrections.height - samples.height,
            sampled=-samples.height,
            positive=-int(samples["label"].sum()),
            corrected=corrections.height,
            sampled_out=-out.height,
        )
        counts.update(self._counts)
        self._counts = Counter()
        return Settled(corrections=corrections, counts=counts)

    def place(self) -> Place:
        """Where the commit stands, once it is settled and amended."""
        oldest = self._open.filter(~pl.col("emitted"))["source_offset"].min()
        replay_from = min(self._next_offset if oldest is None else int(oldest), self._next_offset)  # type: ignore[arg-type]
        self._repeated = self._repeated.filter(self._repeated >= replay_from)
        return Place(replay_from=replay_from, repeated_offsets=self._repeated)

    @property
    def spilled_until_ms(self) -> int | None:
        """The watermark, where the store alone has actions that it may be over for."""
        return self._watermark_ms if self._has_spilled else None

    @property
    def open_rows(self) -> int:
        """Impressions whose wait is not over, and their actions beyond those that may be in memory anyway: what a
        stalled stream makes grow.
        """
        came = sum(frame.height for frame in (*self._impressions, *self._actions))
        return self._open.height + came + self._waiting.beyond

    @property
    def complete_ms(self) -> int | None:
        """Once settled: impressions up to this event time have their outcome; None before event time is known."""
        return None if self._watermark_ms is None else self._watermark_ms - self._timeline.longest_wait_ms

    # --- the joins --------------------------------------------------------------------------------------------------

    def _admit_impressions(self, impressions: pl.DataFrame) -> pl.DataFrame:
        """Take impressions; answers those that open."""
        if impressions.is_empty():
            return impressions
        first = impressions.unique(KEY, keep="first", maintain_order=True)
        new = without(first, self._open)
        self._repeat(without(impressions, new, "source_offset"))
        self._counts["impression"] += impressions.filter(pl.col("source_offset") >= self._applied_to).height
        self._open = pl.concat([self._open, self._ruled(new.with_columns(emitted=pl.lit(False)))])
        return new

    def _ruled(self, impressions: pl.DataFrame) -> pl.DataFrame:
        wait = self._timeline.value(lambda rules: rules.wait_ms, dtype=pl.Int64)
        return impressions.with_columns(
            over_ms=pl.col("event_time_ms") + wait,
            horizon_ms=self._timeline.value(lambda rules: rules.horizon_ms, dtype=pl.Int64),
            on_click=self._timeline.value(lambda rules: rules.emit == "on_click", dtype=pl.Boolean),
        ).select(OPEN_SCHEMA.names())

    def _due_of(self, unsettled: pl.DataFrame) -> pl.DataFrame:
        counts = (pl.col("kind") == CLICK) & ~pl.col("taken_back")
        clicks = self._waiting.frame.filter(counts)
        due = self._is_over()
        if not clicks.is_empty():
            first = clicks.group_by(KEY).agg(pl.col("action_ms").min())
            clicked = unsettled.filter("on_click").join(first, on=KEY, how="inner")
            clicked = clicked.filter(pl.col("action_ms") - pl.col("event_time_ms") < pl.col("horizon_ms"))
            due = due | pl.col("source_offset").is_in(clicked["source_offset"].implode())
        return unsettled.filter(due)

    def _candidates(self, revived: pl.DataFrame, completed: pl.DataFrame, out: pl.DataFrame) -> pl.DataFrame:
        """Impressions to be judged, each key once: (n, IMPRESSION_SCHEMA + over)."""
        due = self._due.with_columns(over=self._is_over()).select(*IMPRESSION_SCHEMA.names(), "over")
        if not out.is_empty():
            again = within(due, without(out, revived))
            self._repeat(again)
            self._close(again.select(KEY))
            due = without(due, again)
        if revived.is_empty() and completed.is_empty():
            return due
        before = pl.concat([frame.select(IMPRESSION_SCHEMA.names()) for frame in (revived, completed)])
        repeated = within(self._open.filter(~pl.col("emitted")), before)  # due or not: the first one counts
        self._repeat(repeated)
        self._close(repeated.select(KEY))
        return pl.concat([before.with_columns(over=pl.lit(True)), without(due, before)])

    def _place_actions(self, settled: pl.DataFrame, answers: Answers) -> ActionChanges:
        start = pl.max_horizontal("action_ms", pl.lit(self._watermark_ms, dtype=pl.Int64))
        known = answers.actions
        self._counts["duplicate_action"] += within(self._strays.filter(~pl.col("taken_back")), known).height
        # Counted from the watermark where that is ahead: a log that is replayed late finds its actions held as well.
        changes = self._waiting.settle(
            known=known,
            settled=settled,
            expires_ms=start + self._timeline.longest_horizon_ms,
            held=within(answers.held, settled),
            opened=self._open.filter(~pl.col("emitted")),
        )
        spilled = int(changes.put["spilled"].sum())
        self._counts["spilled"] += spilled
        self._has_spilled = self._has_spilled or spilled > 0
        if self._watermark_ms is None:
            return changes
        dropped = self._waiting.expire(watermark_ms=self._watermark_ms, but=self._open.filter(~pl.col("emitted")))
        self._counts["expired"] += dropped.height
        return changes.dropping(dropped)

    def _close(self, settled: pl.DataFrame) -> None:
        """Forget what has its outcome; a positive is remembered until its wait is over, for impressions that repeat."""
        if not settled.is_empty():
            done = settled.with_columns(done=pl.lit(True)).unique(KEY)
            marked = self._open.join(done, on=KEY, how="left", maintain_order="left")
            emitted = pl.col("emitted") | pl.col("done").fill_null(False)
            self._open = marked.with_columns(emitted=emitted).select(OPEN_SCHEMA.names())
        self._open = self._open.filter(~(pl.col("emitted") & self._is_over()))

    def _repeat(self, impressions: pl.DataFrame) -> None:
        """These repeat an impression that has, or will have, an outcome of its own."""
        self._counts["duplicate"] += impressions.height
        self._repeated = pl.concat([self._repeated, impressions["source_offset"]])

    def _is_over(self) -> pl.Expr:
        """The watermark has passed the impression by the wait."""
        return pl.lit(False) if self._watermark_ms is None else pl.col("over_ms") <= self._watermark_ms

    def _count(self, settled: Settled) -> None:
        self._counts.update(
            out=settled.samples.height + settled.corrections.height,
            sampled=settled.samples.height,
            positive=int(settled.samples["label"].sum()),
            sampled_out=settled.out.height - settled.revived.height,
            revived=settled.revived.height,
            corrected=settled.corrections.height,
            missed=settled.misses.height,
            completed=settled.completed.height,
        )
