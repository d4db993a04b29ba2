"""What a feature view is: a value. Which events, whose, over how long, added up how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import msgspec

from rtrec_ray.errors import UnknownView
from rtrec_ray.eventtime.window import LONG_AGO_MS, Window

Kind = Literal["count", "sum", "mean", "count_by", "top_k", "last_n", "distinct"]

ALL: Final = "all"
PROFILE_FIELDS: Final = ("country", "gender", "city", "age_band")
NOT_BEGUN_MS: Final = 1 << 61
"""Since when a view is complete that has not begun in every partition: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`field` is one of `values`; without values: `field` is present. A missing field meets no condition."""

    field: str
    values: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """One named part of a view's value. `field` is None for "count" alone; `limit` None keeps everything."""

    name: str
    kind: Kind
    field: str | None = None
    where: tuple[Condition, ...] = ()
    limit: int | None = None
    repeats: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """A feature view. `keys`: the forms of its key, each the fields joined by "|"; an empty form is the key "all".

    An event belongs to a key when it meets `source` and has every field of the form. `cached`: its values are kept as
    a list for serving, rebuilt on a timer.
    """

    name: str
    version: int
    keys: tuple[tuple[str, ...], ...]
    window_ms: int
    source: tuple[Condition, ...]
    aggregations: tuple[Aggregation, ...]
    cached: bool = False

    @property
    def id(self) -> str:
        """Name and version, as a reader may ask for: "user_browse_5m@1"."""
        return f"{self.name}@{self.version}"

    @property
    def needs_profile(self) -> bool:
        """Whether a form of the key has a field of the user's profile."""
        return any(name in PROFILE_FIELDS for form in self.keys for name in form)

    @property
    def fields(self) -> frozenset[str]:
        """The fields of an event that decide about its tiles, apart from its ID, its time and the user's profile."""
        conditions = [*self.source, *(condition for each in self.aggregations for condition in each.where)]
        of_keys = (name for form in self.keys for name in form if name not in PROFILE_FIELDS)
        of_values = (each.field for each in self.aggregations if each.field is not None)
        return frozenset([*(condition.field for condition in conditions), *of_keys, *of_values])


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """All feature views of a system, with the times they share, ms of event time. A view may have several versions.

    `horizon_ms`: an event that much behind the watermark still corrects; `retention_ms`: tiles are kept that long
    behind it. `complete_from_ms`: view id → since when its values have all events; a view that is missing always had.
    `tiles_from_ms`: older tiles are gone, whatever the retention says.
    """

    tile_ms: int
    horizon_ms: int
    retention_ms: int
    views: tuple[FeatureView, ...] = field(default=())
    complete_from_ms: Mapping[str, int] = field(default_factory=dict)
    tiles_from_ms: int | None = None

    @cached_property
    def by_name(self) -> Mapping[str, tuple[FeatureView, ...]]:
        """View name → its versions, the newest first."""
        names = dict.fromkeys(view.name for view in self.views)
        newest_first = sorted(self.views, key=lambda view: -view.version)
        return {name: tuple(view for view in newest_first if view.name == name) for name in names}

    def view(self, name: str, *, at_ms: int | None = None) -> FeatureView:
        """The view of that name, or of "name@version". Raises UnknownView.

        Of several versions the newest whose whole window before `at_ms` has all events; before any has, the one that
        comes closest. `at_ms` None is the end of time.

        >>> Definitions(tile_ms=1, horizon_ms=1, retention_ms=1).view("user_browse_5m")
        Traceback (most recent call last):
        rtrec_ray.errors.UnknownView: there is no feature view "user_browse_5m"; there are none at all
        """
        bare, _, version = name.partition("@")
        found = [view for view in self.by_name.get(bare, ()) if not version or str(view.version) == version]
        if not found:
            known = ", ".join(sorted(view.id if version else view.name for view in self.views))
            raise UnknownView(
                f'there is no feature view "{name}"; ' + (f"there are {known}" if known else "there are none at all"),
                mend="define it in features.yaml, or ask for one of these" if known else "define it in features.yaml",
            )
        if len(found) == 1:
            return found[0]
        complete = [view for view in found if at_ms is None or self._complete_at_ms(view) <= at_ms]
        return complete[0] if complete else min(found, key=self._complete_at_ms)

    def window(self, view: FeatureView) -> Window:
        """The window of a view over the tiles."""
        return Window(length_ms=view.window_ms, tile_ms=self.tile_ms)

    def text(self, view: FeatureView) -> str:
        """All that gives a view's tiles their meaning, as JSON: equal for equal definitions."""
        return msgspec.json.encode({"tile_ms": self.tile_ms, "view": view}, order="sorted").decode()

    @property
    def longest_window_ms(self) -> int:
        """The longest window of all views; 0 without views."""
        return max((view.window_ms for view in self.views), default=0)

    def _complete_at_ms(self, view: FeatureView) -> int:
        """From when on a window that ends then has all events: of the tile that it begins with, too."""
        since_ms = self.complete_from_ms.get(view.id)
        if since_ms is None:
            return LONG_AGO_MS
        return -(-since_ms // self.tile_ms) * self.tile_ms + view.window_ms
