"""Which views are live, in PostgreSQL: what the stream computes and readers may ask for, whatever a file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from rtrec_ray.errors import DefinitionInvalid, LeaseHeld, UnknownView
from rtrec_ray.events import BEHAVIOR, PROFILE
from rtrec_ray.features.definition import NOT_BEGUN_MS, Definitions, FeatureView
from rtrec_ray.features.evolve import evolve
from rtrec_ray.postgres.connection import Cursor, streamed
from rtrec_ray.postgres.statements import load

_USERS_AT_ONCE: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveViews:
    """What is live. `view_ids`: view id ("name@version") → what stands for it in tables; `change`: its number."""

    definitions: Definitions
    view_ids: Mapping[str, int]
    change: int


def read_live(cursor: Cursor) -> LiveViews | None:
    """What is live now; None before anything was applied."""
    cursor.execute(_sql()["read_live"], {"not_begun_ms": NOT_BEGUN_MS})
    found = cursor.fetchall()
    if not found:
        return None
    tile_ms, horizon_ms, retention_ms, tiles_from_ms, change = found[0][:5]
    rows = [(view_id, _view(text), since_ms) for *_, view_id, text, since_ms in found if view_id is not None]
    definitions = Definitions(
        tile_ms=tile_ms,
        horizon_ms=horizon_ms,
        retention_ms=retention_ms,
        views=tuple(view for _, view, _ in rows),
        complete_from_ms={view.id: since_ms for _, view, since_ms in rows if since_ms is not None},
        tiles_from_ms=tiles_from_ms,
    )
    return LiveViews(definitions=definitions, view_ids={view.id: view_id for view_id, view, _ in rows}, change=change)


def evolved(cursor: Cursor, new: Definitions) -> Definitions:
    """What is live with the views of `new`. Raises DefinitionInvalid when they cannot be."""
    live = read_live(cursor)
    cursor.execute(_sql()["list_defined"])
    defined = {f"{name}@{version}": text for name, version, text in cursor.fetchall()}
    return evolve(None if live is None else live.definitions, new, defined=defined)


def apply_live(cursor: Cursor, new: Definitions) -> tuple[str, ...]:
    """Let the views of `new` be live, beside those that are; answers the ids of those that were not.

    Raises DefinitionInvalid when they cannot be.
    """
    sql = _sql()
    cursor.execute(sql["lock_settings"])
    both = evolved(cursor, new)
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
    return tuple(added)


def begin_views(cursor: Cursor, *, partition: int, next_offset: int, complete_from_ms: int | None) -> LiveViews:
    """What is live, and a start of this partition in each view that it has not begun. Its number rises only if that
    makes a view complete, so mostly with the last partition: whoever reads makes all copies anew then.

    Raises DefinitionInvalid before anything was applied.
    """
    sql = _sql()
    live = read_live(cursor)
    if live is None:
        raise DefinitionInvalid("no feature views were applied", mend="`rtrec up` or `rtrec features apply` does it")
    # In this order: a view that becomes live after it was read is none that lacks a start, and counts from later on.
    cursor.execute(sql["list_begun"], {"partition": partition})
    if set(live.view_ids.values()) <= {view_id for (view_id,) in cursor.fetchall()}:
        return live
    cursor.execute(sql["lock_settings"])  # who begins last must see all the others
    before = read_live(cursor)
    start = {"partition": partition, "next_offset": next_offset, "complete_from_ms": complete_from_ms}
    cursor.execute(sql["begin_views"], start)
    begun = read_live(cursor)
    assert begun is not None
    if begun == before:
        return begun
    cursor.execute(sql["note_change"])
    return replace(begun, change=begun.change + 1)


def drop_live(cursor: Cursor, view_id: str) -> None:
    """Let a version ("name@version") be live no longer, and forget its lists. Its tiles, which nobody reads any more,
    go with their hours: to delete millions of rows here would hold up who begins and who commits. Raises UnknownView.
    """
    sql = _sql()
    name, _, version = view_id.partition("@")
    cursor.execute(sql["lock_settings"])
    cursor.execute(sql["drop_view"], {"name": name, "version": int(version) if version.isdigit() else 0})
    row = cursor.fetchone()
    if row is None:
        live = read_live(cursor)
        known = ", ".join(sorted(live.view_ids)) if live is not None else "nothing"
        raise UnknownView(f'no view "{view_id}" is live; live are {known}', mend="name one of these, as NAME@VERSION")
    for statement in ("drop_round", "drop_lists"):  # in the order in which the keeper writes them
        cursor.execute(sql[statement], {"view_id": row[0]})
    cursor.execute(sql["note_change"])


def move_users(
    cursor: Cursor,
    *,
    partitions: int,
    partition_of: Callable[[int], int],
    ends_of: Callable[[str, int], Mapping[int, int]],
) -> None:
    """After partitions were added, let each user's profiles be where the user's events come from now.

    Which events came so far is then asked of all partitions, for the hashes do not tell whose they are; and first those
    of before come to where their logs end now (`unread`). `partition_of`: user → partition; `ends_of`: a topic, and a
    number of partitions → the end of each, asked when there are more. Raises LeaseHeld while the stage runs, which can
    only be with the old number.
    """
    sql = _sql()
    cursor.execute(sql["lock_partitions"])
    row = cursor.fetchone()
    if row is None or row[0] == partitions:
        return
    if row[0] is not None:
        _refuse_running(cursor, row[0], partitions)
        _move_profiles(cursor, partition_of)
        profiles = ends_of(PROFILE, row[0])
        for partition, end in ends_of(BEHAVIOR, row[0]).items():
            upto = {"next_offset": end, "profile_offset": profiles[partition]}
            cursor.execute(sql["put_unread"], {"partition": partition, **upto})
    cursor.execute(sql["put_partitions"], {"partitions": partitions})


def unread(cursor: Cursor, *, partition_of: Callable[[int], int]) -> dict[int, int]:
    """Partition → offset of behaviour to which it has to come, one after another, before all are read side by side:
    those that were not read to their ends when partitions were added.

    A copy of an event, or its retraction, may lie in another partition than the event. Read one after another, each
    knows what those before it have counted, and afterwards all know all: whichever comes first, the other is known.
    Versions of profiles that were read meanwhile come to where their users' events come from now (`partition_of`).
    """
    sql = _sql()
    cursor.execute(sql["lock_partitions"])
    left = read_unread(cursor)
    cursor.execute(sql["raise_moved"])
    if not left:
        cursor.execute(sql["forget_unread"])
        if cursor.rowcount:
            _move_profiles(cursor, partition_of)
    return left


def read_unread(cursor: Cursor) -> dict[int, int]:
    """What `unread` answers, for those who only look."""
    cursor.execute(_sql()["read_unread"])
    return dict(cursor.fetchall())


def _refuse_running(cursor: Cursor, before: int, after: int) -> None:
    cursor.execute(_sql()["list_running"])
    if cursor.fetchall():
        raise LeaseHeld(
            f"there are {after} partitions, and the stage features still runs with {before}",
            mend="`rtrec down` ends it (on a cluster of your own, end its actors); one that died is free after 10 s",
        )


def _move_profiles(cursor: Cursor, partition_of: Callable[[int], int]) -> None:
    sql = _sql()
    # Some at a time: each costs microseconds here, and a session of the pipeline ends when it is idle for seconds.
    for some in streamed(cursor, sql["list_profiled_users"], {}, rows_at_once=_USERS_AT_ONCE):
        users = [user for (user,) in some]
        cursor.execute(sql["move_profiles"], {"user_ids": users, "partitions": [partition_of(user) for user in users]})


def _view(definition: str) -> FeatureView:
    found: Any = msgspec.convert(msgspec.json.decode(definition)["view"], FeatureView)
    return found  # type: ignore[no-any-return]


def _sql() -> dict[str, str]:
    return load("rtrec_ray.stores.features", "live.sql")
