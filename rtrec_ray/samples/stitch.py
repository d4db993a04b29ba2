"""Display ⋈ click ⋈ inference log: the state machine behind the sample task, for one partition.

Records come in with `on_impressions`, `on_clicks`, `on_requests` and event time with `advance`; nothing is decided
then. A commit is two steps: `ask` joins what came and says which stored rows the decision depends on, `settle` takes
these and answers everything that is to be written. So the outcome of an impression depends on the records and on the
store, never on how records were cut into batches and commits.

Every impression ends in one outcome: a sample, a miss (no record of the inference log came within the wait; a later
one makes it a sample after all), a repetition of an impression before it, or `unkeyed`.
"""

from __future__ import annotations

from collections import Counter

import polars as pl

from rtrec_ray.samples.columns import (
    CLICK_SCHEMA,
    IMPRESSION_SCHEMA,
    KEY,
    MISS_SCHEMA,
    OPEN_SCHEMA,
    OUTCOME_SCHEMA,
    REQUEST_SCHEMA,
    REVISION_SCHEMA,
    empty,
    gather,
    within,
    without,
)
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.held import HeldClicks
from rtrec_ray.samples.requests import RequestCache, ranked_items
from rtrec_ray.samples.settlement import Answers, Place, Questions, Restored, Settled


class Stitcher:
    """The open impressions of one partition, the clicks that wait for theirs, and the newest requests."""

    def __init__(self, definition: SampleDefinition, restored: Restored | None = None) -> None:
        restored = restored or Restored()
        self._rules = definition
        self._applied_to = restored.applied_to
        self._open = empty(OPEN_SCHEMA)
        self._held = HeldClicks(restored.held)
        # A request is asked for until its impressions' wait is over; serving logs it within moments of showing it.
        self._cache = RequestCache(keep_ms=2 * definition.wait_ms + 60_000, most=definition.cached_requests)
        self._has_misses = restored.has_misses
        self._watermark_ms: int | None = None
        self._next_offset = restored.place.replay_from
        self._repeated = restored.place.repeated_offsets
        self._settled = pl.concat([restored.settled_offsets, self._repeated]).implode()
        self._impressions: list[pl.DataFrame] = []
        self._clicks: list[pl.DataFrame] = []
        self._requests: list[pl.DataFrame] = []
        self._counts: Counter[str] = Counter()
        self._stray = empty(CLICK_SCHEMA)
        self._new_requests = empty(REQUEST_SCHEMA)
        self._due = empty(OPEN_SCHEMA)
        self._written = empty(OPEN_SCHEMA)

    # --- records in -------------------------------------------------------------------------------------------------

    def on_impressions(self, impressions: pl.DataFrame) -> None:
        """(n, IMPRESSION_SCHEMA), in log order; those taken before an owner's restart that have an outcome are passed
        over.
        """
        before = pl.col("source_offset") < self._applied_to
        unsettled = impressions.filter(~(before & pl.col("source_offset").is_in(self._settled)))
        if not unsettled.is_empty():
            self._impressions.append(unsettled.select(IMPRESSION_SCHEMA.names()))

    def on_clicks(self, clicks: pl.DataFrame) -> None:
        """(n, CLICK_SCHEMA), of offsets not applied before: a committed click is never read again."""
        if not clicks.is_empty():
            self._clicks.append(clicks.select(CLICK_SCHEMA.names()))

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

    # --- a commit ---------------------------------------------------------------------------------------------------

    def ask(self) -> Questions:
        """Join what came since the last commit, and say which stored rows its outcome depends on."""
        self._admit_impressions(gather(self._impressions, IMPRESSION_SCHEMA))
        self._join_clicks(gather(self._clicks, CLICK_SCHEMA))
        arrived = gather(self._requests, REQUEST_SCHEMA)
        self._new_requests = self._cache.admit(arrived)
        self._counts["duplicate_request"] += arrived.height - self._new_requests.height
        self._due = self._open.filter(self._is_due())
        unknown = without(self._due, self._cache.of(self._due), "request_id")
        ids = [frame["request_id"] for frame in (self._new_requests, self._stray, unknown)]
        return Questions(
            requests=unknown["request_id"].unique(),
            clicks=self._stray,
            missed=(pl.concat(ids) if self._has_misses else ids[0].clear()).unique(),
        )

    def settle(self, answers: Answers) -> Settled:
        """Decide with what the store answered; the caller writes all of it or throws this stitcher away."""
        self._cache.admit(answers.requests)
        completed = within(answers.misses, self._new_requests, "request_id")
        found, missing = self._with_requests(self._due_and_completed(completed))
        samples = self._samples(found)
        corrections, clicked_misses = self._place_strays(answers, completed)
        misses, missed_again = self._misses(missing, answers)
        self._close(pl.concat([found.select(KEY), missing.select(KEY)]))
        held_put, held_drop = self._held.changes()
        self._cache.forget(watermark_ms=self._watermark_ms)
        self._has_misses = self._has_misses or not missing.is_empty()
        self._counts.update(
            out=samples.height + corrections.height,
            sampled=samples.height,
            positive=int(samples["label"].sum()),
            corrected=corrections.height,
            missed=misses.height,
            completed=completed.height,
        )
        counts, self._counts = self._counts, Counter()
        return Settled(
            requests=self._new_requests,
            samples=samples,
            corrections=corrections,
            misses=pl.concat([misses, missed_again, clicked_misses]),
            completed=completed.select(KEY),
            held_put=held_put,
            held_drop=held_drop,
            counts=counts,
        )

    def amend(self, existing: pl.DataFrame) -> Settled:
        """Some of the samples just settled were in the store before (n, OUTCOME_SCHEMA): their impressions were
        repeated. They are not written again; a click on the repetition is one on the first.
        """
        repeated = self._written.join(existing, on=KEY, how="inner", suffix="_first")
        right = (pl.col("label") == 0) & self._within_horizon("event_time_ms_first")
        corrections = repeated.filter(right).select(OUTCOME_SCHEMA.names())
        self._open = without(self._open, existing)
        self._repeat(repeated)
        counts = Counter(
            out=corrections.height - repeated.height,
            sampled=-repeated.height,
            positive=-int(repeated.select(self._within_horizon("event_time_ms").sum()).item()),
            corrected=corrections.height,
            duplicate=self._counts.pop("duplicate"),
        )
        return Settled(corrections=corrections, counts=counts)

    def place(self) -> Place:
        """Where the commit stands, once it is settled and amended."""
        oldest = self._open.filter(~pl.col("emitted"))["source_offset"].min()
        replay_from = min(self._next_offset if oldest is None else int(oldest), self._next_offset)  # type: ignore[arg-type]
        self._repeated = self._repeated.filter(self._repeated >= replay_from)
        return Place(replay_from=replay_from, repeated_offsets=self._repeated)

    @property
    def open_rows(self) -> int:
        """Impressions whose wait is not over: what a stalled stream makes grow."""
        return self._open.height + sum(frame.height for frame in self._impressions)

    # --- the joins --------------------------------------------------------------------------------------------------

    def _admit_impressions(self, impressions: pl.DataFrame) -> None:
        if impressions.is_empty():
            return
        first = impressions.unique(KEY, keep="first", maintain_order=True)
        new = without(first, self._open)
        self._repeat(without(impressions, new, "source_offset"))
        self._counts["impression"] += impressions.filter(pl.col("source_offset") >= self._applied_to).height
        opened = new.with_columns(click_ms=pl.lit(None, dtype=pl.Int64), emitted=pl.lit(False))
        self._open = pl.concat([self._open, opened])

    def _join_clicks(self, clicks: pl.DataFrame) -> None:
        earliest = _earliest(clicks)
        again = within(self._open.filter(pl.col("click_ms").is_not_null()), earliest)
        self._counts.update(click=clicks.height, duplicate_click=clicks.height - earliest.height + again.height)
        self._open = _with_clicks(self._open, _earliest(pl.concat([earliest, self._held.clicks])))
        self._stray = without(earliest, self._open)

    def _due_and_completed(self, completed: pl.DataFrame) -> pl.DataFrame:
        if completed.is_empty():
            return self._due
        misses = _with_clicks(completed.with_columns(emitted=pl.lit(False)), self._stray)
        both = pl.concat([misses.select(OPEN_SCHEMA.names()), self._due])
        first = both.with_columns(pl.col("click_ms").min().over(KEY)).unique(KEY, keep="first", maintain_order=True)
        self._repeat(without(both, first, "source_offset"))
        return first

    def _with_requests(self, due: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Split `due` into those whose request is known, with its columns, and those that have waited in vain."""
        known = self._cache.of(due)
        asked = known.select("request_id", "event_day", pl.col("page_id").alias("request_page_id"))
        found = due.join(asked, on="request_id", how="inner", maintain_order="left")
        missing = without(due, asked, "request_id").filter(self._is_over())
        self._written = found
        items = ranked_items(known)
        return found.join(items, on=KEY, how="left", maintain_order="left"), missing

    def _samples(self, found: pl.DataFrame) -> pl.DataFrame:
        label = self._within_horizon("event_time_ms").cast(pl.Int64)
        return found.with_columns(
            label=label,
            labels=pl.concat_str(pl.lit('{"click":'), label, pl.lit("}")),
            page_id=pl.coalesce("page_id", "request_page_id"),
            position=pl.coalesce("position", "ranked_position"),
        ).select(REVISION_SCHEMA.names())

    def _misses(self, missing: pl.DataFrame, answers: Answers) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Split into impressions missed for the first time and known misses that were shown, maybe clicked, again."""
        rows = missing.select(MISS_SCHEMA.names())
        again = within(rows, answers.misses)
        self._repeat(again)
        return without(rows, answers.misses), _with_clicks(within(answers.misses, again), again)

    def _place_strays(self, answers: Answers, completed: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Clicks whose impression is not open: corrections of stored samples, clicks on misses, or to be held."""
        strays = without(self._stray, completed)
        stored = strays.join(answers.outcomes, on=KEY, how="inner")
        right = (pl.col("label") == 0) & self._within_horizon("event_time_ms")
        corrections = stored.filter(right)
        self._counts["duplicate_click"] += stored.filter(pl.col("label") == 1).height
        self._counts["beyond_horizon"] += stored.filter((pl.col("label") == 0) & ~right).height
        rest = without(strays, answers.outcomes)
        missed = _with_clicks(within(answers.misses, rest), rest)
        early = without(rest, answers.misses)
        self._counts["held"] += early.height
        self._hold(early)
        return corrections.select(OUTCOME_SCHEMA.names()), missed.select(MISS_SCHEMA.names())

    def _close(self, settled: pl.DataFrame) -> None:
        """Forget what has its outcome; a positive is remembered until its wait is over, for clicks that come again."""
        done = settled.with_columns(done=pl.lit(True))
        marked = self._open.join(done, on=KEY, how="left", maintain_order="left")
        emitted = pl.col("emitted") | pl.col("done").fill_null(False)
        self._open = (
            marked.with_columns(emitted=emitted)
            .filter(~(pl.col("emitted") & self._is_over()))
            .select(OPEN_SCHEMA.names())
        )
        self._held.release(settled)
        waiting = self._open.filter(~pl.col("emitted") & pl.col("click_ms").is_not_null())
        self._hold(waiting.select(CLICK_SCHEMA.names()))
        if self._watermark_ms is not None:
            self._counts["expired"] += self._held.expire(watermark_ms=self._watermark_ms, but=waiting)

    def _repeat(self, impressions: pl.DataFrame) -> None:
        """These repeat an impression that has, or will have, an outcome of its own."""
        self._counts["duplicate"] += impressions.height
        self._repeated = pl.concat([self._repeated, impressions["source_offset"]])

    def _hold(self, clicks: pl.DataFrame) -> None:
        # Counted from the watermark where that is ahead: a log that is replayed late finds its clicks held as well.
        start = pl.max_horizontal("click_ms", pl.lit(self._watermark_ms, dtype=pl.Int64))
        self._held.hold(clicks, expires_ms=start + self._rules.horizon_ms)

    # --- the rules --------------------------------------------------------------------------------------------------

    def _is_over(self) -> pl.Expr:
        """The watermark has passed the impression by the wait."""
        if self._watermark_ms is None:
            return pl.lit(False)
        return pl.col("event_time_ms") <= self._watermark_ms - self._rules.wait_ms

    def _is_due(self) -> pl.Expr:
        clicked = self._within_horizon("event_time_ms") & pl.lit(self._rules.emit == "on_click")
        return ~pl.col("emitted") & (self._is_over() | clicked)

    def _within_horizon(self, impression_ms: str) -> pl.Expr:
        # A click that an unsteady client's clock puts before its impression is a click on it all the same.
        return (pl.col("click_ms") - pl.col(impression_ms) < self._rules.horizon_ms).fill_null(False)


def _earliest(clicks: pl.DataFrame) -> pl.DataFrame:
    return clicks if clicks.is_empty() else clicks.group_by(KEY).agg(pl.col("click_ms").min())


def _with_clicks(rows: pl.DataFrame, clicks: pl.DataFrame) -> pl.DataFrame:
    """`rows` (with click_ms), each with its earliest click."""
    if clicks.is_empty() or rows.is_empty():
        return rows
    joined = rows.join(clicks.select(CLICK_SCHEMA.names()), on=KEY, how="left", suffix="_new", maintain_order="left")
    return joined.with_columns(pl.min_horizontal("click_ms", "click_ms_new").alias("click_ms")).drop("click_ms_new")
