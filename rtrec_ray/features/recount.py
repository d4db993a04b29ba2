"""Values computed again over exactly the events that were behind them when they were read.

The events of a view become rows once, told apart by which reads had them; a value is the sum of the rows that its read
had. Duplicates count and retractions take effect at their own offsets, as in the stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from rtrec_ray.events import PROFILE_SCHEMA, RETRACT
from rtrec_ray.eventtime.identity import hash_ids
from rtrec_ray.eventtime.retract import originals
from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.compute import Sign, compute, concerns, key_of
from rtrec_ray.features.counted import EVENT_SCHEMA, NAME_SCHEMA, PLACE, counted, earliest, named
from rtrec_ray.features.definition import FeatureView
from rtrec_ray.features.merge import Merged, Value
from rtrec_ray.features.past import profiled

VERSION_SCHEMA: Final = pl.Schema([*PROFILE_SCHEMA.items(), ("kafka_ts", pl.Int64())])

_NAME: Final = NAME_SCHEMA.names()
_GONE: Final = [pl.col(name).alias(f"gone_{name}") for name in PLACE]
_APART: Final = ("partition", "last")
# Two topics are not read in the order in which they were written: a version this much older than an event may have
# come after it all the same.
_PROFILE_MARGIN_MS: Final = 10_000
_ALL: Final = 2**64 - 1

Signed = list[tuple[Sign, pl.DataFrame]]
_Row = tuple[int, int, int, str]  # tile_start_ms, partition, last, state


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A value that was read. `offsets`: (partition, the first offset that was not behind it)."""

    view: FeatureView
    key: str
    span: Span
    offsets: tuple[tuple[int, int], ...]

    @property
    def name(self) -> tuple[Any, ...]:
        """Equal for equal questions."""
        return self.view.id, self.key, self.span, self.offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Which keys are compared. `share` of each view's, in (0, 1], by their hash, the same on every machine; and (view,
    key) `besides`.

    >>> Sample(share=1.0).of("top_viewed_30m", pl.Series(["ad", "CN|f|7"])).to_list()
    [True, True]
    """

    share: float
    besides: frozenset[tuple[str, str]] = frozenset()

    def of(self, view: str, keys: pl.Series) -> pl.Series:
        """Of each key (text) of a view (its name) whether it is in the sample."""
        own = pl.Series([key for name, key in self.besides if name == view], dtype=pl.String)
        by_hash = hash_ids(keys) <= np.uint64(min(int(self.share * 2.0**64), _ALL))
        return pl.Series(by_hash) | keys.is_in(own.implode())


def sample_of(asked: Mapping[str, pl.Series], share: float, *, turn: int) -> Sample:
    """A sample that has a key of each view, where `asked` (view → keys) has any: of few keys the hash takes none, and
    always none. Which one depends on `turn`, so that in time each has its turn.
    """
    by_hash, besides = Sample(share=share), []
    for view, keys in asked.items():
        if keys.len() and not by_hash.of(view, keys).any():
            places = hash_ids(pl.Series([f"{turn} {key}" for key in keys]))
            besides.append((view, keys[int(places.argmin())]))
    return Sample(share=share, besides=frozenset(besides))


def once(events: pl.DataFrame, views: Iterable[FeatureView], *, sample: Sample) -> pl.DataFrame:
    """Of whole minutes of events (EVENT_SCHEMA, in any order): of those with one name the first that came, if it may
    count in a view under a key of the sample; and all retractions.
    """
    retraction = pl.col("event_type") == RETRACT
    first = counted(events.filter(~retraction), NAME_SCHEMA.to_frame())
    kept = pl.concat([first.clear(), *(_counting(first, view, sample=sample) for view in views)])
    return pl.concat([kept.unique(subset=("partition", "offset")), events.filter(retraction)])


def signed(events: pl.DataFrame) -> Signed:
    """What each record adds (1) and takes away (-1), as the stream does it, at its own offset: EVENT_SCHEMA.

    A retraction takes away its original as it came, whatever it carries of it, so that a copy that differs shows; an
    original that comes after it adds nothing.
    """
    plain = named(events.filter(pl.col("event_type") != RETRACT))
    retractions = events.filter(pl.col("event_type") == RETRACT)
    carried = originals(retractions).with_columns(retractions.select(PLACE))
    gone = earliest(named(carried))
    matched = plain.join(gone.select(*_NAME, *_GONE), on=_NAME, how="left")
    came = _before_its_retraction()
    plus = matched.filter(pl.col("gone_offset").is_null() | came)
    minus = matched.filter(came).with_columns(pl.col(f"gone_{name}").alias(name) for name in PLACE)
    columns = EVENT_SCHEMA.names()
    return [(1, plus.select(columns)), (-1, minus.select(columns))]


class Recount:
    """The values of questions. `events`: what `once` left of all minutes that the questions' spans touch, and of the
    time after in which retractions may have come; `profiles`: PROFILE_SCHEMA, the versions of these events' users.
    """

    def __init__(
        self, questions: Iterable[Question], events: pl.DataFrame, profiles: pl.DataFrame, *, tile_ms: int
    ) -> None:
        # In this order little changes from one question to the next.
        asked = sorted(
            {question.name: question for question in questions}.values(),
            key=lambda each: (each.span.from_ms, sum(offset for _, offset in each.offsets)),
        )
        records = signed(events)
        self._values: dict[tuple[Any, ...], Value | None] = {}
        for view in {question.view.id: question.view for question in asked}.values():
            of_view = [question for question in asked if question.view.id == view.id]
            reads = [(sign, _by_reads(view, frame, of_view)) for sign, frame in records]
            with_profiles: Signed = [(sign, profiled(view, frame, profiles)) for sign, frame in reads]
            rows = _rows(view, with_profiles, {each.key for each in of_view}, tile_ms=tile_ms)
            sums = {key: _Sum(view, of_key) for key, of_key in rows.items()}
            for each in of_view:
                self._values[each.name] = sums[each.key].move(each) if each.key in sums else None

    def value(self, question: Question) -> Value | None:
        """The value; None without data."""
        return self._values[question.name]


class _Sum:
    """The sum of those rows of one key that are behind a question; moving to another costs what differs."""

    def __init__(self, view: FeatureView, rows: Sequence[_Row]) -> None:
        starts, partitions, lasts, states = zip(*rows, strict=True)
        self._view = view
        self._starts, self._partitions, self._lasts = np.array(starts), np.array(partitions), np.array(lasts)
        self._states = states
        self._merged, self._inside = Merged(view), np.zeros(len(rows), dtype=np.bool_)

    def move(self, question: Question) -> Value | None:
        """The value of this question."""
        upto = dict(question.offsets)
        offsets = np.array([upto.get(partition, 0) for partition in range(int(self._partitions.max()) + 1)])
        in_span = (self._starts >= question.span.from_ms) & (self._starts < question.span.to_ms)
        inside = in_span & (self._lasts < offsets[self._partitions])
        if (self._inside & ~inside & in_span).any():  # a sum drops whole tiles, and here a part of one goes
            self._merged, self._inside = Merged(self._view), np.zeros_like(inside)
        for change, rows in ((self._merged.drop, self._inside & ~inside), (self._merged.add, inside & ~self._inside)):
            if rows.any():
                states = ",".join(self._states[row] for row in np.flatnonzero(rows))
                change(self._starts[rows].tolist(), states)
        self._inside = inside
        return self._merged.value()


def in_doubt(view: FeatureView, events: pl.DataFrame, versions: pl.DataFrame) -> pl.DataFrame:
    """(key, ts, partition, offset) of the events of which it is not sure under which key they were counted, because a
    version of their user's profile that makes it another one came when they may have been counted already: under each
    of these keys.

    `events`: what `once` left; `versions`: VERSION_SCHEMA, every version of their users that was ever sent.
    """
    place = ("partition", "offset")
    counting = pl.concat([frame for _, frame in signed(events)]).filter(concerns(view))
    # What is sent again as it was says nothing new.
    told = versions.sort("kafka_ts", maintain_order=True).unique(
        PROFILE_SCHEMA.names(), keep="first", maintain_order=True
    )
    held = counting.join(told.rename({"ts": "since_ms", "kafka_ts": "version_ms"}), on="user_id").filter(
        pl.col("since_ms") <= pl.col("ts")
    )
    in_time = pl.col("version_ms") <= pl.col("kafka_ts") - _PROFILE_MARGIN_MS
    sure = held.filter(in_time).sort("since_ms", "version_ms").unique(place, keep="last", maintain_order=True)
    newer = (
        held.filter(~in_time)
        .join(sure.select(*place, sure_ms="since_ms"), on=place, how="left")
        .filter(pl.col("sure_ms").is_null() | (pl.col("since_ms") >= pl.col("sure_ms")))
    )
    nobody = counting.join(newer, on=place, how="semi").join(sure, on=place, how="anti")
    possible = pl.concat([sure.join(newer, on=place, how="semi"), newer, nobody], how="diagonal")
    keys = [possible.select(key_of(form).alias("key"), "ts", *place).unique() for form in view.keys]
    several = [of_form.filter(pl.len().over(place) > 1) for of_form in keys]
    return pl.concat(several).filter(pl.col("key").is_not_null()).unique()


def behind(question: Question, events: pl.DataFrame) -> bool:
    """Whether one of these (key, ts, partition, offset) was behind the value."""
    span = question.span
    upto = pl.DataFrame(question.offsets, schema={"partition": pl.Int32, "upto": pl.Int64}, orient="row")
    within = events.filter(pl.col("key") == question.key, pl.col("ts").is_between(span.from_ms, span.to_ms, "left"))
    return not within.join(upto, on="partition").filter(pl.col("offset") < pl.col("upto")).is_empty()


def _counting(events: pl.DataFrame, view: FeatureView, *, sample: Sample) -> pl.DataFrame:
    """The events that count in the view under a key of the sample; of a view with profiles, under any key."""
    counting = events.filter(concerns(view))
    if view.needs_profile or sample.share >= 1.0:
        return counting
    # A key without fields is a literal of one row, and all events are under it.
    keys = [counting.select(key_of(form).cast(pl.String).fill_null("")).to_series() for form in view.keys]
    chosen = [np.asarray(sample.of(view.name, key)) for key in keys]
    return counting.filter(
        pl.Series(np.broadcast_to(np.logical_or.reduce(np.broadcast_arrays(*chosen)), counting.height))
    )


def _by_reads(view: FeatureView, events: pl.DataFrame, questions: Iterable[Question]) -> pl.DataFrame:
    """The events that count, told apart by which questions have them: `last` is the last offset of the first one."""
    lasts = {(partition, offset - 1) for question in questions for partition, offset in question.offsets}
    ends = pl.DataFrame(list(lasts), schema={"partition": pl.Int32, "last": pl.Int64}, orient="row").sort("last")
    counting = events.filter(concerns(view)).sort("offset")
    found = counting.join_asof(
        ends,
        left_on="offset",
        right_on="last",
        by="partition",
        strategy="forward",
        coalesce=False,
        check_sortedness=False,
    )
    return found.filter(pl.col("last").is_not_null())


def _rows(view: FeatureView, records: Signed, keys: Collection[str], *, tile_ms: int) -> Mapping[str, list[_Row]]:
    rows: dict[str, list[_Row]] = defaultdict(list)
    for sign, events in records:
        tiles = compute(view, events, tile_ms=tile_ms, sign=sign, apart=_APART)
        chosen = tiles.filter(pl.col("key").is_in(list(keys)))
        for key, *row in chosen.select("key", "tile_start_ms", *_APART, "state").iter_rows():
            rows[key].append((row[0], row[1], row[2], row[3]))
    return rows


def _before_its_retraction() -> pl.Expr:
    """Whether an event came before what takes it back (`_GONE`), as `earliest` orders them."""
    partition, gone_partition = pl.col("partition"), pl.col("gone_partition")
    written, gone_written = pl.col("kafka_ts"), pl.col("gone_kafka_ts")
    earlier = (written < gone_written) | ((written == gone_written) & (partition < gone_partition))
    return pl.when(partition == gone_partition).then(pl.col("offset") < pl.col("gone_offset")).otherwise(earlier)
