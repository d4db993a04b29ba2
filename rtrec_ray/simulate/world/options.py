"""The parameters of the world, fixed before any arm is run, each with its reason.

Chosen once, not for an outcome: of a hundred impressions in random order 5 are clicked, of the best possible ones 26,
and 32 once there are new ads, far more than in any real shop: so minutes show what would else take days.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from rtrec_ray.errors import ConfigInvalid

DriftKind = Literal["trend", "parting", "new_items"]

MOST_ADS: Final = 100  # their ids end where those of the newcomers begin
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Something that changes for good at `at_ms`, event time.

    `trend`: in most segments and pages other ads become the favourites; `told`: the first one of men in China on page
    100, where the talk's example plays.
    `parting`: the first two cities of each country begin to differ (Shanghai likes 2002 there, Beijing 2011).
    `new_items`: new ads appear, each liked by one age band.
    """

    kind: DriftKind
    at_ms: int
    told: int = 2001


@dataclass(frozen=True, slots=True, kw_only=True)
class TasteOptions:
    """Log odds of a click. All draws are normal with the deviations given, but for the favourites.

    `start`: an item that means nothing to its user, on the first place: 3.2 in 100.
    `favorites`: what the ads that a segment likes best on a page have above it, one number each: 45 to 25 in 100. This
    is what there is to win, so it is far larger than everything else.
    `newcomer`: a new ad for the age band that likes it.
    `intent`: items of the category a visitor came for.
    """

    start: float = -3.4
    quality: float = 0.35
    age_and_category: float = 0.45
    favorites: tuple[float, ...] = (3.2, 2.9, 2.6, 2.3)
    newcomer: float = 3.0
    intent: float = 0.4
    # Of the logarithm of the position: the fifth place gets 0.6 of the clicks of the first (as eye-tracking studies of
    # result pages find for short lists).
    position: float = -0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitOptions:
    """How people come and go; times are event time.

    `pages_per_session`: mean of a geometric distribution. `pause_ms`: between two pages of a session. `click_ms`:
    median of a lognormal delay from seeing to clicking, `click_spread` its deviation in logarithms; a share `late` of
    clicks comes minutes later, beyond the samples' wait of one minute; a share `twice` is reported twice. `finds`:
    share of visits in which somebody finds an ad by himself elsewhere on the page and clicks it, each as likely as its
    odds: this is how a trend becomes visible that no recommender has shown.
    """

    pages_per_session: float = 3.0
    pause_ms: tuple[int, int] = (20_000, 60_000)
    views: tuple[int, int] = (0, 3)
    finds: float = 0.8
    search: float = 0.25
    favorite: float = 0.1
    dwell_ms: float = 12_000.0
    click_ms: float = 6_000.0
    click_spread: float = 0.7
    late: float = 0.04
    late_ms: tuple[int, int] = (60_000, 240_000)
    twice: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """The size of the world: small enough for its segments to be met often within minutes, on two cores."""

    seed: int = 0
    users: int = 3_000
    ads: int = 40
    products: int = 8
    newcomers: int = 4
    categories: int = 8
    pages: tuple[int, ...] = (100, 200)
    cities: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"CN": ("Shanghai", "Beijing"), "IN": ("Mumbai", "Delhi")}
    )
    genders: tuple[str, ...] = ("m", "f")
    age_bands: tuple[str, ...] = ("18-24", "25-34", "35-49", "50+")
    trend_share: float = 0.9
    tastes: TasteOptions = field(default_factory=TasteOptions)
    visits: VisitOptions = field(default_factory=VisitOptions)
    drifts: tuple[Drift, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.tastes.favorites) <= self.ads <= MOST_ADS:
            raise ConfigInvalid(f"a world has {len(self.tastes.favorites)} to {MOST_ADS} ads, not {self.ads}")
