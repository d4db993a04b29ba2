"""The feature stage as a task: decode, take, append tiles; and the chores that one process does for all."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from actors.operator import BatchOutcome
from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.errors import ListsOvertaken, ServerUnavailable
from rtrec_ray.events import BEHAVIOR, ITEM, ITEM_SCHEMA, PROFILE, PROFILE_SCHEMA
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.features.profiles import newest_per_version
from rtrec_ray.features.seen import Seen
from rtrec_ray.features.stream import FeatureStream, tiles_of
from rtrec_ray.kafka.base import RecordBatch
from rtrec_ray.kafka.codec import LatestMs, decode
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.stores.features.followed import LONGEST_PAUSE_S
from rtrec_ray.stores.features.lists import TopLists
from rtrec_ray.stores.features.store import FeatureKeeping, FeatureWriter, Live, TaskOutput

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperOptions:
    """`lists_every_s`, `expiry_every_s`: wall time between two rebuilds of the top lists, two looks for old tiles.

    `busy_share`: rebuilds come more rarely where they would take more of a core than that, but for LONGEST_PAUSE_S.
    """

    lists_every_s: float = 1.0
    expiry_every_s: float = 30.0
    busy_share: float = 0.25


class FeatureOperator:
    """Operator of one partition of behaviour, with the profiles of its users and a share of the catalogue."""

    topics = (BEHAVIOR, PROFILE, ITEM)
    timed = (BEHAVIOR,)
    preload = (PROFILE, ITEM)

    def __init__(
        self,
        partition: int,
        *,
        store: FeatureWriter,
        latest_ms: LatestMs,
        watermark: WatermarkOptions,
    ) -> None:
        self._partition = partition
        self._store = store
        self._latest_ms = latest_ms
        self._disorder_ms = watermark.disorder_ms
        self._profiles: list[pl.DataFrame] = []
        self._items: list[pl.DataFrame] = []
        self._forgotten_to_ms: int | None = None
        self._read_upto: Mapping[str, int] = {}
        self._live = Live(definitions=store.definitions, change=0)
        self._begun: Live | None = None
        self.tiles: Mapping[str, pl.DataFrame] | None = None  # of the commit that is being made
        self._differed: Counter[str] = Counter()
        self._stream = FeatureStream(
            self._live.definitions, disorder_ms=self._disorder_ms, seen=Seen(), profiles=PROFILE_SCHEMA.to_frame()
        )

    def restore(self, cursor: Cursor, *, committed: Mapping[str, int]) -> Mapping[str, int]:
        """Load what is live, what was counted and the profiles; read on where the last commit ended."""
        self._read_upto = dict(committed)
        state = self._store.load(cursor, partition=self._partition)
        seen = Seen()
        seen.load(state.seen)
        self._live = self._begin(cursor, watermark_ms=state.watermark_ms)  # last, for it may lock what all others need
        self._stream = FeatureStream(
            self._live.definitions,
            disorder_ms=self._disorder_ms,
            seen=seen,
            profiles=state.profiles,
            watermark_ms=state.watermark_ms,
            seen_from_ms=state.seen_from_ms,
        )
        return committed

    def apply(self, batch: RecordBatch) -> BatchOutcome:
        """Take records of one topic."""
        columns = self._stream.columns if batch.topic == BEHAVIOR else None
        decoded = decode(batch, latest_ms=self._latest_ms, columns=columns)
        self._read_upto = {**self._read_upto, batch.topic: batch.next_offset}
        dead = Counter(dead=len(decoded.dead))
        if batch.topic == PROFILE:
            profiles = decoded.frame.select(PROFILE_SCHEMA.names())
            self._profiles.append(profiles)
            return BatchOutcome(counts=dead + self._stream.take_profiles(profiles))
        if batch.topic == ITEM:
            self._items.append(decoded.frame.select(ITEM_SCHEMA.names()))
            return BatchOutcome(counts=dead + Counter(item=decoded.frame.height))
        counts = Counter({"in": len(batch)}) + dead + self._stream.take(decoded.frame)
        return BatchOutcome(max_ts_ms=decoded.frame["ts"].max(), counts=counts)  # type: ignore[arg-type]  # Int64

    def advance(self, *, watermark_ms: int) -> Mapping[str, int]:
        """Event time has come to `watermark_ms`: nothing is written for it, reads merge what the window covers."""
        self._stream.advance(watermark_ms=watermark_ms)
        return {}

    def rest(self) -> bool:
        """See Operator: nobody asks."""
        return False

    def pending_rows(self) -> int:
        """Events, versions of profiles and items waiting for a commit."""
        return self._stream.pending() + sum(frame.height for frame in [*self._profiles, *self._items])

    def open_rows(self) -> int:
        """Nothing waits for event time: a tile is written with the commit that touched it."""
        return 0

    @staticmethod
    def prepare(operators: Sequence[FeatureOperator]) -> None:
        """Compute the tiles of what came since the last commit, those of all at once."""
        for each, tiles in zip(operators, tiles_of([each.matched() for each in operators]), strict=True):
            each.tiles = tiles

    def matched(self) -> FeatureStream:
        """The stream, with what was taken back of what waits for the same commit matched."""
        self._differed = self._stream.match()
        return self._stream

    def write(self, cursor: Cursor) -> Mapping[str, int]:
        """Append the tiles of what came since the last commit."""
        if self.tiles is None:
            self.prepare([self])
        self._stream.forget()
        to_ms = self._stream.forgettable_to_ms()
        output = TaskOutput(
            partition=self._partition,
            watermark_ms=self._stream.watermark_ms,
            next_offset=self._read_upto.get(BEHAVIOR, 0),
            profile_offset=self._read_upto.get(PROFILE, 0),
            item_offset=self._read_upto.get(ITEM, 0),
            tiles=self.tiles or {},
            numbers=self._live.numbers,
            seen=self._stream.seen.new(),
            seen_to_ms=None if to_ms == self._forgotten_to_ms else to_ms,
            seen_from_ms=self._stream.seen_from_ms(),
            profiles=newest_per_version(pl.concat(self._profiles)) if self._profiles else None,
            items=_newest_items(pl.concat(self._items)) if self._items else None,
        )
        appended = self._store.append(cursor, output)
        self._forgotten_to_ms = to_ms
        # What is written here was computed by what was live so far; with the next event the new views begin.
        changed = appended.change != self._live.change
        self._begun = self._begin(cursor, watermark_ms=self._stream.watermark_ms) if changed else None
        return {"rows_written": appended.rows, **self._differed}

    def look(self, cursor: Cursor) -> bool:
        """Whether other views are live."""
        return self._store.changed(cursor, since=self._live.change)

    def committed(self) -> None:
        """What `write` wrote is durable."""
        self._stream.settle()
        self.tiles = None
        self._profiles, self._items = [], []
        if self._begun is not None:
            self._live, self._begun = self._begun, None
            self._stream.redefine(self._live.definitions)

    def _begin(self, cursor: Cursor, *, watermark_ms: int | None) -> Live:
        # No event that came so far is newer than that.
        newest_ms = None if watermark_ms is None else watermark_ms + self._disorder_ms
        return self._store.begin(
            cursor,
            partition=self._partition,
            next_offset=self._read_upto.get(BEHAVIOR, 0),
            complete_from_ms=None if newest_ms is None else newest_ms + 1,
        )


class FeatureKeeper:
    """Rebuilds the top lists for serving and drops old tiles, on timers. One process does it for all partitions."""

    def __init__(self, store: FeatureKeeping, *, clock: Clock, options: KeeperOptions) -> None:
        self._store = store
        self._clock = clock
        self._options = options

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; while PostgreSQL is away, and after another keeper wrote, begin anew."""
        wait_s, looked_s, lists = 0.0, -math.inf, TopLists(self._store)
        while not stop.wait(wait_s):
            started_s = monotonic_s()
            try:
                if self._store.refresh():
                    lists = TopLists(self._store)
                lists.rebuild(now_ms=self._clock.now_ms())
                if started_s - looked_s >= self._options.expiry_every_s:
                    looked_s = started_s
                    log.info("tiles_expired", extra={"hours": self._store.drop_expired()})
            except (ServerUnavailable, ListsOvertaken) as error:
                log.warning("keeper_waits", extra={"cause": error.line()})
                lists = TopLists(self._store)
            busy_s = (monotonic_s() - started_s) / self._options.busy_share
            wait_s = max(self._options.lists_every_s, min(busy_s, LONGEST_PAUSE_S))


def _newest_items(items: pl.DataFrame) -> pl.DataFrame:
    """One row per item, the newest version; of equally new ones the last that came."""
    return items.sort("ts", maintain_order=True).unique(subset="item_id", keep="last", maintain_order=True)
