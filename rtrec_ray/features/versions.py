"""Profiles and items as they were known once: of each the newest version below the offsets that a read had."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import polars as pl

from rtrec_ray.events import ITEM_SCHEMA, PROFILE_SCHEMA, CatalogItem, ProfileVersion

_ORIGIN: Final = (("partition", pl.Int32()), ("offset", pl.Int64()), ("kafka_ts", pl.Int64()))
PROFILE_VERSIONS: Final = pl.Schema([*PROFILE_SCHEMA.items(), *_ORIGIN])
ITEM_VERSIONS: Final = pl.Schema([*ITEM_SCHEMA.items(), *_ORIGIN])

Version = TypeVar("Version", ProfileVersion, CatalogItem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upto:
    """How far a topic had been read: partition → offset; of the versions those that held at `as_of_ms`, ms UTC."""

    offsets: Mapping[int, int]
    as_of_ms: int | None = None


class Versions(Generic[Version]):
    """What was sent, by id. `rows`: PROFILE_VERSIONS or ITEM_VERSIONS; the first column is the id."""

    def __init__(self, rows: pl.DataFrame, make: Callable[..., Version]) -> None:
        self._newest_first: defaultdict[int, list[tuple[int, int, Version]]] = defaultdict(list)
        names = [name for name in rows.columns if name not in dict(_ORIGIN)]
        # The order in which the store takes them: of equally new ones the last that came.
        for row in rows.sort("ts", "kafka_ts", "offset", descending=True).iter_rows(named=True):
            fields: dict[str, Any] = {name: row[name] for name in names}
            self._newest_first[row[names[0]]].append((row["partition"], row["offset"], make(**fields)))

    def known(self, number: int, upto: Upto) -> Version | None:
        """The newest version that this reader knew; None if it knew none.

        >>> rows = pl.DataFrame([(7, 1, "CN", "f", None, None, 0, 0, 5), (7, 2, "IN", "f", None, None, 0, 1, 6)],
        ...                     schema=PROFILE_VERSIONS, orient="row")
        >>> sent = Versions(rows, ProfileVersion)
        >>> [sent.known(7, Upto(offsets={0: n}, as_of_ms=at)).country for n, at in ((1, 9), (2, 1), (2, 2))]
        ['CN', 'CN', 'IN']
        """
        for partition, offset, version in self._newest_first.get(number, ()):
            held = upto.as_of_ms is None or version.ts <= upto.as_of_ms
            if held and offset < upto.offsets.get(partition, 0):
                return version
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All that was sent of those whom a comparison asks for."""

    profiles: Versions[ProfileVersion]
    items: Versions[CatalogItem]

    def item(self, item_id: int, upto: Upto) -> CatalogItem:
        """The item as the reader knew it; a bare one when it did not."""
        return self.items.known(item_id, upto) or CatalogItem(item_id=item_id, ts=0)
