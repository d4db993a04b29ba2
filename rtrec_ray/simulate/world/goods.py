"""The items of the world: ads, products, and ads that appear later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.events import ITEM_SCHEMA
from rtrec_ray.simulate.world.options import WorldOptions

FIRST_AD: Final = 2001
FIRST_PRODUCT: Final = 5001
FIRST_NEWCOMER: Final = 2101


@dataclass(frozen=True, slots=True, kw_only=True)
class Goods:
    """m items by index: ads, then products, then newcomers. `category` from 1."""

    item_id: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    ads: int
    products: int

    def __len__(self) -> int:
        return len(self.item_id)

    def index_of(self, item_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Indexes of items by id, of any shape. Raises KeyError for an item of another world."""
        wanted = np.asarray(item_ids)
        order = np.argsort(self.item_id)
        place = np.minimum(np.searchsorted(self.item_id, wanted, sorter=order), len(self) - 1)
        found = order[place]
        if not np.array_equal(self.item_id[found], wanted):
            raise KeyError(f"not items of this world: {np.setdiff1d(wanted, self.item_id).tolist()[:5]}")
        return found

    def item_type(self, index: int) -> str:
        """`ad` or `product`."""
        return "product" if self.ads <= index < self.ads + self.products else "ad"

    def is_ad(self) -> npt.NDArray[np.bool_]:
        """(m,) whether an item is an ad."""
        return ~((np.arange(len(self)) >= self.ads) & (np.arange(len(self)) < self.ads + self.products))

    def is_new(self) -> npt.NDArray[np.bool_]:
        """(m,) whether an item appears only with the drift `new_items`."""
        return np.arange(len(self)) >= self.ads + self.products

    def records(self, indexes: npt.NDArray[np.int64], *, ts_ms: int) -> pl.DataFrame:
        """Some of them as records of the topic, (k, ITEM_SCHEMA), known from `ts_ms` on."""
        rows = [
            {
                "item_id": int(self.item_id[index]),
                "ts": ts_ms,
                "item_type": self.item_type(int(index)),
                "category_id": int(self.category[index]),
                "title": f"{self.item_type(int(index))} {self.item_id[index]}",
            }
            for index in indexes
        ]
        return pl.DataFrame(rows, schema=ITEM_SCHEMA)


def make_goods(options: WorldOptions) -> Goods:
    """Items whose categories take turns, so that each has as many of each kind."""
    ids = [
        FIRST_AD + np.arange(options.ads),
        FIRST_PRODUCT + np.arange(options.products),
        FIRST_NEWCOMER + np.arange(options.newcomers),
    ]
    return Goods(
        item_id=np.concatenate(ids),
        category=np.concatenate([np.arange(len(part)) % options.categories + 1 for part in ids]),
        ads=options.ads,
        products=options.products,
    )
