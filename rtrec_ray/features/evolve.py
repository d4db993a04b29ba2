"""How definitions change while a system runs: views are added and old versions stay, until they are dropped by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.features.definition import Definitions

MARGIN_MS = 600_000
"""The horizon is at least this much longer than the longest window: an event that a window still has can be corrected,
also by one who is some minutes late.
"""


def evolve(live: Definitions | None, new: Definitions, *, defined: Mapping[str, str]) -> Definitions:
    """What is in force after `new` was applied to what is live: its views, all other live versions, and times for all.

    The times are those of `new` if it has every live version; otherwise it may lengthen what is in force, which the
    others rely on, but not shorten it. `defined`: id of a version → what it meant when it was live, which samples and
    the inference log rely on. Raises DefinitionInvalid when a version would mean something else.

    >>> from rtrec_ray.features.definition import FeatureView
    >>> view = FeatureView(name="v", version=1, keys=((),), window_ms=10, source=(), aggregations=())
    >>> live = Definitions(tile_ms=10, horizon_ms=700_000, retention_ms=800_000, views=(view,))
    >>> new = replace(live, views=(replace(view, version=2),))
    >>> evolve(live, new, defined={}).views == (view, replace(view, version=2))
    True
    """
    if live is not None and live.views and new.tile_ms != live.tile_ms:
        raise DefinitionInvalid(
            f"tile is {live.tile_ms} ms in what is live and {new.tile_ms} ms here",
            mend="keep the tile; it can change only when all views are dropped, with higher versions",
        )
    texts = {**defined, **({} if live is None else {view.id: live.text(view) for view in live.views})}
    for view in new.views:
        if texts.get(view.id, new.text(view)) != new.text(view):
            raise DefinitionInvalid(
                f"{view.name} version {view.version} is already defined otherwise", mend="raise its version"
            )
    if live is None or not live.views:
        return new
    known = {view.id for view in live.views}
    added = tuple(view for view in new.views if view.id not in known)
    both = replace(live, horizon_ms=new.horizon_ms, retention_ms=new.retention_ms, views=(*live.views, *added))
    return both if known <= {view.id for view in new.views} else _with_longer_times(both, live)


def _with_longer_times(both: Definitions, live: Definitions) -> Definitions:
    horizon_ms = max(both.horizon_ms, live.horizon_ms)
    # The longest horizon may be of one file, and the longest window of another.
    least_ms = horizon_ms + both.longest_window_ms
    return replace(both, horizon_ms=horizon_ms, retention_ms=max(both.retention_ms, live.retention_ms, least_ms))
