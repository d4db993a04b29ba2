"""The users of the world and what their profiles say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.events import PROFILE_SCHEMA
from rtrec_ray.simulate.world.options import WorldOptions

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """n users by index; user ids are 1 to n. `city` is an index into `cities`, (country, city) by name."""

    cities: tuple[tuple[str, str], ...]
    genders: tuple[str, ...]
    age_bands: tuple[str, ...]
    city: Indexes
    gender: Indexes
    age: Indexes

    def __len__(self) -> int:
        return len(self.city)

    @property
    def country_of_city(self) -> Indexes:
        """(cities,) index of the country of each city."""
        names = list(dict.fromkeys(country for country, _ in self.cities))
        return np.array([names.index(country) for country, _ in self.cities])

    def ids(self) -> Indexes:
        """User ids, (n,)."""
        return np.arange(1, len(self) + 1)

    def profile(self, index: int) -> dict[str, Any]:
        """What the profile of one user says."""
        country, city = self.cities[self.city[index]]
        return {
            "country": country,
            "gender": self.genders[self.gender[index]],
            "city": city,
            "age_band": self.age_bands[self.age[index]],
        }

    def records(self, *, ts_ms: int) -> pl.DataFrame:
        """Their profiles as records of the topic, (n, PROFILE_SCHEMA), known from `ts_ms` on."""
        rows = [{"user_id": index + 1, "ts": ts_ms, **self.profile(index)} for index in range(len(self))]
        return pl.DataFrame(rows, schema=PROFILE_SCHEMA)


def draw_people(options: WorldOptions, random: np.random.Generator) -> People:
    """Users spread evenly over cities, genders and age bands, each independently."""
    cities = tuple((country, city) for country, names in options.cities.items() for city in names)
    return People(
        cities=cities,
        genders=options.genders,
        age_bands=options.age_bands,
        city=random.integers(0, len(cities), options.users),
        gender=random.integers(0, len(options.genders), options.users),
        age=random.integers(0, len(options.age_bands), options.users),
    )
