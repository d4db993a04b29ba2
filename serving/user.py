"""What is read for one request: the user's profile and views, and the lists of the user's segment on the page."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from rtrec_ray.clock import Clock, monotonic_s
from rtrec_ray.events import ProfileVersion
from rtrec_ray.features.keys import (
    SEGMENT_PAGE_TOP_ADS,
    USER_BROWSE_5M,
    ViewKey,
)
from rtrec_ray.features.request import FEATURE_VIEWS, request_asks
from rtrec_ray.stores.features.store import FeatureReader, ReadPoint, VersionPoint
from serving.lists import Values, known

_MOST_PROFILES: Final = 100_000

_Profile = tuple[ProfileVersion | None, VersionPoint | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRead:
    """What the store knew. `realtime`: the views were read; without it no value means "not known", not "nothing".

    `points`: view name → what is behind its values; `profiled`: what is behind the profile, None where nobody read it.
    """

    profile: ProfileVersion | None = None
    values: Values = field(default_factory=dict)
    points: Mapping[str, ReadPoint] = field(default_factory=dict)
    profiled: VersionPoint | None = None
    realtime: bool = False

    def last_items(self, user_id: int) -> list[int]:
        """The items the user viewed in the last five minutes, newest first."""
        value = self.values.get(ViewKey(view=USER_BROWSE_5M, key=str(user_id)))
        return [] if value is None else list(value.get("last_items", ()))

    def segment_items(self) -> list[list[int]]:
        """Per segment of the user on this page: the ads clicked most and those clicked last."""
        lists = []
        for ask, value in self.values.items():
            if ask.view == SEGMENT_PAGE_TOP_ADS and value is not None:
                lists += [[item for item, _ in value.get("top", ())], list(value.get("last", ()))]
        return lists


class UserReader:
    """Reads users in one round trip each; profiles change once a day and are kept for `profile_s` s of wall time."""

    def __init__(self, store: FeatureReader, *, clock: Clock, profile_s: float) -> None:
        self._store = store
        self._clock = clock
        self._profile_s = profile_s
        self._profiles: OrderedDict[int, tuple[float, _Profile]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, user_id: int, *, page_id: int | None) -> UserRead:
        """Everything about the user. Raises StoreUnavailable."""
        user = self.read_profile(user_id)
        asks = known(self._store, request_asks(user_id=user_id, profile=user.profile, page_id=page_id))
        # cached: segments' top lists come from their cache; a user's own views are merged from tiles either way.
        found = self._store.read(asks, now_ms=self._clock.now_ms(), cached=True)
        return replace(user, values=found.values, points=found.points, realtime=True)

    def read_profile(self, user_id: int) -> UserRead:
        """Who the user is, and nothing of what the user did of late. Raises StoreUnavailable."""
        profile, point = self._profile(user_id)
        return UserRead(profile=profile, profiled=point)

    def undefined(self) -> bool:
        """Whether a view that requests or their candidates need is not defined any more."""
        return not self._store.definitions.by_name.keys() >= FEATURE_VIEWS

    def remembered(self, user_id: int) -> UserRead:
        """What is known of the user without the store: a profile of late, however old."""
        with self._lock:
            kept = self._profiles.get(user_id)
        profile, point = (None, None) if kept is None else kept[1]
        return UserRead(profile=profile, profiled=point)

    def _profile(self, user_id: int) -> _Profile:
        with self._lock:
            kept = self._profiles.get(user_id)
        if kept is not None and kept[0] > monotonic_s():
            return kept[1]
        read = self._store.profiles([user_id], as_of_ms=self._clock.now_ms())
        found = read.profiles.get(user_id), read.point
        with self._lock:
            self._profiles[user_id] = (monotonic_s() + self._profile_s, found)
            self._profiles.move_to_end(user_id)
            if len(self._profiles) > _MOST_PROFILES:
                self._profiles.popitem(last=False)
        return found
