"""What is asked of the feature store: a view and a key of it."""

from __future__ import annotations

from typing import Final

import msgspec

from rtrec_ray.events import ProfileVersion

USER_BROWSE_5M: Final = "user_browse_5m"
USER_BROWSE_1M: Final = "user_browse_1m"
CATEGORY_TOP_ITEMS_10M: Final = "category_top_items_10m"
TOP_VIEWED_30M: Final = "top_viewed_30m"
SEGMENT_PAGE_TOP_ADS: Final = "segment_page_top_ads"


# A Struct, since a read makes, hashes and compares hundreds: that takes a third of a dataclass's time.
class ViewKey(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One value of one feature view. `key` is text as on the command line: "42", "product", "all", "CN|f|7"."""

    view: str
    key: str


def segment_key(profile: ProfileVersion | None, *, page_id: int | None) -> str | None:
    """The key country|gender|page_id; None where the profile or the page leaves a part open.

    >>> segment_key(ProfileVersion(user_id=1, ts=0, country="CN", gender="f"), page_id=7)
    'CN|f|7'
    """
    if profile is None or profile.country is None or profile.gender is None or page_id is None:
        return None
    return f"{profile.country}|{profile.gender}|{page_id}"


def city_segment_key(profile: ProfileVersion | None, *, page_id: int | None) -> str | None:
    """The key country|gender|city|page_id; None where the profile or the page leaves a part open.

    >>> city_segment_key(ProfileVersion(user_id=1, ts=0, country="CN", gender="f", city="Shanghai"), page_id=7)
    'CN|f|Shanghai|7'
    """
    if segment_key(profile, page_id=page_id) is None or profile is None or profile.city is None:
        return None
    return f"{profile.country}|{profile.gender}|{profile.city}|{page_id}"
