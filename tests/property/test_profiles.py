"""Versions of profiles: however they are kept, an event has the one that a look at all of them finds."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.events import PROFILE_SCHEMA
from rtrec_ray.features.definition import PROFILE_FIELDS
from rtrec_ray.features.profiles import ProfileVersions, attribute

USERS, TIMES = range(3), range(5)
# Some long and most short, so that they are kept apart and only now and then brought together.
versions = st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(TIMES), st.sampled_from(["CN", "IN", None])))
few = versions.map(lambda found: found[:2])
steps = st.lists(st.one_of(few, few, few, versions, st.sampled_from(TIMES)), max_size=8)


def plain(taken, user, ts):
    """The newest version of the user that held then; of those of one time the last that came."""
    held = [(since, number, country) for number, (of, since, country) in enumerate(taken) if of == user and since <= ts]
    return max(held)[2] if held else None


def frame(taken):
    rows = [(user, ts, country, "f", None, None) for user, ts, country in taken]
    return pl.DataFrame(rows, schema=PROFILE_SCHEMA, orient="row")


@given(versions, steps)
def test_an_event_has_the_profile_that_a_look_at_all_versions_so_far_finds(loaded, steps):
    taken, asked_from_ms, kept = list(loaded), 0, ProfileVersions(frame(loaded), asked_from_ms=0)
    for step in steps:
        if isinstance(step, int):
            asked_from_ms = max(asked_from_ms, step)
            kept.forget(before_ms=asked_from_ms)
        else:
            taken += step
            kept.take(frame(step))
        asking = [(user, ts) for user in [*USERS, 9] for ts in TIMES if ts >= asked_from_ms] * 2
        events = pl.DataFrame(asking, schema={"user_id": pl.Int64, "ts": pl.Int64}, orient="row")
        found = attribute(events, kept.of(events["user_id"]))
        assert found.columns == ["user_id", "ts", *PROFILE_FIELDS]
        assert sorted(found.select("user_id", "ts", "country").rows()) == sorted(
            (user, ts, plain(taken, user, ts)) for user, ts in asking
        )


def test_a_version_that_no_event_can_have_any_more_is_not_kept():
    kept = ProfileVersions(frame([(user, 0, "CN") for user in range(10)]), asked_from_ms=0)
    for ts in range(1, 100):
        kept.forget(before_ms=ts - 5)
        kept.take(frame([(user, ts, "CN") for user in range(10)]))
    assert len(kept) < 300
