"""From events to tile rows, on columns: one row per key and tile with the partial of each aggregation as JSON text.

The same function serves the stream, a look into the history and a test. Rows of the same key and tile add up, so it
does not matter into which batches the events are cut, nor in which order they come; and what was counted is taken back
by rows of the opposite sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from operator import and_, or_
from typing import Final, Literal

import polars as pl

from rtrec_ray.events import BEHAVIOR_SCHEMA
from rtrec_ray.features.definition import ALL, PROFILE_FIELDS, Aggregation, Condition, FeatureView

TILE_SCHEMA: Final = pl.Schema({"key": pl.String, "tile_start_ms": pl.Int64, "state": pl.String})
# PostgreSQL's B-tree takes no longer entries; only free text of a profile can get there.
MAX_KEY_BYTES: Final = 1_000
# Tiles, lists and all copies of them have the text as it was sent, and Kafka takes a megabyte of it.
MAX_TEXT_BYTES: Final = 1_000
_COUNTED: Final = ("count_by", "top_k")
_TILE: Final = ("key", "tile_start_ms")
_EVENTS: Final = "events"
_EXPRESSIONS: Final = 1_000  # kept, for each commit asks for the same, and a tenth of a small one's time went into them
Sign = Literal[1, -1]


def meets(conditions: Iterable[Condition]) -> pl.Expr:
    """Whether an event meets all conditions; never null."""
    return reduce(and_, (_meets(condition) for condition in conditions), pl.lit(True))


@lru_cache(_EXPRESSIONS)
def concerns(view: FeatureView) -> pl.Expr:
    """Whether an event counts in the view for some key, whatever the user's profile says."""
    forms = [meets(Condition(field=name) for name in form if name not in PROFILE_FIELDS) for form in view.keys]
    return meets(view.source) & pl.any_horizontal(forms)


def concerns_some(views: Iterable[FeatureView]) -> pl.Expr:
    """Whether an event counts in some of the views."""
    return reduce(or_, map(concerns, views), pl.lit(False))


def has_entry(each: Aggregation) -> pl.Expr:
    """Whether an event has a value to be listed or counted by (`count_by`, `top_k`, `last_n`, `distinct`); never null.

    It has none where the text of it, or the id that a list has beside it, is longer than MAX_TEXT_BYTES.
    """
    field = pl.col(_field(each))
    texts = [name for name in _parts(each) if BEHAVIOR_SCHEMA[name] == pl.String]
    return reduce(and_, (pl.col(name).str.len_bytes() <= MAX_TEXT_BYTES for name in texts), field.is_not_null())


def compute(
    view: FeatureView, events: pl.DataFrame, *, tile_ms: int, sign: Sign = 1, apart: Sequence[str] = ()
) -> pl.DataFrame:
    """The tile rows (TILE_SCHEMA) of events: `event_id`, `ts`, the view's `fields`, its profile fields if it has some.

    `state` is a JSON list: the number of events, then the partial of each aggregation, in the view's order
    (eventtime/aggregate.py), without texts that are too long (`has_entry`). `sign` -1: the rows that take back what
    these events added. `apart`: columns of the events that rows of one key and tile are told apart by; the rows have
    them too.
    """
    return _planned(view, events.lazy(), tile_ms=tile_ms, sign=sign, apart=apart).collect()


def compute_all(
    views: Sequence[FeatureView], events: pl.DataFrame, *, tile_ms: int, sign: Sign, apart: Sequence[str]
) -> dict[str, pl.DataFrame]:
    """View id → its tile rows of these events; see `compute`. Takes less time than one view after another."""
    lazy = events.lazy()
    plans = [_planned(view, lazy, tile_ms=tile_ms, sign=sign, apart=apart) for view in views]
    return dict(zip((view.id for view in views), pl.collect_all(plans), strict=True))


def key_of(form: tuple[str, ...]) -> pl.Expr:
    """The key of an event under a form of a view's, null where a field is; text, but a number for a single number."""
    if not form:
        return pl.lit(ALL)
    # A single number groups several times faster as it is than as text.
    if len(form) == 1 and form[0] not in PROFILE_FIELDS:
        return pl.col(form[0])
    # concat_str is null as soon as one part is. PostgreSQL keeps no NUL in a text.
    return pl.concat_str([pl.col(name) for name in form], separator="|").str.replace_all("\0", "\ufffd", literal=True)


@lru_cache(_EXPRESSIONS)
def keys_of(view: FeatureView) -> Sequence[pl.Expr]:
    """The key of an event under each form of the view's, null where an earlier form gives the same, as text: an event
    counts once under a key.
    """
    keys = [key_of(form) for form in view.keys]
    texts = [key.cast(pl.String) for key in keys]
    others = [pl.any_horizontal(texts[index].eq(text) for text in texts[:index]) for index in range(1, len(keys))]
    return keys[:1] + [pl.when(other).then(None).otherwise(key) for key, other in zip(keys[1:], others, strict=True)]


def _planned(
    view: FeatureView, events: pl.LazyFrame, *, tile_ms: int, sign: Sign, apart: Sequence[str]
) -> pl.LazyFrame:
    chosen = events.filter(concerns(view)).with_columns(tile_start_ms=pl.col("ts") // tile_ms * tile_ms)
    tiles = [_tiles_of_key(view, chosen, key=key, sign=sign, tile=(*_TILE, *apart)) for key in keys_of(view)]
    return pl.concat(tiles)


def _tiles_of_key(
    view: FeatureView, chosen: pl.LazyFrame, *, key: pl.Expr, sign: Sign, tile: Sequence[str]
) -> pl.LazyFrame:
    keyed = chosen.with_columns(key=key).filter(pl.col("key").is_not_null())
    named = [(f"partial_{index}", each) for index, each in enumerate(view.aggregations)]
    sums = [expression for name, each in named if each.kind not in _COUNTED for expression in _sums(each, name, sign)]
    tiles = keyed.group_by(tile).agg(pl.len().alias(_EVENTS), *sums)
    for name, each in named:
        if each.kind in _COUNTED:
            tiles = tiles.join(_counted(keyed, each, name=name, sign=sign, tile=tile), on=tile, how="left")
    parts = [_signed(_EVENTS, sign), *(_text(each, name, sign) for name, each in named)]
    state = pl.concat_str(pl.lit("["), pl.concat_str(parts, separator=","), pl.lit("]"))
    key = pl.col("key").cast(pl.String)
    short = key.str.len_bytes() <= MAX_KEY_BYTES
    return tiles.select(*tile[2:], key=key, tile_start_ms="tile_start_ms", state=state).filter(short)


def _meets(condition: Condition) -> pl.Expr:
    column = pl.col(condition.field)
    if not condition.values:
        return column.is_not_null()
    if len(condition.values) == 1:
        return column.eq_missing(pl.lit(condition.values[0], dtype=BEHAVIOR_SCHEMA[condition.field]))
    return column.is_in(list(condition.values)).fill_null(False)


def _parts(each: Aggregation) -> list[str]:
    """The fields of an event that its entry has."""
    return [_field(each)] if each.kind in _COUNTED else ["event_id", _field(each)]


def _field(each: Aggregation) -> str:
    if each.field is None:
        raise ValueError(f"{each.kind} of no field")
    return each.field


@lru_cache(_EXPRESSIONS)
def _sums(each: Aggregation, name: str, sign: Sign) -> Sequence[pl.Expr]:
    """What to add up over the events of one key and tile; for lists the entries, null where there is none."""
    met = meets(each.where)
    if each.kind == "count":
        # A literal's sum is one, however many rows it stands for.
        return [(met.sum() if each.where else pl.len()).alias(name)]
    if each.kind in ("sum", "mean"):
        taken = pl.col(_field(each)).filter(met)
        # A foreign duration may be anything up to 2^63: two of them must not wrap around.
        total = taken.cast(pl.Int128).sum().alias(name)
        return [total] if each.kind == "sum" else [total, taken.count().alias(f"{name}_n")]
    value = _json(_field(each)) if sign > 0 else pl.lit("null")
    entry = pl.format("{},{},{}", pl.col("ts") - pl.col("tile_start_ms"), _json("event_id"), value)
    return [pl.when(met & has_entry(each)).then(entry).alias(name)]


def _counted(keyed: pl.LazyFrame, each: Aggregation, *, name: str, sign: Sign, tile: Sequence[str]) -> pl.LazyFrame:
    taken = keyed.filter(meets(each.where), has_entry(each))
    pairs = taken.group_by(*tile, pl.col(_field(each)).alias("value")).agg(pl.len().alias("n"))
    pair = pl.format("{},{}", _json("value", of=_field(each)), _signed("n", sign))
    return pairs.group_by(tile).agg(pair.alias(name))


def _text(each: Aggregation, name: str, sign: Sign) -> pl.Expr:
    """The partial as JSON text, out of the columns that `_sums` or `_counted` made."""
    if each.kind in ("count", "sum"):
        return _signed(name, sign)
    if each.kind == "mean":
        return pl.format("[{},{}]", _signed(name, sign), _signed(f"{name}_n", sign))
    # Joined here and not in the group: that takes several times as long where most groups have one event.
    return pl.format("[{}]", pl.col(name).list.join(",", ignore_nulls=True).fill_null(""))


def _signed(name: str, sign: Sign) -> pl.Expr:
    n = pl.col(name)
    return (n if sign > 0 else n.cast(pl.Int128) * sign).cast(pl.String)


def _json(column: str, *, of: str | None = None) -> pl.Expr:
    """The column as JSON text: numbers as they are, text quoted and escaped."""
    if BEHAVIOR_SCHEMA[of or column] != pl.String:
        return pl.col(column).cast(pl.String)
    # json_encode knows every escape; what is wrapped around the one field is cut off again: {"":"..."}
    return pl.struct(pl.col(column).alias("")).struct.json_encode().str.slice(4).str.strip_suffix("}")
