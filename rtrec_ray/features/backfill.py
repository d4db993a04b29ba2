"""The tiles of a new view out of events that came before it began: what the stream would have written, had it known.

The stream counts in a view from an offset of each partition on; here is what lies before. Which of several events with
one name counts is decided as the stream does, among those before the offsets: it knows them all and refuses the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from rtrec_ray.features.compute import TILE_SCHEMA, compute
from rtrec_ray.features.definition import Definitions, FeatureView
from rtrec_ray.features.past import counted_events, profiled
from rtrec_ray.features.seen import MINUTE_MS

SLICE_MS = 10 * MINUTE_MS
"""Event time that is computed and committed at once."""


def slices(from_ms: int, to_ms: int) -> Iterator[int]:
    """The starts of the slices that hold [from_ms, to_ms), ms. They are the same whenever it is asked.

    >>> list(slices(599_999, 1_200_001))
    [0, 600000, 1200000]
    """
    yield from range(from_ms // SLICE_MS * SLICE_MS, to_ms, SLICE_MS)


def tiles_before(
    view: FeatureView,
    events: pl.DataFrame,
    profiles: pl.DataFrame,
    *,
    definitions: Definitions,
    starts: Mapping[int, int],
    from_ms: int,
) -> dict[int, pl.DataFrame]:
    """Partition → tile rows (TILE_SCHEMA) of its events of the slice at `from_ms` that came before its start.

    `events`: EVENT_SCHEMA, of whole minutes, with the retractions of these, in any order, duplicates included.
    `profiles`: PROFILE_SCHEMA, the versions of these events' users. `starts`: partition → offset.
    """
    upto = pl.DataFrame(list(starts.items()), schema={"partition": pl.Int32, "start": pl.Int64}, orient="row")
    before = events.join(upto, on="partition").filter(pl.col("offset") < pl.col("start"))
    # Among the retractions are those of other slices' events.
    counted = counted_events(before, definitions).filter(pl.col("ts") >= from_ms, pl.col("ts") < from_ms + SLICE_MS)
    found = {}
    for partition in starts:
        own = counted.filter(pl.col("partition") == partition)
        rows = compute(view, profiled(view, own, profiles), tile_ms=definitions.tile_ms)
        found[partition] = rows if rows.height else TILE_SCHEMA.to_frame()
    return found
