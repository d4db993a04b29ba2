"""What nobody else may read: who would click what, when, and what the best possible answer would have been."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rtrec_ray.simulate.world.goods import FIRST_AD, Goods
from rtrec_ray.simulate.world.options import Drift, WorldOptions
from rtrec_ray.simulate.world.people import Indexes, People

Floats = npt.NDArray[np.float64]

# The talk's own example: men in China on page 100 like ad 2002, then 2001; later Shanghai 2002 and Beijing 2011.
_TOLD: Final = {"country": "CN", "gender": "m", "page": 100}
_BEFORE, _FIRST_CITY, _SECOND_CITY = 2002, 2002, 2011
_NEVER: Final = -20.0  # log odds of an item that is not there yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """n requests: indexes of the user, of the page and of the category the user came for (from 1), all (n,)."""

    user: Indexes
    page: Indexes
    intent: Indexes
    ts_ms: Indexes

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: Any) -> Asked:
        """Some of them."""
        return Asked(user=self.user[rows], page=self.page[rows], intent=self.intent[rows], ts_ms=self.ts_ms[rows])


class Truth:
    """Log odds of a click by (city, gender, age band, page, item) for each stretch of time in which nothing changes.

    Everything is drawn from the world's seed when this is made, and nothing later.
    """

    def __init__(self, options: WorldOptions, people: People, goods: Goods) -> None:
        self._options = options
        self._people = people
        self._goods = goods
        random = np.random.default_rng([options.seed, 1])
        self._steady = self._draw_steady(random)
        self._epochs: list[tuple[int, Indexes, bool]] = [(-(1 << 62), self._draw_favorites(random), False)]
        self._draw_drifts(random)
        self._tables: dict[int, Floats] = {}

    def probability(self, asked: Asked, items: Indexes) -> Floats:
        """P(click), (n, k), of items (indexes, (n, k)) shown on places 1 to k."""
        logits = np.take_along_axis(self._logits(asked), items, axis=1)
        return _sigmoid(logits + self._of_position(items.shape[1]))

    def best(self, asked: Asked, *, places: int) -> Indexes:
        """The slate that gets most clicks, (n, places): the items with the highest odds, in the best of all orders.

        By odds is the best order while a click is less likely than not; above even odds the curve of the probability
        bends, and a likelier item can lose less on a lower place.
        """
        logits, orders = self._logits(asked), np.array(list(permutations(range(places))))
        top = np.argsort(-logits, axis=1, kind="stable")[:, :places]
        of_orders = np.take_along_axis(logits, top, axis=1)[:, orders] + self._of_position(places)
        won = orders[np.argmax(_sigmoid(of_orders).sum(axis=2), axis=1)]
        best: Indexes = np.take_along_axis(top, won, axis=1)
        return best

    def find(self, asked: Asked, random: np.random.Generator) -> Indexes:
        """The ad that each visitor would find by himself, (n,): drawn in proportion to the odds of a click."""
        logits = np.where(self._goods.is_ad(), self._logits(asked), -np.inf)
        found: Indexes = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
        return found

    def random(self, asked: Asked, *, places: int) -> Floats:
        """The mean P(click) of a slate in random order, (n,)."""
        there = self.there(asked.ts_ms)
        logits = self._logits(asked)
        each = _sigmoid(logits[:, :, None] + self._of_position(places)).mean(axis=2)
        mean: Floats = np.where(there, each, 0.0).sum(axis=1) / there.sum(axis=1)
        return mean

    def there(self, ts_ms: Indexes) -> npt.NDArray[np.bool_]:
        """Which items exist at these times, (n, items)."""
        begun = np.array([begun for _, _, begun in self._epochs])[self._epoch(ts_ms)]
        there: npt.NDArray[np.bool_] = ~self._goods.is_new()[None, :] | begun[:, None]
        return there

    def _logits(self, asked: Asked) -> Floats:
        """(n, items) on the first place."""
        people, out = self._people, np.empty((len(asked), len(self._goods)))
        epochs = self._epoch(asked.ts_ms)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            user = asked.user[rows]
            out[rows] = self._table(epoch)[people.city[user], people.gender[user], people.age[user], asked.page[rows]]
        wanted = self._goods.category[None, :] == asked.intent[:, None]
        out += wanted * self._options.tastes.intent
        return out

    def _epoch(self, ts_ms: Indexes) -> Indexes:
        """The number of changes before each time, (n,)."""
        begun = np.array([at_ms for at_ms, _, _ in self._epochs])
        return np.searchsorted(begun, ts_ms, side="right") - 1

    def _table(self, epoch: int) -> Floats:
        if epoch not in self._tables:
            table = self._steady.copy()
            _, favorites, begun = self._epochs[epoch]
            for place, boost in enumerate(self._options.tastes.favorites):
                _add(table, favorites[..., place], boost)
            if not begun:
                table[..., self._goods.is_new()] = _NEVER
            self._tables[epoch] = table
        return self._tables[epoch]

    def _of_position(self, places: int) -> Floats:
        return self._options.tastes.position * np.log(np.arange(1, places + 1))

    # --- draws ------------------------------------------------------------------------------------------------------

    def _draw_steady(self, random: np.random.Generator) -> Floats:
        """What never changes: (cities, genders, ages, pages, items)."""
        options, tastes = self._options, self._options.tastes
        shape = (len(self._people.cities), len(options.genders), len(options.age_bands), len(options.pages))
        quality = random.normal(0.0, tastes.quality, len(self._goods))
        liking = random.normal(0.0, tastes.age_and_category, (len(options.age_bands), options.categories))
        of_age = liking[:, self._goods.category - 1]
        # Newcomers take turns over the age bands.
        newcomer = np.flatnonzero(self._goods.is_new())
        of_age[np.arange(len(newcomer)) % len(options.age_bands), newcomer] += tastes.newcomer
        table = tastes.start + quality + of_age[None, None, :, None, :]
        return np.broadcast_to(table, (*shape, len(self._goods))).copy()

    def _draw_favorites(self, random: np.random.Generator) -> Indexes:
        """Indexes of the favourites, (cities, genders, pages, places): the same in all cities of a country."""
        options, country = self._options, self._people.country_of_city
        shape = (country.max() + 1, len(options.genders), len(options.pages))
        drawn = self._draw_ads(random, shape)[country]
        self._tell(drawn, _BEFORE)
        return drawn

    def _draw_ads(self, random: np.random.Generator, shape: tuple[int, ...]) -> Indexes:
        """Different ads for each cell, (*shape, favourites)."""
        order = random.random((*shape, self._goods.ads)).argsort(axis=-1)
        return order[..., : len(self._options.tastes.favorites)]

    def _draw_drifts(self, random: np.random.Generator) -> None:
        for drift in sorted(self._options.drifts, key=lambda drift: drift.at_ms):
            _, favorites, begun = self._epochs[-1]
            changed = self._draw_drift(drift, favorites.copy(), random)
            self._epochs.append((drift.at_ms, changed, begun or drift.kind == "new_items"))

    def _draw_drift(self, drift: Drift, favorites: Indexes, random: np.random.Generator) -> Indexes:
        country, shape = self._people.country_of_city, favorites.shape[1:3]
        if drift.kind == "trend":
            drawn = self._draw_ads(random, (country.max() + 1, *shape))[country]
            moves = (random.random((country.max() + 1, *shape)) < self._options.trend_share)[country]
            favorites = np.where(moves[..., None], drawn, favorites)
            self._tell(favorites, drift.told)
        elif drift.kind == "parting":
            for pair in (np.flatnonzero(country == each)[:2] for each in range(country.max() + 1)):
                if len(pair) == 2:
                    favorites[pair] = self._draw_ads(random, (2, *shape))
            self._tell(favorites, _FIRST_CITY, city="Shanghai")
            self._tell(favorites, _SECOND_CITY, city="Beijing")
        return favorites

    def _tell(self, favorites: Indexes, item_id: int, *, city: str | None = None) -> None:
        """Make an ad the first favourite in the talk's example, where this world has its places."""
        options, ad = self._options, item_id - FIRST_AD
        if _TOLD["page"] not in options.pages or _TOLD["gender"] not in options.genders or ad >= self._goods.ads:
            return
        gender, page = options.genders.index(str(_TOLD["gender"])), options.pages.index(int(_TOLD["page"]))
        for index, (country, name) in enumerate(self._people.cities):
            if country == _TOLD["country"] and city in (None, name):
                cell = favorites[index, gender, page]
                cell[cell == ad] = cell[:1]  # it stays a list of different ads
                cell[:1] = ad


def regret(truth: Truth, asked: Asked, shown: Indexes) -> Floats:
    """Clicks lost per impression against the slate `Truth.best`, (n,), from the true probabilities alone."""
    best = truth.best(asked, places=shown.shape[1])
    lost: Floats = (truth.probability(asked, best) - truth.probability(asked, shown)).mean(axis=1)
    return lost


def _add(table: Floats, items: Indexes, boost: float) -> None:
    """Raise the log odds of one item per (city, gender, page), for all age bands."""
    for city, gender, page in product(*map(range, items.shape)):
        table[city, gender, :, page, items[city, gender, page]] += boost


def _sigmoid(logits: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logits))
