"""Recall: which of all items are worth scoring for this request."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence

Top = Sequence[tuple[int, int]]  # (item_id, count), most counted first


def interleave(sources: Iterable[Iterable[int]], *, limit: int) -> list[int]:
    """At most `limit` different items, one from each source in turn, so that no long list crowds out a short one.

    >>> interleave([[1, 2, 3], [2, 9]], limit=4)
    [1, 2, 3, 9]
    """
    found: dict[int, None] = {}
    waiting = [iter(source) for source in sources]
    while waiting and len(found) < limit:
        for source in list(waiting):
            item = next((item for item in source if item not in found), None)
            if item is None:
                waiting.remove(source)
                continue
            found[item] = None
            if len(found) == limit:
                break
    return list(found)


def merged_top(tops: Iterable[Top]) -> list[int]:
    """The items of several top lists, most counted first, then by ascending id.

    >>> merged_top([[(7, 3), (8, 1)], [(5, 2)]])
    [7, 5, 8]
    """
    return [item for item, _ in sorted(itertools.chain.from_iterable(tops), key=lambda pair: (-pair[1], pair[0]))]


def recent_categories(last_items: Iterable[int], categories: Mapping[int, int | None], *, limit: int = 3) -> list[int]:
    """The categories of a user's last viewed items, newest first, without repeats.

    >>> recent_categories([4, 5, 6], {4: 1, 5: 1, 6: 2})
    [1, 2]
    """
    found: dict[int, None] = {}
    for item in last_items:
        category = categories.get(item)
        if category is not None:
            found[category] = None
        if len(found) == limit:
            break
    return list(found)


def distinct(items: Iterable[int]) -> list[int]:
    """The items without repeats, in their order.

    >>> distinct([3, 1, 3])
    [3, 1]
    """
    return list(dict.fromkeys(items))


def arm_of(user_id: int, arms: Iterable[str]) -> str | None:
    """The experiment's arm of a user: even by hash, the same in every process, after every restart and in any order.

    >>> arm_of(7, ["static", "live"]) == arm_of(7, ["live", "static"]), arm_of(7, [])
    (True, None)
    """
    # In order of name: the order of a mapping in a file means nothing, and must not move users between the arms.
    names = sorted(arms)
    if not names:
        return None
    digest = hashlib.blake2b(str(user_id).encode(), digest_size=8).digest()
    return names[int.from_bytes(digest, "big") % len(names)]
