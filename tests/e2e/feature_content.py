"""What the feature stage left in PostgreSQL, as values that do not depend on how the work was cut into commits."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import numpy as np

from rtrec_ray.app.system import System
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.merge import merge
from rtrec_ray.postgres.connection import connect, transaction

_TILES = """
SELECT name, version, partition, key, tile_start_ms, state FROM features.tiles JOIN features.views USING (view_id)
"""
_POSITIONS = """
SELECT partition, topic, next_offset, max_ts_ms FROM meta.positions WHERE task = 'features' ORDER BY 1, 2
"""
_PROFILES = "SELECT user_id, ts_ms, country, gender, city, age_band, partition FROM features.profiles ORDER BY 1, 2"
_SEEN = "SELECT partition, minute_ms, hashes FROM features.seen"
_PLAIN = {
    "profiles": _PROFILES,
    "items": "SELECT item_id, ts_ms, item_type, category_id, title FROM features.items ORDER BY 1",
    "watermarks": "SELECT partition, watermark_ms FROM features.partitions ORDER BY 1",
    "positions": _POSITIONS,
}
_PROGRESS = "SELECT partition, watermark_ms, counts FROM meta.progress WHERE task = 'features' ORDER BY 1"

Tiles = dict[tuple[Any, ...], tuple[int, Any]]


def query(system: System, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    """The rows of a statement, in a session of its own."""
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        cursor.execute(statement, arguments or None)
        return cursor.fetchall() if cursor.description else []


def content(system: System) -> dict[str, object]:
    """Everything that a fault may not change."""
    return {
        "tiles": tiles(system),
        "seen": _seen(query(system, _SEEN)),
        "progress": [(partition, mark, _outcomes(counts)) for partition, mark, counts in query(system, _PROGRESS)],
        **{name: query(system, statement) for name, statement in _PLAIN.items()},
    }


def tiles(system: System) -> Tiles:
    """(view, version, partition, key, tile) → (number of events, value)."""
    rows = defaultdict(list)
    for name, version, partition, key, start, state in query(system, _TILES):
        rows[name, version, partition, key, start].append((start, state))
    return added_up(system.features, rows)


def added_up(definitions: Definitions, rows: dict[tuple[Any, ...], list[tuple[int, str]]]) -> Tiles:
    """The rows (tile_start_ms, state) of each place, whose first part is the view; without places of no event."""
    found = {place: (_events(states), merge(definitions.view(place[0]), states)) for place, states in rows.items()}
    return {place: (n, value) for place, (n, value) in found.items() if n}


def _events(states: Iterable[tuple[int, str]]) -> int:
    # A value alone would hide what is counted twice in a list without repeats, or taken back twice.
    return sum(json.loads(state)[0] for _, state in states)


def _seen(rows: Iterable[tuple[int, int, bytes]]) -> Counter[tuple[int, int, int]]:
    """(partition, minute, hash) → how often."""
    return Counter(
        (partition, minute, one)
        for partition, minute, hashes in rows
        for one in np.frombuffer(bytes(hashes), dtype="<u8").tolist()
    )


def _outcomes(counts: dict[str, int]) -> dict[str, int]:
    """How many rows were written says how the work was cut into commits, and nothing else."""
    return {name: n for name, n in counts.items() if name != "rows_written"}
