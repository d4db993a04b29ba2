"""Which views are live, in PostgreSQL: what the stream computes and readers may ask for, whatever a file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rtrec_ray.errors import DefinitionInvalid, UnknownView
from rtrec_ray.features.definition import NOT_BEGUN_MS, Definitions, FeatureView
from rtrec_ray.features.evolve import evolve
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.statements import load


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveViews:
    """What is live. `view_ids`: view id ("name@version") → what stands for it in tables; `change`: its number."""

    definitions: Definitions
    view_ids: Mapping[str, int]
    change: int


def read_live(cursor: Cursor) -> LiveViews | None:
    """What is live now; None before anything was applied."""
    sql = _sql()
    cursor.execute(sql["read_settings"])
    row = cursor.fetchone()
    if row is None:
        return None
    tile_ms, horizon_ms, retention_ms, tiles_from_ms, change = row
    cursor.execute(sql["read_live"], {"not_begun_ms": NOT_BEGUN_MS})
    rows = [(view_id, _view(definition), since_ms) for view_id, definition, since_ms in cursor.fetchall()]
    definitions = Definitions(
        tile_ms=tile_ms,
        horizon_ms=horizon_ms,
        retention_ms=retention_ms,
        views=tuple(view for _, view, _ in rows),
        complete_from_ms={view.id: since_ms for _, view, since_ms in rows if since_ms is not None},
        tiles_from_ms=tiles_from_ms,
    )
    return LiveViews(definitions=definitions, view_ids={view.id: view_id for view_id, view, _ in rows}, change=change)


def apply_live(cursor: Cursor, new: Definitions) -> tuple[str, ...]:
    """Let the views of `new` be live, beside those that are; answers the ids of those that were not.

    Raises DefinitionInvalid when they cannot be.
    """
    sql = _sql()
    cursor.execute(sql["lock_settings"])
    live = read_live(cursor)
    both = evolve(None if live is None else live.definitions, new)
    times = {"tile_ms": both.tile_ms, "horizon_ms": both.horizon_ms, "retention_ms": both.retention_ms}
    cursor.execute(sql["put_settings"], times)
    added = []
    for view in both.views:
        text = both.text(view)
        cursor.execute(sql["add_view"], {"name": view.name, "version": view.version, "definition": text})
        if cursor.rowcount:
            added.append(view.id)
    if added:
        cursor.execute(sql["note_change"])
    _check_texts(cursor, both)
    return tuple(added)


def begin_views(cursor: Cursor, *, partition: int, next_offset: int, complete_from_ms: int | None) -> LiveViews:
    """What is live, and a start of this partition in each view that it has not begun. Its number rises only if that
    makes a view complete, so mostly with the last partition: whoever reads makes all copies anew then.

    Raises DefinitionInvalid before anything was applied.
    """
    sql = _sql()
    start = {"partition": partition, "next_offset": next_offset, "complete_from_ms": complete_from_ms}
    cursor.execute(sql["lock_to_begin"], start)
    if cursor.rowcount:
        before = read_live(cursor)
        cursor.execute(sql["begin_views"], start)
        if read_live(cursor) != before:
            cursor.execute(sql["note_change"])
    live = read_live(cursor)
    if live is None:
        raise DefinitionInvalid("no feature views were applied", mend="`rtrec up` or `rtrec features apply` does it")
    return live


def drop_live(cursor: Cursor, view_id: str) -> None:
    """Let a version ("name@version") be live no longer, and forget its values. Raises UnknownView."""
    sql = _sql()
    name, _, version = view_id.partition("@")
    cursor.execute(sql["lock_settings"])
    cursor.execute(sql["drop_view"], {"name": name, "version": int(version) if version.isdigit() else 0})
    row = cursor.fetchone()
    if row is None:
        live = read_live(cursor)
        known = ", ".join(sorted(live.view_ids)) if live is not None else "nothing"
        raise UnknownView(f'no view "{view_id}" is live; live are {known}', mend="name one of these, as NAME@VERSION")
    for statement in ("drop_tiles", "drop_sizes", "drop_lists", "drop_round"):
        cursor.execute(sql[statement], {"view_id": row[0]})
    cursor.execute(sql["note_change"])


def move_users(
    cursor: Cursor,
    *,
    partitions: int,
    partition_of: Callable[[int], int],
    ends_of: Callable[[int], Mapping[int, int]],
) -> None:
    """After partitions were added, let each user's profiles be where the user's events come from now.

    Which events came so far is then asked of all partitions, for the hashes do not tell whose they are; and first those
    of before come to where their logs end now (`unread`). `partition_of`: user → partition; `ends_of`: a number of
    partitions → the end of each one's behaviour, asked when there are more. No task of the old number may be running.
    """
    sql = _sql()
    cursor.execute(sql["lock_partitions"])
    row = cursor.fetchone()
    if row is None or row[0] == partitions:
        return
    if row[0] is not None:
        cursor.execute(sql["list_profiled_users"])
        users = [user for (user,) in cursor.fetchall()]
        moved = {"user_ids": users, "partitions": [partition_of(user) for user in users]}
        cursor.execute(sql["move_profiles"], moved)
        ends = ends_of(row[0])
        cursor.execute(sql["put_unread"], {"partitions": list(ends), "offsets": list(ends.values())})
    cursor.execute(sql["put_partitions"], {"partitions": partitions})


def unread(cursor: Cursor) -> dict[int, int]:
    """Partition → offset of behaviour to which it has to come, one after another, before all are read side by side:
    those that were not read to their ends when partitions were added.

    A copy of an event, or its retraction, may lie in another partition than the event. Read one after another, each
    knows what those before it have counted, and afterwards all know all: whichever comes first, the other is known.
    """
    sql = _sql()
    cursor.execute(sql["lock_partitions"])
    left = read_unread(cursor)
    cursor.execute(sql["raise_moved"])
    if not left:
        cursor.execute(sql["forget_unread"])
    return left


def read_unread(cursor: Cursor) -> dict[int, int]:
    """What `unread` answers, for those who only look."""
    cursor.execute(_sql()["read_unread"])
    return dict(cursor.fetchall())


def _check_texts(cursor: Cursor, both: Definitions) -> None:
    # A version that was live before this table told so has its definition still.
    cursor.execute(_sql()["list_views"])
    known = {f"{name}@{version}": text for _, name, version, text, _ in cursor.fetchall()}
    for view in both.views:
        if known[view.id] != both.text(view):
            raise DefinitionInvalid(
                f"{view.name} version {view.version} is already defined otherwise", mend="raise its version"
            )


def _view(definition: str) -> FeatureView:
    found: Any = msgspec.convert(msgspec.json.decode(definition)["view"], FeatureView)
    return found  # type: ignore[no-any-return]


def _sql() -> dict[str, str]:
    return load("rtrec_ray.stores.features", "live.sql")
