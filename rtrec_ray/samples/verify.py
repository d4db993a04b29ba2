"""Stitched samples beside those of the live table: equal, or each difference with its cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson
import polars as pl

from rtrec_ray.samples.columns import KEY

STITCHED_SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "item_id": pl.Int64,
        "event_time_ms": pl.Int64,
        "label": pl.Int64,
        "labels": pl.String,
        "source_partition": pl.Int64,  # of behaviour, as is the offset: of the impression
        "source_offset": pl.Int64,
    }
)
"""A sample stitched from the history, as far as it is compared."""

LIVE_SCHEMA: Final = STITCHED_SCHEMA
"""One of the live table. Partition and offset may be null, but for those that the stitched ones lack."""

RECORD_SCHEMA: Final = pl.Schema(
    {"request_id": pl.String, "source_partition": pl.Int64, "record_offset": pl.Int64}  # of the inference log
)
"""Where the history has the inference record of a request."""

UNEXPLAINED: Final = "unexplained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far the live side has come. By partition of behaviour: the first offset that the sample stage, or the history
    has not taken. Times in ms UTC; `kept_from_ms`: older samples may be dropped.

    `misses`: (n, KEY) that are no samples as long as their inference record is not there; `records`: those that the
    history has of them (n, RECORD_SCHEMA); `inferred`: as `applied`, of the inference log. `sampled_out`: (n, KEY)
    negatives that were not drawn. `mixed`: partitions were added, so an impression's actions may lie in another one.
    """

    watermark_ms: int | None
    wait_ms: int
    applied: Mapping[int, int] = field(default_factory=dict)
    written: Mapping[int, int] = field(default_factory=dict)
    mixed: bool = False
    kept_from_ms: int | None = None
    inferred: Mapping[int, int] = field(default_factory=dict)
    misses: pl.DataFrame = field(default_factory=lambda: STITCHED_SCHEMA.to_frame().select(KEY))
    records: pl.DataFrame = field(default_factory=RECORD_SCHEMA.to_frame)
    sampled_out: pl.DataFrame = field(default_factory=lambda: STITCHED_SCHEMA.to_frame().select(KEY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`compared`: keys on either side; `causes`: differences by kind and cause; `examples`: some of each."""

    compared: int
    equal: int
    causes: dict[str, dict[str, int]]
    examples: list[dict[str, Any]]

    @property
    def unexplained(self) -> int:
        """Differences without a cause."""
        return sum(causes.get(UNEXPLAINED, 0) for causes in self.causes.values())

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**asdict(self), "unexplained": self.unexplained}


def compare(stitched: pl.DataFrame, live: pl.DataFrame, standing: Standing, *, examples: int = 5) -> Comparison:
    """(n, STITCHED_SCHEMA) beside (m, LIVE_SCHEMA), each key once on the live side; of one that was stitched in two
    partitions, as after partitions were added, the one with a click counts.

    Kinds: `missing` in the live table, `extra` in it, `label` (a label differs). Causes of what is missing: dropped by
    retention, not read yet, a miss whose record is not read yet, sampled out, still open; of what is extra: not yet in
    the history; of a label: of its partition the sample stage has not read all that the history has, or the other way
    round.
    """
    once = stitched.sort("label", descending=True).unique(KEY, keep="first", maintain_order=True)
    both = once.join(live, on=KEY, how="full", coalesce=True, suffix="_live")
    kind = (
        pl.when(pl.col("label_live").is_null())
        .then(pl.lit("missing"))
        .when(pl.col("label").is_null())
        .then(pl.lit("extra"))
        .when((pl.col("label") != pl.col("label_live")) | pl.col("differs"))
        .then(pl.lit("label"))
        .otherwise(pl.lit("equal"))
    )
    found = both.with_columns(differs=_labels_differ(both)).with_columns(kind=kind)
    apart = found.filter(pl.col("kind") != "equal")
    explained = apart.with_columns(cause=_cause(standing, apart))
    counted: dict[str, Counter[str]] = {}
    for name, cause, rows in explained.group_by("kind", "cause").len().sort("kind", "cause").iter_rows():
        counted.setdefault(name, Counter())[cause] += rows
    shown = explained.sort(KEY).group_by("kind", "cause", maintain_order=True).head(examples)
    columns = ("kind", "cause", *KEY, "event_time_ms", "event_time_ms_live", "labels", "labels_live")
    return Comparison(
        compared=found.height,
        equal=found.height - apart.height,
        causes={name: dict(causes) for name, causes in counted.items()},
        examples=shown.select(columns).rows(named=True),
    )


def _labels_differ(both: pl.DataFrame) -> pl.Series:
    """Labels as objects: their text may be written in two ways. Few texts are different ones, so few are read."""
    texts = both.select("labels", "labels_live").unique()
    differs = [
        mine is not None and theirs is not None and orjson.loads(mine) != orjson.loads(theirs)
        for mine, theirs in texts.iter_rows()
    ]
    known = texts.with_columns(differs=pl.Series(differs, dtype=pl.Boolean))
    joined = both.join(known, on=["labels", "labels_live"], how="left", nulls_equal=True, maintain_order="left")
    return joined["differs"]


def _cause(standing: Standing, apart: pl.DataFrame) -> pl.Series:
    shown_ms = pl.coalesce("event_time_ms", "event_time_ms_live")
    missed = _among(apart, standing.misses)
    out = _among(apart, standing.sampled_out)
    late = pl.lit(True) if standing.watermark_ms is None else shown_ms + standing.wait_ms > standing.watermark_ms
    missing, extra, label = (pl.col("kind") == name for name in ("missing", "extra", "label"))
    read_behind = _in_one_behind(standing.applied, standing.written, standing)
    write_behind = _in_one_behind(standing.written, standing.applied, standing)
    dropped = pl.lit(False) if standing.kept_from_ms is None else shown_ms < standing.kept_from_ms
    first = standing.records.group_by("request_id", "source_partition").agg(pl.col("record_offset").min())
    placed = apart.join(first, on=["request_id", "source_partition"], how="left", maintain_order="left")
    return (
        placed.with_columns(missed=missed, out=out)
        .select(
            pl.when(missing & dropped)
            .then(pl.lit("dropped by retention"))
            .when(missing & _beyond("source_offset", standing.applied))
            .then(pl.lit("not read by the sample stage yet"))
            .when(missing & pl.col("missed") & _beyond("record_offset", standing.inferred))
            .then(pl.lit("a miss: its inference record is not read by the sample stage yet"))
            .when(missing & pl.col("out") & (pl.col("label") == 0))
            .then(pl.lit("a negative that was not drawn"))
            .when(missing & late)
            .then(pl.lit("still open: its wait is not over"))
            .when(extra & _beyond("source_offset_live", standing.written, partition="source_partition_live"))
            .then(pl.lit("not in the history yet"))
            .when(label & read_behind)
            .then(pl.lit("actions not read by the sample stage yet"))
            .when(label & write_behind)
            .then(pl.lit("actions not in the history yet"))
            .otherwise(pl.lit(UNEXPLAINED))
            .alias("cause")
        )
        .to_series()
    )


def _in_one_behind(one: Mapping[int, int], other: Mapping[int, int], standing: Standing) -> pl.Expr:
    """Which rows lie in a partition of which `one` has not all that the `other` has; their actions do too."""
    behind = [at for at, end in other.items() if one.get(at, 0) < end]
    return pl.lit(True) if standing.mixed and behind else pl.col("source_partition").is_in(behind)


def _among(rows: pl.DataFrame, keys: pl.DataFrame) -> pl.Series:
    marked = keys.select(KEY).unique().with_columns(among=pl.lit(True))
    return rows.join(marked, on=KEY, how="left", maintain_order="left")["among"].fill_null(False)


def _beyond(column: str, positions: Mapping[int, int], *, partition: str = "source_partition") -> pl.Expr:
    """Which rows lie at or behind the position of their partition."""
    position = pl.col(partition).replace_strict(
        list(positions), list(positions.values()), default=0, return_dtype=pl.Int64
    )
    return pl.col(column) >= position
