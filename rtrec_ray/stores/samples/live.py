"""Which definitions of samples hold, in PostgreSQL: what the stream labels by, whatever a file says."""

from __future__ import annotations

from dataclasses import dataclass

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.samples.definition import SampleDefinition, from_text
from rtrec_ray.samples.timeline import ALWAYS_MS, Applied, Timeline
from rtrec_ray.stores.samples.statements import one, rows, sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What applying a definition does. `from_ms`: the event time (ms UTC) of the first impressions that it holds for;
    `added`: whether it was not applied before.
    """

    version: int
    from_ms: int
    added: bool


def read_timeline(cursor: Cursor) -> Timeline | None:
    """The definitions that hold; None before one was applied."""
    entries = [Applied(definition=from_text(text), from_ms=ms) for text, ms in rows(cursor, "read_definitions")]
    return Timeline(entries=tuple(entries)) if entries else None


def apply_definition(cursor: Cursor, new: SampleDefinition, *, dry_run: bool = False) -> Change:
    """Let `new` hold for impressions newer than all that were committed. Raises DefinitionInvalid when it cannot.

    Whoever commits samples shares a lock on the settings from before the first decision to the end, so nothing newer
    than the start was decided by another definition, and reading the log again decides the same.
    """
    rows(cursor, "lock_settings")
    old = read_timeline(cursor)
    (newest_ms,) = one(cursor, "read_newest")
    start_ms = ALWAYS_MS if old is None else (newest_ms if newest_ms is not None else ALWAYS_MS) + 1
    timeline = Timeline.of(new) if old is None else old.applied(new, from_ms=start_ms)
    added = old is None or timeline != old
    held = next(each for each in timeline.entries if each.definition.version == new.version)
    if added and not dry_run:
        row = {"version": new.version, "definition": new.text(), "from_ms": held.from_ms}
        cursor.execute(sql("add_definition"), row)
    return Change(version=new.version, from_ms=held.from_ms, added=added)


def enter_definition(cursor: Cursor, definition: SampleDefinition) -> Change:
    """Apply what a starting system's file says, unless something newer was applied while it ran.

    Raises DefinitionInvalid when the file's version is already defined otherwise.
    """
    old = read_timeline(cursor)
    if old is not None and definition.version < old.newest.version:
        if definition not in [each.definition for each in old.entries]:
            raise DefinitionInvalid(
                f"version {definition.version} of samples is older than {old.newest.version}, which holds",
                mend="raise the version in the file",
            )
        return Change(version=old.newest.version, from_ms=old.entries[-1].from_ms, added=False)
    return apply_definition(cursor, definition)


def enter_partitions(cursor: Cursor, partitions: int) -> None:
    """Nothing is complete before these partitions are; when there are more than before, keys may lie in two of them."""
    cursor.execute(sql("ensure_completeness"), {"partitions": list(range(partitions))})
    cursor.execute(sql("put_partitions"), {"partitions": partitions})
