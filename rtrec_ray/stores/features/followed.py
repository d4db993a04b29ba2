"""A feature store that can be followed: what it has that a reader with a copy of its own has not yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from rtrec_ray.features.merge import Value
from rtrec_ray.features.sliding import Row
from rtrec_ray.stores.features.store import FeatureReader, ReadPoint

LOGGED_S: Final = 60
"""How long a follower may be away, in wall time, before it has to read its windows anew."""
LONGEST_PAUSE_S: Final = LOGGED_S / 4
"""A follower looks at least that often, however long its last look took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a follower has. `offsets`: partition → behaviour offset, of its tiles, None as long as it has none;
    `rounds`: view id → number of the round that its lists are of.
    """

    offsets: Mapping[int, int] | None = None
    rounds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundNews:
    """The last round of a cached view. `number` rises with each; `fresh`: its lists are not too old to be served.

    `values`: None if the round is known already; else all keys, None for a list that is as it was.
    """

    number: int
    point: ReadPoint
    fresh: bool
    values: Mapping[str, Value | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a follower has not, all of one moment. `rows`: view id → tiles of the views that are not cached.

    `change`: the number of what is live (`Live`). `lost`: so much came since, or so long ago, that there is none of it
    here, and the follower has to begin anew.
    """

    change: int
    offsets: Mapping[int, int]
    rows: Mapping[str, Sequence[Row]]
    lost: bool
    rounds: Mapping[str, RoundNews]

    @property
    def height(self) -> int:
        """How many rows of tiles there are."""
        return sum(len(rows) for rows in self.rows.values())


class Followed(FeatureReader, Protocol):
    """A feature store that can be followed."""

    def refresh(self) -> bool:
        """Take up what is live. Raises StoreUnavailable."""
        ...

    def change(self) -> int:
        """The number of what is live. Raises StoreUnavailable."""
        ...

    def news(self, known: Known, *, from_ms: int, most_rows: int) -> News:
        """What came since, of tiles with start ≥ `from_ms`; all there are, where nothing is known. At most so many
        tiles. Raises StoreUnavailable.
        """
        ...
