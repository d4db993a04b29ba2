"""What becomes of impressions whose request and actions are known, and of samples whose actions changed."""

from __future__ import annotations

import numpy as np
import polars as pl

from rtrec_ray.eventtime.identity import hash_ids
from rtrec_ray.samples.columns import KEY, OUT_SCHEMA, OUTCOME_SCHEMA, REVISION_SCHEMA, without
from rtrec_ray.samples.labels import same_labels, with_labels
from rtrec_ray.samples.timeline import Timeline


def judged(labelled: pl.DataFrame, timeline: Timeline) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Samples (REVISION_SCHEMA), impressions not drawn (OUT_SCHEMA), and those that have to wait after all.

    `labelled`: impressions with their request's columns, `over`, and what `with_labels` adds.
    """
    ready = labelled.filter(pl.col("over") | (pl.col("label") == 1))
    ruled = ready.with_columns(
        negative_rate=timeline.value(lambda rules: rules.negative_rate, dtype=pl.Float64),
        definition_version=timeline.value(lambda rules: rules.version, dtype=pl.Int64),
    )
    drawn = pl.lit(True)
    if timeline.draws:
        drawn = pl.col("clicked") | (draws(ruled) < pl.col("negative_rate"))
    samples = ruled.filter(drawn).select(REVISION_SCHEMA.names())
    return samples, ruled.filter(~drawn).select(OUT_SCHEMA.names()), without(labelled, ready)


def corrected(outcomes: pl.DataFrame, actions: pl.DataFrame, timeline: Timeline) -> pl.DataFrame:
    """Of the newest revisions (n, OUTCOME_SCHEMA) those whose labels are others by now, with these."""
    if outcomes.is_empty():
        return outcomes
    stored = same_labels(outcomes, timeline)
    new = with_labels(stored.drop("label", "labels"), actions, timeline)
    old = stored.select(*KEY, pl.col("labels").alias("old_labels"))
    changed = new.join(old, on=KEY, maintain_order="left").filter(pl.col("labels") != pl.col("old_labels"))
    return changed.select(OUTCOME_SCHEMA.names())


def draws(rows: pl.DataFrame) -> pl.Series:
    """A number in [0, 1) of each key, the same wherever it is computed."""
    names = rows.select(pl.concat_str("request_id", pl.lit("\n"), "item_id")).to_series()
    return pl.Series(hash_ids(names).astype(np.float64) / 2.0**64)
