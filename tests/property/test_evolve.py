"""Whatever files are applied one after another, and views dropped between them, the times suit all that is live."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.features.definition import Definitions, FeatureView
from rtrec_ray.features.evolve import MARGIN_MS, evolve

TILE = 10_000
windows = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 500), max_size=4)


def view(name: str, window_ms: int) -> FeatureView:
    return FeatureView(name=name, version=window_ms, keys=((),), window_ms=window_ms * TILE, source=(), aggregations=())


@st.composite
def files(draw) -> Definitions:
    views = tuple(view(name, window) for name, window in draw(windows).items())
    made = Definitions(tile_ms=TILE, horizon_ms=0, retention_ms=0, views=views)
    horizon_ms = made.longest_window_ms + MARGIN_MS + draw(st.integers(0, 10**7))
    least_ms = horizon_ms + made.longest_window_ms
    return replace(made, horizon_ms=horizon_ms, retention_ms=least_ms + draw(st.integers(0, 10**7)))


@given(st.lists(st.tuples(files(), st.integers(0, 3)), min_size=1))
def test_every_file_can_be_applied_and_the_times_suit_all_views(steps):
    live = None
    for file, dropped in steps:
        before, live = live, evolve(live, file, defined={})
        ids, named = {each.id for each in live.views}, {each.id for each in file.views}
        assert ids == named | ({each.id for each in before.views} if before else set())
        assert live.horizon_ms >= live.longest_window_ms + MARGIN_MS or not ids
        assert live.retention_ms >= live.horizon_ms + live.longest_window_ms
        assert live.horizon_ms >= file.horizon_ms
        assert live.retention_ms >= file.retention_ms
        if before and ids == named:
            assert (live.horizon_ms, live.retention_ms) == (file.horizon_ms, file.retention_ms)
        elif before and before.views:
            assert live.horizon_ms >= before.horizon_ms
            assert live.retention_ms >= before.retention_ms
        live = replace(live, views=live.views[dropped:])
