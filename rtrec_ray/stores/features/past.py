"""Events older than the tiles, out of the history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import polars as pl
import pyarrow.compute as pc

from rtrec_ray.errors import BeyondRetention
from rtrec_ray.events import BEHAVIOR, RETRACT
from rtrec_ray.features.counted import EVENT_SCHEMA, NAME_SCHEMA, PLACE, taken_back
from rtrec_ray.features.seen import MINUTE_MS
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import History, HistoryFile
from rtrec_ray.stores.static.postgres import PostgresStaticFeatures


class NotedRetractions(Protocol):
    """What the T+1 job has noted of retractions: StaticFeatures. Raises StoreUnavailable."""

    def noted_upto(self) -> Mapping[int, int]:
        """Partition → offset of behaviour below which every retraction is noted."""
        ...

    def taken_back(self, *, from_minute: int, to_minute: int) -> pl.DataFrame:
        """Names (NAME_SCHEMA) of the events of these minutes that were taken back.

        Raises BeyondRetention when some of these minutes are not kept any more.
        """
        ...


def past_of(uri: str, postgres: PostgresOptions) -> HistoryPast:
    """The history below `uri`, by the manifest in `postgres`."""
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=uri))
    manifest, noted = PostgresHistoryManifest(postgres), PostgresStaticFeatures(postgres)
    return HistoryPast(History(files, manifest), noted=noted, owned=(manifest, noted))


class Closes(Protocol):
    """Something with connections."""

    def close(self) -> None:
        """Give them back."""
        ...


class HistoryPast:
    """Past over the history's files. Without `noted` every later hour is looked through for retractions.

    `owned` is closed with it.
    """

    def __init__(
        self, history: History, *, noted: NotedRetractions | None = None, owned: Sequence[Closes] = ()
    ) -> None:
        self._history = history
        self._noted = noted
        self._owned = owned

    def close(self) -> None:
        """Close the connections of what it owns."""
        for each in self._owned:
            each.close()

    def behavior(self, *, from_ms: int, to_ms: int) -> Iterator[pl.DataFrame]:
        """See Past. Of a retraction that the T+1 job has noted only the name of what it takes back is here."""
        upto, names = self._known(from_ms=from_ms, to_ms=to_ms)
        files = self._history.files(BEHAVIOR, from_ms=from_ms)
        unnoted = [file for file in files if file.max_offset >= upto.get(file.partition, -1)]
        retractions = pl.concat([self._retractions(unnoted, from_ms=from_ms), _stand_ins(names)])
        return self._portions(retractions, from_ms=from_ms, to_ms=to_ms)

    def below(self, offsets: Mapping[int, int], *, from_ms: int, to_ms: int) -> Iterator[pl.DataFrame]:
        """Events with ts in [from_ms, to_ms), and of all retractions of them at least those below these offsets
        (partition → offset), as they came: EVENT_SCHEMA, in any order, some whole minutes after another.
        """
        files = self._history.files(BEHAVIOR, from_ms=from_ms)
        before = [file for file in files if file.min_offset < offsets.get(file.partition, 0)]
        return self._portions(self._retractions(before, from_ms=from_ms), from_ms=from_ms, to_ms=to_ms)

    def until(self, *, from_ms: int, to_ms: int, columns: Sequence[str]) -> pl.DataFrame:
        """Events and retractions with ts in [from_ms, to_ms), and nothing later. `columns`: of BEHAVIOR_SCHEMA;
        `partition`, `offset` and `kafka_ts` beside them.
        """
        wanted = [*columns, *PLACE]
        found = self._history.scan(BEHAVIOR, from_ms=from_ms, to_ms=to_ms, columns=wanted)
        return pl.concat([EVENT_SCHEMA.to_frame().select(wanted), *found])

    def files(self, *, from_ms: int, to_ms: int) -> tuple[HistoryFile, ...]:
        """The files that may hold events of that time."""
        return self._history.files(BEHAVIOR, from_ms=from_ms, to_ms=to_ms)

    def _portions(self, retractions: pl.DataFrame, *, from_ms: int, to_ms: int) -> Iterator[pl.DataFrame]:
        minute_ms = taken_back(retractions)["minute"] * MINUTE_MS
        of_time = self._history.portions(
            BEHAVIOR, from_ms=from_ms, to_ms=to_ms, step_ms=MINUTE_MS, columns=EVENT_SCHEMA.names()
        )
        for start_ms, end_ms, found in of_time:
            events = found.filter(pl.col("event_type") != RETRACT)
            yield pl.concat([events, retractions.filter(minute_ms.is_between(start_ms, end_ms, closed="left"))])

    def _known(self, *, from_ms: int, to_ms: int) -> tuple[Mapping[int, int], pl.DataFrame]:
        """Partition → offset below which the retractions of these times are known by name, and the names."""
        if self._noted is None:
            return {}, NAME_SCHEMA.to_frame()
        # First up to where all is noted, then what is noted: a run that ends in between adds names, and takes away all
        # of a day or none.
        upto = self._noted.noted_upto()
        try:
            return upto, self._noted.taken_back(from_minute=from_ms // MINUTE_MS, to_minute=-(-to_ms // MINUTE_MS))
        except BeyondRetention:
            return {}, NAME_SCHEMA.to_frame()

    def _retractions(self, files: Sequence[HistoryFile], *, from_ms: int) -> pl.DataFrame:
        # They are few, and the column that tells them compresses to almost nothing.
        where = (pc.field("event_type") == RETRACT) & (pc.field("ts") >= from_ms)
        return self._history.frame(BEHAVIOR, files, columns=EVENT_SCHEMA.names(), where=where)


def _stand_ins(names: pl.DataFrame) -> pl.DataFrame:
    """Retractions that carry no more of an event than what names it: EVENT_SCHEMA."""
    carried = pl.struct("event_id", "user_id", ts=pl.col("minute") * MINUTE_MS).struct.json_encode()
    rows = names.select(event_type=pl.lit(RETRACT), retracts=carried)
    return pl.concat([EVENT_SCHEMA.to_frame(), rows], how="diagonal")
