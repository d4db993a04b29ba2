"""Housekeeping of the history: many small files of an hour become one, and what nobody reads is removed.

A file that was replaced stays for a while, since readers may hold its name. So does one without a row: it may be
waiting for its commit.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import polars as pl

from rtrec_ray.events import SCHEMAS
from rtrec_ray.stores.history.store import HistoryFile, HistoryFiles, HistoryManifest

log = logging.getLogger(__name__)

_LOOKUP = 1_000  # paths asked about at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TidyOptions:
    """What is tidied. Sizes in bytes, times in s of wall time.

    `min_files`: small files of one partition and hour that are worth a compaction; `small_bytes`: larger ones stay as
    they are; `read_bytes`: how much one compaction reads at most; `readers_s`: how long a replaced file stays;
    `orphans_s`: how long a file without a row stays, longer than any writer may be stopped before its commit.
    """

    min_files: int = 8
    small_bytes: int = 16 << 20
    read_bytes: int = 64 << 20
    readers_s: float = 3_600.0
    orphans_s: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidied:
    """Numbers of files: small ones replaced, replaced ones removed, orphans removed."""

    replaced: int
    removed: int
    orphans: int


def tidy(files: HistoryFiles, manifest: HistoryManifest, options: TidyOptions) -> Tidied:
    """Compact and remove over all topics. May run beside writers, readers and itself. Raises StoreUnavailable."""
    done = Tidied(
        replaced=sum(
            _compact(files, manifest, group) for topic in SCHEMAS for group in groups(manifest.files(topic), options)
        ),
        removed=_remove_replaced(files, manifest, options),
        orphans=sum(_remove_orphans(files, manifest, topic, options) for topic in SCHEMAS),
    )
    log.info("history_tidied", extra={"replaced": done.replaced, "removed": done.removed, "orphans": done.orphans})
    return done


def groups(files: Sequence[HistoryFile], options: TidyOptions) -> list[list[HistoryFile]]:
    """Which files become one: small, of the same topic, partition and hour, and not too much at a time."""
    alike: defaultdict[tuple[object, ...], list[HistoryFile]] = defaultdict(list)
    for file in files:
        if file.byte_count < options.small_bytes:
            alike[file.topic, file.partition, file.event_date, file.event_hour].append(file)
    return [group for found in alike.values() for group in _portions(found, options) if len(group) >= options.min_files]


def _portions(files: Sequence[HistoryFile], options: TidyOptions) -> Iterator[list[HistoryFile]]:
    portion: list[HistoryFile] = []
    size = 0
    for file in sorted(files, key=lambda file: file.min_offset):
        if portion and size + file.byte_count > options.read_bytes:
            yield portion
            portion, size = [], 0
        portion.append(file)
        size += file.byte_count
    yield portion


def _compact(files: HistoryFiles, manifest: HistoryManifest, group: Sequence[HistoryFile]) -> int:
    first = group[0]
    frame = pl.DataFrame(pl.from_arrow(files.open(first.topic, group).to_table())).sort("offset")
    whole = files.write(first.topic, frame, partition=first.partition)
    # When another compaction was faster, `whole` stays behind without a row.
    return len(group) if manifest.replace(group, whole) else 0


def _remove_replaced(files: HistoryFiles, manifest: HistoryManifest, options: TidyOptions) -> int:
    paths = manifest.replaced(grace_s=options.readers_s)
    # The files go first: a row without a file is removed again next time, a file without a row would wait for long.
    files.remove(paths)
    manifest.forget(paths)
    return len(paths)


def _remove_orphans(files: HistoryFiles, manifest: HistoryManifest, topic: str, options: TidyOptions) -> int:
    paths, count = files.paths(topic, min_age_s=options.orphans_s), 0
    while portion := list(islice(paths, _LOOKUP)):
        orphans = sorted(set(portion) - manifest.known(portion))
        files.remove(orphans)
        count += len(orphans)
    return count
