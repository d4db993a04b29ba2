"""The labels of samples as a function of the actions on them that are not taken back."""

from __future__ import annotations

import polars as pl

from rtrec_ray.samples.columns import KEY, empty
from rtrec_ray.samples.definition import CLICK, Label, SampleDefinition
from rtrec_ray.samples.timeline import Timeline

LABELLED = pl.Schema(
    {"request_id": pl.String, "item_id": pl.Int64, "label": pl.Int64, "labels": pl.String, "clicked": pl.Boolean}
)


def with_labels(rows: pl.DataFrame, actions: pl.DataFrame, timeline: Timeline) -> pl.DataFrame:
    """`rows` (n, at least KEY, event_time_ms, page_id; each key once), with `label`, `labels` (JSON) and `clicked`.

    `actions` (m, ACTION_SCHEMA), of these and of other keys. `clicked`: there is a click, maybe taken back.
    """
    found = _labelled(rows, actions, timeline)
    zeros = timeline.value(_nothing, dtype=pl.String)
    if found.is_empty():
        return rows.with_columns(label=pl.lit(0, dtype=pl.Int64), labels=zeros, clicked=pl.lit(False))
    return rows.join(found, on=KEY, how="left", maintain_order="left").with_columns(
        pl.col("label").fill_null(0), labels=pl.coalesce("labels", zeros), clicked=pl.col("clicked").fill_null(False)
    )


def same_labels(stored: pl.DataFrame, timeline: Timeline) -> pl.DataFrame:
    """`stored` with the JSON of its `labels` as `with_labels` writes it: names in the definition's order."""
    parts = [_rewritten(rows, definition) for definition, rows in timeline.parts(stored)]
    return pl.concat(parts) if parts else stored


def _labelled(rows: pl.DataFrame, actions: pl.DataFrame, timeline: Timeline) -> pl.DataFrame:
    if rows.is_empty() or actions.is_empty():
        return empty(LABELLED)
    horizon = timeline.value(lambda rules: rules.horizon_ms, dtype=pl.Int64)
    # An action that an unsteady client's clock puts before its impression is an action on it all the same.
    acted = actions.join(rows.select(*KEY, "event_time_ms", "page_id"), on=KEY, how="inner")
    acted = acted.filter(pl.col("action_ms") - pl.col("event_time_ms") < horizon)
    return pl.concat([empty(LABELLED), *(_of(definition, part) for definition, part in timeline.parts(acted))])


def _of(definition: SampleDefinition, acted: pl.DataFrame) -> pl.DataFrame:
    values = [_value(label).cast(pl.Int64).alias(f"label {name}") for name, label in definition.labels.items()]
    clicked = (pl.col("kind") == CLICK).any().alias("clicked")
    found = acted.group_by(KEY, maintain_order=True).agg(*values, clicked)
    return found.select(*KEY, pl.col(f"label {CLICK}").alias("label"), _json(definition).alias("labels"), "clicked")


def _value(label: Label) -> pl.Expr:
    counts = (pl.col("kind") == label.event) & ~pl.col("taken_back")
    if label.summed:
        return pl.col("value").filter(counts).sum()
    return (counts if label.at_least is None else counts & (pl.col("value") >= label.at_least).fill_null(False)).any()


def _json(definition: SampleDefinition) -> pl.Expr:
    parts: list[pl.Expr] = []
    for name in definition.labels:
        parts += [pl.lit(f'{"," if parts else "{"}"{name}":'), pl.col(f"label {name}")]
    return pl.concat_str(*parts, pl.lit("}"))


def _nothing(definition: SampleDefinition) -> str:
    return "{" + ",".join(f'"{name}":0' for name in definition.labels) + "}"


def _rewritten(rows: pl.DataFrame, definition: SampleDefinition) -> pl.DataFrame:
    known = pl.Struct(dict.fromkeys(definition.labels, pl.Int64))
    values = pl.col("labels").str.json_decode(known)
    fields = [values.struct.field(name).fill_null(0).alias(f"label {name}") for name in definition.labels]
    return rows.with_columns(fields).with_columns(_json(definition).alias("labels")).select(rows.columns)
