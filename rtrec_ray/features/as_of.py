"""Point-in-time values for training sets: what a view said of each of many keys, each at a time of its own.

A value is that of a historical read: over the window that ends at the row's time, floored to the tile. Of what happened
at that time or later nothing is in it, and that holds for retractions too: an event counts in a window that ends before
the retraction's own time, as it did in what serving saw then, and not in one that ends after it. So no label can leak
through a correction. (`features get --as-of` answers with what is known today: every retraction, whenever it came.)

Events go by their own time and not by when they came: one that came late is in the values of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, Final

import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA, RETRACT
from rtrec_ray.features.compute import MAX_KEY_BYTES, concerns, has_entry, keys_of, meets
from rtrec_ray.features.counted import NAME_SCHEMA, counted, taken_back
from rtrec_ray.features.definition import Aggregation, FeatureView
from rtrec_ray.features.merge import Value
from rtrec_ray.features.past import profiled
from rtrec_ray.features.seen import MINUTE_MS

ROW_SCHEMA: Final = pl.Schema({"key": pl.String, "time_ms": pl.Int64})
"""A question: the value of a key as of a time, ms UTC."""

PAIRS: Final = 1_000_000
"""Pairs of a question and an entry of its window that are held at once, about."""

_NEEDED: Final = ("event_id", "event_type", "ts", "user_id", "retracts")
_NAME: Final = NAME_SCHEMA.names()
_ENTRY: Final = ("key", "tile_start_ms", "last_end_ms")
_COUNTED: Final = ("count_by", "top_k")
_NEWEST: Final = ("last_n", "distinct")


def column_of(view: FeatureView, each: Aggregation) -> str:
    """What the column of one value is called: several views' columns may stand beside each other and the rows' own."""
    return f"{view.name}.{each.name}"


def fields_of(view: FeatureView) -> list[str]:
    """The columns of BEHAVIOR_SCHEMA that values of the view are made of."""
    of_values = (name for each in view.aggregations for name in (each.field, *(cond.field for cond in each.where)))
    named = {
        *_NEEDED,
        *(cond.field for cond in view.source),
        *of_values,
        *(name for form in view.keys for name in form),
    }
    return [name for name in BEHAVIOR_SCHEMA.names() if name in named]


def as_of(
    view: FeatureView, rows: pl.DataFrame, events: pl.DataFrame, profiles: pl.DataFrame, *, tile_ms: int
) -> pl.DataFrame:
    """The rows (n, ROW_SCHEMA and any others) in their order, with a column for each value of the view.

    `events`: `fields_of(view)`, `partition`, `offset` and `kafka_ts`, all of the rows' windows in whole minutes, with
    the retractions of that time, in any order, duplicates included; what is older or newer changes nothing.
    `profiles`: PROFILE_SCHEMA, the versions of these events' users. All columns are null for a key without data.
    """
    ended = rows.with_columns(end_ms=pl.col("time_ms") // tile_ms * tile_ms)
    asks = ended.select("key", "end_ms").unique().with_row_index("ask")
    found = _Windows(asks, length_ms=view.window_ms, tile_ms=tile_ms)
    values = _values(view, found, _entries(view, events, profiles, found))
    answered = ended.join(values, on=("key", "end_ms"), how="left", maintain_order="left")
    return answered.drop("end_ms")


def value_of(view: FeatureView, row: dict[str, Any]) -> Value | None:
    """A row's columns in the form in which the store answers; None for a key without data.

    >>> clicks = Aggregation(name="top", kind="top_k", field="item_id", limit=1)
    >>> view = FeatureView(name="v", version=1, keys=((),), window_ms=10, source=(), aggregations=(clicks,))
    >>> value_of(view, {"v.top": [{"value": 8, "n": 3}], "v": True})
    {'top': [[8, 3]]}
    """
    if row[view.name] is None:
        return None
    return {each.name: _plain(each, row[column_of(view, each)]) for each in view.aggregations}


def schema_of(view: FeatureView) -> pl.Schema:
    """The columns that `as_of` adds: whether there is data under the view's name, then each value."""
    values = [(column_of(view, each), _type(each)) for each in view.aggregations]
    return pl.Schema([(view.name, pl.Boolean()), *values])


def _plain(each: Aggregation, value: Any) -> Any:
    if each.kind == "count_by":
        return {pair["value"]: pair["n"] for pair in value}
    return [[pair["value"], pair["n"]] for pair in value] if each.kind == "top_k" else value


def _type(each: Aggregation) -> pl.DataType:
    if each.kind == "count":
        return pl.Int64()
    if each.kind == "sum":
        return pl.Int128()  # a foreign duration may be anything up to 2^63
    if each.kind == "mean":
        return pl.Float64()
    of_field = BEHAVIOR_SCHEMA[each.field or ""]
    return pl.List(of_field) if each.kind in _NEWEST else pl.List(pl.Struct({"value": of_field, "n": pl.Int64()}))


class _Windows:
    """The distinct questions: `ask` (a number), `key`, `end_ms`. Finds what is within their windows."""

    def __init__(self, asks: pl.DataFrame, *, length_ms: int, tile_ms: int) -> None:
        self.asks, self.length_ms, self.tile_ms = asks, length_ms, tile_ms
        # A window touches at most two stretches of its own length, so that a join by stretch brings at most twice of
        # what is within.
        first, last = (pl.col("end_ms") - length_ms) // length_ms, (pl.col("end_ms") - tile_ms) // length_ms
        stretches = pl.concat_list(first, last).list.unique()
        self._asks = asks.with_columns(stretch=stretches).explode("stretch")

    def pairs(self, entries: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The entries (`_ENTRY` and any others) within each question's window, with its `ask`, in portions."""
        placed = entries.with_columns(stretch=pl.col("tile_start_ms") // self.length_ms)
        inside = (pl.col("tile_start_ms") < pl.col("end_ms")) & (pl.col("end_ms") <= pl.col("last_end_ms"))
        for portion in self._portions(placed):
            yield portion.join(placed, on=("key", "stretch")).filter(inside).drop("key", "stretch")

    def _portions(self, placed: pl.DataFrame) -> Iterator[pl.DataFrame]:
        sizes = placed.group_by("key", "stretch").agg(pl.len().alias("n"))
        sized = self._asks.join(sizes, on=("key", "stretch")).sort("ask")
        # The stretches of a question are in one portion: its sums are made there.
        cut = pl.col("n").sum().over("ask").cum_sum() // (2 * PAIRS)
        numbered = sized.with_columns(portion=cut.first().over("ask")).drop("n")
        yield from numbered.partition_by("portion", include_key=False)


def _entries(view: FeatureView, events: pl.DataFrame, profiles: pl.DataFrame, windows: _Windows) -> pl.DataFrame:
    """The events that count under a key that is asked for, with `_ENTRY`: `last_end_ms` is the end of the last window
    that has the event.
    """
    retraction = pl.col("event_type") == RETRACT
    first = counted(events.filter(~retraction), NAME_SCHEMA.to_frame()).filter(concerns(view))
    minute, tile_ms = (pl.col("ts") // MINUTE_MS).alias("minute"), windows.tile_ms
    tile = pl.col("ts") // tile_ms * tile_ms
    dated = (
        profiled(view, first, profiles)
        .with_columns(minute, tile_start_ms=tile)
        .join(_gone(events.filter(retraction)), on=_NAME, how="left")
        .with_columns(
            last_end_ms=pl.min_horizontal(
                pl.col("tile_start_ms") + windows.length_ms, pl.col("gone_ms") // tile_ms * tile_ms
            )
        )
        .filter(pl.col("last_end_ms") > pl.col("tile_start_ms"))
    )
    keyed = pl.concat([dated.with_columns(key=key.cast(pl.String)) for key in keys_of(view)])
    asked = windows.asks.select("key").unique()
    return keyed.join(asked, on="key", how="semi").filter(pl.col("key").str.len_bytes() <= MAX_KEY_BYTES)


def _gone(retractions: pl.DataFrame) -> pl.DataFrame:
    """Of each event that is taken back its name and the time of the first retraction, `gone_ms`."""
    named = taken_back(retractions).with_columns(retractions["ts"].alias("gone_ms"))
    return named.group_by(_NAME).agg(pl.col("gone_ms").min())


def _values(view: FeatureView, windows: _Windows, entries: pl.DataFrame) -> pl.DataFrame:
    """`key`, `end_ms` and `schema_of(view)` of each question with data."""
    parts = [_sums(view, windows, entries)]
    parts += [_lists(view, each, windows, entries) for each in view.aggregations if each.kind in (*_COUNTED, *_NEWEST)]
    both = reduce(lambda found, part: found.join(part, on="ask", how="left"), parts)
    kinds = schema_of(view)
    columns = [
        # Under a key with data a list without entries is empty; null is a key without data.
        pl.col(name).fill_null(pl.lit([], dtype=kind)) if isinstance(kind, pl.List) else pl.col(name).cast(kind)
        for name, kind in kinds.items()
    ]
    return windows.asks.join(both, on="ask").select("key", "end_ms", *columns)


def _sums(view: FeatureView, windows: _Windows, entries: pl.DataFrame) -> pl.DataFrame:
    """`ask`, the view's name (true), and each number, of every question with data."""
    numbers = [each for each in view.aggregations if each.kind in ("count", "sum", "mean")]
    parts = {f"{each.name}.{part}": made for each in numbers for part, made in _partials(each).items()}
    tiles = entries.group_by(_ENTRY).agg(**parts)
    added = [pairs.group_by("ask").agg(pl.col(list(parts)).sum()) for pairs in windows.pairs(tiles)]
    empty = tiles.select(pl.lit(0, dtype=pl.UInt32).alias("ask"), *parts).clear()
    found = pl.concat([empty, *added])
    columns = [_number(each).alias(column_of(view, each)) for each in numbers]
    return found.select("ask", pl.lit(True).alias(view.name), *columns)


def _partials(each: Aggregation) -> dict[str, pl.Expr]:
    met = meets(each.where)
    if each.kind == "count":
        # A literal's sum is one, however many rows it stands for.
        return {"n": (met.sum() if each.where else pl.len()).cast(pl.Int64)}
    taken = pl.col(each.field or "").filter(met)
    return {"sum": taken.cast(pl.Int128).sum(), **({"n": taken.count().cast(pl.Int64)} if each.kind == "mean" else {})}


def _number(each: Aggregation) -> pl.Expr:
    if each.kind != "mean":
        return pl.col(f"{each.name}.{'n' if each.kind == 'count' else 'sum'}")
    n = pl.col(f"{each.name}.n")
    return pl.when(n > 0).then(pl.col(f"{each.name}.sum").cast(pl.Float64) / n)


def _lists(view: FeatureView, each: Aggregation, windows: _Windows, entries: pl.DataFrame) -> pl.DataFrame:
    """`ask` and the list, of every question with an entry."""
    taken = entries.filter(meets(each.where), has_entry(each))
    with_value = taken.with_columns(value=pl.col(each.field or ""))
    make: Callable[[pl.DataFrame], pl.DataFrame]
    if each.kind in _COUNTED:
        narrow, make = with_value.group_by(*_ENTRY, "value").agg(pl.len().cast(pl.Int64).alias("n")), _counts_of(each)
    else:
        narrow, make = with_value.select(*_ENTRY, "ts", "event_id", "value"), _newest_of(each)
    found = [make(pairs) for pairs in windows.pairs(narrow)]
    name = column_of(view, each)
    empty = pl.DataFrame(schema={"ask": pl.UInt32(), "list": _type(each)})
    return pl.concat([empty, *found]).rename({"list": name})


def _counts_of(each: Aggregation) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def make(pairs: pl.DataFrame) -> pl.DataFrame:
        counts = pairs.group_by("ask", "value").agg(pl.col("n").sum())
        ordered = counts.sort("value") if each.kind == "count_by" else counts.sort(-pl.col("n"), "value")
        return _cut(ordered, pl.struct("value", "n"), limit=each.limit)

    return make


def _newest_of(each: Aggregation) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def make(pairs: pl.DataFrame) -> pl.DataFrame:
        ordered = pairs.sort("ts", "event_id", "value", descending=True)
        value = pl.col("value") if each.repeats else pl.col("value").unique(maintain_order=True)
        return _cut(ordered, value, limit=each.limit)

    return make


def _cut(ordered: pl.DataFrame, value: pl.Expr, *, limit: int | None) -> pl.DataFrame:
    # Within a group rows keep their order, whatever the order of the groups.
    return ordered.group_by("ask").agg((value if limit is None else value.head(limit)).alias("list"))
