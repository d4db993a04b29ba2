"""Values recomputed from events, by the very functions of the stream: for times whose tiles are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import polars as pl

from rtrec_ray.events import RETRACT
from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.compute import compute, concerns, concerns_some
from rtrec_ray.features.counted import EVENT_SCHEMA, counted, taken_back
from rtrec_ray.features.definition import PROFILE_FIELDS, Definitions, FeatureView
from rtrec_ray.features.merge import Value, merge
from rtrec_ray.features.profiles import attribute
from rtrec_ray.features.seen import MINUTE_MS


def minutes_around(span: Span) -> tuple[int, int]:
    """[from, to) of whole minutes around a span, ms: within its minute an event is told from its duplicates.

    >>> minutes_around(Span(from_ms=70_000, to_ms=130_000, as_of_ms=130_000))
    (60000, 180000)
    """
    return span.from_ms // MINUTE_MS * MINUTE_MS, -(-span.to_ms // MINUTE_MS) * MINUTE_MS


def recompute(
    definitions: Definitions,
    name: str,
    keys: Iterable[str],
    portions: Iterable[tuple[pl.DataFrame, pl.DataFrame]],
    *,
    span: Span,
) -> Mapping[str, Value | None]:
    """The values over the span of a view (its name, or "name@version") under some keys; None without data.

    `portions`: (events, profiles) of some whole minutes after another, which together are `minutes_around(span)`.
    Events: EVENT_SCHEMA with the retractions of these, in any order, duplicates included; profiles: PROFILE_SCHEMA,
    the versions of these events' users.
    """
    view, wanted = definitions.view(name), set(keys)
    rows: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for events, profiles in portions:
        chosen = counted_events(events, definitions).filter(concerns(view))
        tiles = compute(view, profiled(view, chosen, profiles), tile_ms=definitions.tile_ms)
        inside = tiles.filter(
            pl.col("key").is_in(wanted), pl.col("tile_start_ms") >= span.from_ms, pl.col("tile_start_ms") < span.to_ms
        )
        for key, start, state in inside.iter_rows():
            rows[key].append((start, state))
    return {key: merge(view, rows[key]) for key in wanted}


def counted_events(events: pl.DataFrame, definitions: Definitions) -> pl.DataFrame:
    """The events (EVENT_SCHEMA) that count in some view: of those with one name the first that came, unless it was
    taken back.
    """
    retraction = pl.col("event_type") == RETRACT
    found = counted(events.filter(~retraction), taken_back(events.filter(retraction)))
    return found.filter(concerns_some(definitions.views)).select(EVENT_SCHEMA.names())


def profiled(view: FeatureView, events: pl.DataFrame, profiles: pl.DataFrame) -> pl.DataFrame:
    """The events with their users' profiles (PROFILE_SCHEMA) at the time, null where the view does not ask for any."""
    if view.needs_profile:
        return attribute(events, profiles)
    return events.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in PROFILE_FIELDS)
