"""The feature store as a port: what is written to it and read of it, whichever adapter answers.

A task writes in its own transaction and passes the cursor; everybody else only reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
import polars as pl

from rtrec_ray.events import CatalogItem, ProfileVersion
from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.definition import Definitions, FeatureView
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import Value
from rtrec_ray.features.sliding import Changes, Row
from rtrec_ray.postgres.connection import Cursor

HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """What the commits of one source partition left. `seen`: (minute_ms, packed hashes), by minute, to be read once and
    within the transaction; times in ms UTC.

    `seen_from_ms`: of older events it is not known any more whether they came.
    """

    watermark_ms: int | None
    seen: Iterable[tuple[int, bytes]]
    profiles: pl.DataFrame  # PROFILE_SCHEMA
    seen_from_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutput:
    """What one commit adds for one source partition.

    `next_offset`: that of behaviour, after the last record behind this; it never falls, and rises with each commit that
    has tiles; `profile_offset`, `item_offset`: likewise of these topics. `tiles`: view id → rows (TILE_SCHEMA);
    `numbers`: those of the views that they were computed for (`Live`), None for what is live now. `seen` up to the
    minute `seen_to_ms` is forgotten.
    """

    partition: int
    watermark_ms: int | None
    next_offset: int = 0
    profile_offset: int = 0
    item_offset: int = 0
    tiles: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    numbers: Mapping[str, int] | None = None
    seen: Sequence[tuple[int, bytes]] = ()
    seen_to_ms: int | None = None
    seen_from_ms: int | None = None
    profiles: pl.DataFrame | None = None
    items: pl.DataFrame | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What an `append` did. `rows`: of tiles; `change`: the number of what is live (`Live`)."""

    rows: int
    change: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The views to compute. `change` rises whenever they, or the times from which they are complete, are others.

    `numbers`: view id → what stands for it in the tables; None where nothing does. A version that was dropped and
    applied again has another one.
    """

    definitions: Definitions
    change: int
    numbers: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRows:
    """Tile rows by view id. `offsets`: partition → behaviour offset behind which the next are.

    `whole`: there are no other rows than these, whatever was read before.
    """

    offsets: Mapping[int, int]
    rows: Mapping[str, Sequence[Row]]
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRound:
    """New values of a cached view's lists. `number`: of the round, one more than that of the lists which they change;
    `whole`: there are no other lists than these.
    """

    view: FeatureView
    number: int
    changes: Changes
    offsets: Mapping[int, int]
    whole: bool


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One value to read: of which view, under which key, out of which tiles."""

    view: FeatureView
    key: ViewKey
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPoint:
    """What is behind the values of one view: of each partition the events below its behaviour offset, in the window
    that ends at `as_of_ms` (`Window.now`). A partition that is missing has none. `version`: of the view.
    """

    as_of_ms: int
    offsets: Mapping[int, int]
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPoint:
    """What is behind profiles or items: of each partition the versions below its offset of their topic; of profiles
    those that held at `as_of_ms`. A partition that is missing has none.
    """

    offsets: Mapping[int, int]
    as_of_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilesRead:
    """Of each known user the newest profile that held, and what is behind them; None before the stage has said so."""

    profiles: Mapping[int, ProfileVersion]
    point: VersionPoint | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueRead:
    """All items by ascending id, each in its newest version, and what is behind them, as `ProfilesRead` has it."""

    items: Sequence[CatalogItem]
    point: VersionPoint | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Values of now, None for a key without data; and view name → what is behind its values."""

    values: Mapping[ViewKey, Value | None]
    points: Mapping[str, ReadPoint]


class Past(Protocol):
    """Events older than the tiles, out of the history."""

    def behavior(self, *, from_ms: int, to_ms: int) -> Iterator[pl.DataFrame]:
        """Accepted events with ts in [from_ms, to_ms), whole minutes, some of these after another, so that memory is
        bounded: EVENT_SCHEMA, in any order, with all retractions of them, however late. Of a late one there may be no
        more than the name (NAME_SCHEMA) of what it takes back.
        """
        ...


class ProfileSource(Protocol):
    """Where profiles are read, with what is live."""

    @property
    def definitions(self) -> Definitions:
        """The views that are live."""
        ...

    def profile_versions(self, user_ids: Sequence[int]) -> pl.DataFrame:
        """All versions of these users' profiles, (n, PROFILE_SCHEMA). Raises StoreUnavailable."""
        ...


def profiles_of(source: ProfileSource, view: FeatureView, events: pl.DataFrame) -> pl.DataFrame:
    """The versions (PROFILE_SCHEMA) of these events' users; none of a view that does not ask for them."""
    return source.profile_versions(events["user_id"].unique().to_list() if view.needs_profile else ())


class FeatureReader(Protocol):
    """Reads values, profiles and the catalogue. Safe to share between threads."""

    @property
    def definitions(self) -> Definitions:
        """The views that it reads."""
        ...

    def read(self, asks: Sequence[ViewKey], *, now_ms: int, cached: bool) -> Reading:
        """The values of now, the open tile included, with what is behind them: all of one moment, in one round trip.

        `cached`: lists of the `cached` views as of their last rebuild, for serving. Such a list is handed to all who
        read it until it changes, so nobody may alter it. Raises UnknownView, StoreUnavailable.
        """
        ...

    def get(
        self, asks: Sequence[ViewKey], *, as_of_ms: int | None, now_ms: int, cached: bool = False
    ) -> dict[ViewKey, Value | None]:
        """The values, None for a key without data.

        `as_of_ms` None is now, as `read` has it; a time is floored to the tile, and one ahead of the watermark neither
        waits nor fails. Raises UnknownView, BeyondRetention, HistoryBehind, StoreUnavailable.
        """
        ...

    def profiles(self, user_ids: Iterable[int], *, as_of_ms: int) -> ProfilesRead:
        """Of each known user the newest profile with ts ≤ `as_of_ms`; of one moment. Raises StoreUnavailable."""
        ...

    def items(self, item_ids: Iterable[int]) -> dict[int, CatalogItem]:
        """Of each known item the newest version. Raises StoreUnavailable."""
        ...

    def catalogue(self) -> CatalogueRead:
        """All items, of one moment. Raises StoreUnavailable."""
        ...


class FeatureWriter(Protocol):
    """A task's side of the store, inside the task's transactions."""

    @property
    def definitions(self) -> Definitions:
        """What it was made with, before `begin` says what is live."""
        ...

    def apply(self, cursor: Cursor) -> tuple[str, ...]:
        """Let the definitions it was made with be live, beside all that are; answers the views ("name@version") that
        were not.

        Raises DefinitionInvalid when a version that exists means something else.
        """
        ...

    def begin(self, cursor: Cursor, *, partition: int, next_offset: int, complete_from_ms: int | None) -> Live:
        """What is live. In views that the partition has not begun it begins at this offset of behaviour; they have all
        events from `complete_from_ms` on (None: always), once every partition has begun them.
        """
        ...

    def load(self, cursor: Cursor, *, partition: int) -> TaskState:
        """What the commits so far left of a source partition."""
        ...

    def changed(self, cursor: Cursor, *, since: int) -> bool:
        """Whether what is live has another number."""
        ...

    def append(self, cursor: Cursor, output: TaskOutput) -> Appended:
        """Add what a commit brings."""
        ...


class FeatureKeeping(Protocol):
    """What has to be done now and then, by one process, in transactions of its own."""

    @property
    def definitions(self) -> Definitions:
        """The views that are live, as far as `refresh` knows."""
        ...

    def refresh(self) -> bool:
        """Take up what is live; whether that is another definition than before. Raises StoreUnavailable."""
        ...

    def list_rows(self, *, after: Mapping[int, int] | None, from_ms: int) -> ListRows:
        """Tile rows of the `cached` views with start ≥ `from_ms`, that were written behind these offsets (partition →
        offset; all commits of a partition that is missing); or all there are, as when it is None, where too much was
        written since. Raises StoreUnavailable.
        """
        ...

    def list_rounds(self) -> Mapping[str, int]:
        """View id → number of the last round of its lists; a view that is missing had none. Raises StoreUnavailable."""
        ...

    def put_lists(self, rounds: Sequence[ListRound]) -> None:
        """Replace what changed of the lists, all at once; rounds of one view follow one another.

        Raises ListsOvertaken and changes nothing where the last round is not the one before, and StoreUnavailable.
        """
        ...

    def drop_view(self, view_id: str) -> None:
        """Let a version ("name@version") be live no longer; nobody reads its values again. Raises UnknownView."""
        ...

    def drop_expired(self) -> int:
        """Let retention follow the tiles and the history, and drop the hours of tiles beyond it; answers how many went.

        Only from then on are reads of these times out of the history. Raises StoreUnavailable.
        """
        ...


class FeatureStore(FeatureReader, FeatureWriter, FeatureKeeping, Protocol):
    """All of it."""
