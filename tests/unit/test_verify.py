"""What was served against what the events give: nothing to say where all is right, and every kind of wrong found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtrec_ray.events import ITEM_SCHEMA, PROFILE_SCHEMA, CatalogItem, InferenceRecord, ProfileVersion, RankedItem
from rtrec_ray.features.counted import EVENT_SCHEMA
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.past import recompute
from rtrec_ray.features.recount import VERSION_SCHEMA, Sample, once, sample_of
from rtrec_ray.features.request import (
    FEATURE_VIEWS,
    item_asks,
    item_features,
    recently_viewed,
    request_asks,
    request_features,
    trends,
)
from rtrec_ray.features.served import FEATURES, served_asks
from rtrec_ray.features.verify import (
    Report,
    by_late_profiles,
    cases_of,
    compare,
    items_behind,
    keys_by_view,
    values_of,
)
from rtrec_ray.features.versions import ITEM_VERSIONS, PROFILE_VERSIONS, Known, Versions

DEFINITIONS = load_definitions(Path(__file__).parents[2] / "configs" / "features.yaml")
BASE = 1_767_225_600_000
SECOND, MINUTE = 1_000, 60_000
NOW = BASE + 12 * MINUTE
PARTITIONS = 2
ALL = {topic: dict.fromkeys(range(PARTITIONS), 1 << 40) for topic in ("behavior", "profile", "item")}
ITEMS = [CatalogItem(item_id=i, ts=0, item_type=("ad", "product")[i % 2], category_id=i % 3) for i in range(6)]
PROFILES = pl.DataFrame(
    [{"user_id": user, "ts": BASE, "country": "CN", "gender": "f", "city": ("A", None)[user % 2]} for user in range(4)],
    schema=PROFILE_SCHEMA,
)


def event(user, offset, *, partition=0, ts=NOW - MINUTE, kind="view", item=0, name=None, **fields):
    return {
        "event_id": name or f"e{partition}-{offset}",
        "event_type": kind,
        "ts": ts,
        "user_id": user,
        "item_id": item,
        "item_type": ITEMS[item].item_type,
        "category_id": ITEMS[item].category_id,
        "page_id": 1,
        "dwell_ms": 5,
        "partition": partition,
        "offset": offset,
        "kafka_ts": ts,
        **fields,
    }


def retraction(original, offset, **fields):
    carried = {name: value for name, value in original.items() if name not in ("partition", "offset", "kafka_ts")}
    own = {"event_type": "retract", "event_id": f"r{offset}", "retracts": json.dumps(carried), "offset": offset}
    return {**original, **own, **fields}


def frame(events):
    return pl.DataFrame(events, schema=EVENT_SCHEMA)


def random_events(rng, n):
    """Out of order, a fifth sent twice, a tenth taken back, some of these before they come; user u is in u % 2."""
    events = []
    for offset in range(n):
        user = rng.randrange(4)
        kind = rng.choice(["view", "click", "click", "cart"])
        ts = NOW - rng.randrange(0, 11 * MINUTE) if rng.random() < 0.5 else NOW - rng.randrange(0, 70 * SECOND)
        events.append(event(user, offset, partition=user % PARTITIONS, ts=ts, kind=kind, item=rng.randrange(6)))
    again = [{**one, "offset": n + i} for i, one in enumerate(rng.sample(events, n // 5))]
    gone = [retraction(one, 2 * n + i) for i, one in enumerate(rng.sample(events, n // 10))]
    mixed = events + again + gone
    offsets = rng.sample(range(len(mixed)), len(mixed))
    return [{**one, "offset": offset} for one, offset in zip(mixed, offsets, strict=True)]


def served(number, events, *, user, offsets, as_of_ms, page_id=1, profiles=PROFILES):
    """A record as serving writes it, out of values recomputed another way: each by itself, from its events alone."""
    behind = frame(events).filter(
        pl.any_horizontal(
            (pl.col("partition") == part) & (pl.col("offset") < offset) for part, offset in offsets.items()
        )
    )
    row = profiles.filter(pl.col("user_id") == user).to_dicts()
    profile = ProfileVersion(**row[0]) if row else None
    asks = [*request_asks(user_id=user, profile=profile, page_id=page_id), *item_asks(ITEMS)]
    values = {}
    for ask in asks:
        span = DEFINITIONS.window(DEFINITIONS.view(ask.view)).now(as_of_ms)
        found = recompute(DEFINITIONS, ask.view, [ask.key], [(behind, profiles)], span=span)
        values[ask] = found[ask.key]
    recent = recently_viewed([ITEMS[item] for item in (values[asks[0]] or {}).get("last_items", ())])
    trend = trends(values, profile, page_id=page_id)
    items = [
        RankedItem(item_id=item.item_id, position=1, score=1.0, features=item_features(item, trend, recent=recent))
        for item in ITEMS
    ]
    features = request_features(values, profile, user_id=user, realtime=True)
    return InferenceRecord(
        request_id=f"q{number}",
        user_id=user,
        ts=as_of_ms,
        model_version="1",
        page_id=page_id,
        features=features,
        items=items,
        as_of={view: {str(part): offset for part, offset in offsets.items()} for view in FEATURE_VIEWS}
        | {"profile": {"0": profiles.height}, "item": {"0": len(ITEMS)}},
        as_of_ms=dict.fromkeys((*FEATURE_VIEWS, "profile"), as_of_ms),
    )


def sent(rows):
    """Versions as the history has them, one after another in partition 0."""
    origin = {
        "partition": pl.lit(0, dtype=pl.Int32),
        "offset": pl.int_range(pl.len()),
        "kafka_ts": pl.lit(0).cast(pl.Int64),
    }
    return rows.with_columns(**origin)


CATALOGUE = pl.DataFrame([msgspec.to_builtins(item) for item in ITEMS], schema=ITEM_SCHEMA)


def verified(
    records,
    events,
    *,
    share=1.0,
    reached=ALL,
    profiles=PROFILES,
    definitions=DEFINITIONS,
    versions=None,
    catalogue=CATALOGUE,
    held=None,
):
    report = Report()
    views = [view for view in DEFINITIONS.views if view.name in FEATURE_VIEWS]
    sample = sample_of(keys_by_view(map(served_asks, records)), share, turn=0)
    kept = once(frame(events), views, sample=sample)
    cases = cases_of(records, definitions, report, sample=sample, reached=reached)
    values = values_of(cases, kept, profiles, tile_ms=DEFINITIONS.tile_ms)
    needed = items_behind(cases, values)
    known = Known(
        profiles=Versions(sent(profiles if held is None else held).match_to_schema(PROFILE_VERSIONS), ProfileVersion),
        items=Versions(
            sent(catalogue).filter(pl.col("item_id").is_in(needed)).match_to_schema(ITEM_VERSIONS), CatalogItem
        ),
    )
    equal, differences = compare(cases, values, known)
    late = [] if versions is None else by_late_profiles(differences, kept, versions)
    report.add(equal, differences, late=late)
    return report


def wrong(record, feature, value, *, item=None):
    """The record with one served feature replaced."""
    if item is None:
        return msgspec.structs.replace(record, features={**record.features, feature: value})
    items = [
        msgspec.structs.replace(each, features={**each.features, feature: value}) if each.item_id == item else each
        for each in record.items
    ]
    return msgspec.structs.replace(record, items=items)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.4, 1.0]))
def test_what_each_read_had_gives_what_it_was_served(seed, share):
    rng = random.Random(seed)
    events = random_events(rng, 40)
    records = [
        served(
            number,
            events,
            user=rng.randrange(5),
            offsets={part: rng.randrange(len(events) + 1) for part in range(PARTITIONS)},
            as_of_ms=NOW + rng.randrange(-2 * MINUTE, MINUTE),
        )
        for number in range(4)
    ]
    report = verified(records, events, share=share)
    assert report.as_dict()["examples"] == []
    assert report.differences == 0


def after_a_move(rng, events, n):
    """More of them, copies and retractions of the first ones too, when user u comes in u % 3."""
    more = [event(rng.randrange(4), 0, item=rng.randrange(6), name=f"m{number}") for number in range(n)]
    gone = [retraction(one, 0) for one in rng.sample(events, n) if one["event_type"] != "retract"]
    moved = rng.sample([*more, *rng.sample(events, n), *gone], 2 * n)
    return [
        {**one, "partition": one["user_id"] % 3, "offset": len(events) + number, "kafka_ts": NOW + 1}
        for number, one in enumerate(moved)
    ]


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_what_a_read_had_of_users_who_moved_to_another_partition_gives_what_it_was_served(seed):
    rng = random.Random(seed)
    before = random_events(rng, 20)
    events = [*before, *after_a_move(rng, before, 8)]
    records = [
        served(
            number,
            events,
            user=number,
            offsets={part: rng.randrange(len(before), len(events) + 1) for part in range(3)},
            as_of_ms=NOW + MINUTE // 2,
        )
        for number in range(2)
    ]
    reached = ALL | {"behavior": dict.fromkeys(range(3), 1 << 40)}
    assert verified(records, events, reached=reached).as_dict()["examples"] == []


EVENTS = [
    event(0, 0, kind="view", item=1),
    event(0, 1, kind="click", item=0),
    event(1, 0, partition=1, kind="click", item=0),
]


def right(number=0):
    return served(number, EVENTS, user=0, offsets={0: 2, 1: 1}, as_of_ms=NOW)


@pytest.mark.parametrize(
    ("feature", "item", "value", "kind"),
    [
        ("user_5m_view", None, 7, "mismatch"),
        ("user_5m_view", None, 0, "missing"),
        ("user_5m_cart", None, 1, "extra"),
        ("user_last_items", None, [1, 2], "mismatch"),
        ("user_last_items", None, [], "missing"),
        ("user_1m_pages", None, [9], "mismatch"),
        ("item_category_clicks_10m", 0, 1, "mismatch"),
        ("item_type_views_30m", 1, 0, "missing"),
        ("item_segment_clicks_10m", 0, 3, "mismatch"),
        ("item_city_segment_clicks_10m", 0, 0, "missing"),
        ("item_recently_viewed", 2, 1, "extra"),
        ("item_category_recently_viewed", 4, 0, "missing"),
        ("item_category_recently_viewed", 0, 2, "extra"),
        ("gender", None, "", "missing"),
        ("age_band", None, "20", "extra"),
        ("item_type", 3, "ad", "mismatch"),
        ("item_category", 3, "", "missing"),
    ],
)
def test_a_value_that_was_served_wrong_is_found_and_shown(feature, item, value, kind):
    assert verified([right()], EVENTS).differences == 0
    report = verified([right(1), wrong(right(2), feature, value, item=item)], EVENTS)
    assert report.differences == 1
    assert report.outcomes[feature][kind] == 1
    (example,) = report.as_dict()["examples"]
    assert (example["request_id"], example["feature"], example["item_id"]) == ("q2", feature, item)
    assert (example["kind"], example["served"]) == (kind, value)
    assert example["recomputed"] != value


def test_every_feature_is_compared_and_some_are_not_nothing():
    report = verified([right()], EVENTS)
    assert set(report.outcomes) == set(FEATURES)
    assert all(report.outcomes[name]["equal"] for name in FEATURES)
    assert set(right().features) | set(right().items[0].features) == {*FEATURES, "realtime"}
    shown = right().items[0].features
    assert (shown["item_category_clicks_10m"], shown["item_segment_clicks_10m"]) == (2, 2)
    assert shown["item_city_segment_clicks_10m"] == 1


def test_an_event_more_or_less_behind_the_value_is_a_difference():
    lost = [{**EVENTS[0], "event_type": "impression"}, *EVENTS[1:]]
    report = verified([right()], lost)
    assert {name for name, counts in report.outcomes.items() if counts["extra"]} == {
        "user_5m_view", "user_5m_dwell_ms", "user_last_items", "user_1m_pages", "user_1m_items", "item_type_views_30m",
        "item_recently_viewed", "item_category_recently_viewed",
    }  # fmt: skip
    twice = [EVENTS[0], {**EVENTS[0], "event_id": "more", "offset": 1}, {**EVENTS[1], "offset": 2}, EVENTS[2]]
    assert verified([right()], twice).outcomes["user_5m_view"]["mismatch"] == 1


def test_reads_of_which_neither_had_all_that_the_other_had_are_told_apart():
    events = [event(0, 0, partition=0, item=1), event(0, 0, partition=1, item=3), event(0, 0, partition=2, item=5)]
    one = served(1, events, user=0, offsets={0: 1, 1: 0, 2: 1}, as_of_ms=NOW)
    other = served(2, events, user=0, offsets={0: 0, 1: 1, 2: 1}, as_of_ms=NOW)
    assert {tuple(sorted(each.features["user_last_items"])) for each in (one, other)} == {(1, 5), (3, 5)}
    reached = ALL | {"behavior": dict.fromkeys(range(3), 1)}
    assert verified([one, other], events, reached=reached).differences == 0
    assert verified([other, one], events, reached=reached).differences == 0


def test_a_retraction_counts_from_its_own_offset_on():
    events = [*EVENTS, retraction(EVENTS[0], 2)]
    before, after = (served(limit, events, user=0, offsets={0: limit, 1: 1}, as_of_ms=NOW) for limit in (2, 3))
    assert (before.features["user_5m_view"], after.features["user_5m_view"]) == (1, 0)
    assert verified([before, after], events).differences == 0
    crossed = [msgspec.structs.replace(one, as_of=two.as_of) for one, two in ((before, after), (after, before))]
    report = verified(crossed, events)
    assert (report.outcomes["user_5m_view"]["extra"], report.outcomes["user_5m_view"]["missing"]) == (1, 1)


def test_what_a_retraction_says_otherwise_than_the_event_that_it_takes_back_is_a_difference():
    seen, stays = event(0, 0, item=1), event(0, 1, item=1)
    gone = retraction({**seen, "dwell_ms": 900}, 2)
    events = [seen, stays, gone]
    record = served(0, events, user=0, offsets={0: 3}, as_of_ms=NOW)
    assert record.features["user_5m_dwell_ms"] == 5
    assert verified([record], events).differences == 0
    believed = wrong(record, "user_5m_dwell_ms", 10 - 900)
    assert verified([believed], events).outcomes["user_5m_dwell_ms"]["mismatch"] == 1


def test_a_request_ahead_of_the_history_waits():
    just = {"behavior": {0: 2, 1: 1}, "profile": {0: PROFILES.height}, "item": {0: len(ITEMS)}}
    assert verified([right()], EVENTS, reached=just).compared == 1
    for topic, behind in (("behavior", {0: 2, 1: 0}), ("profile", {0: 1}), ("item", {})):
        report = verified([right()], EVENTS, reached=just | {topic: behind})
        assert (report.requests, report.not_yet, report.compared) == (1, 1, 0)


def test_a_view_that_had_not_all_events_then_is_not_compared():
    view = DEFINITIONS.view("user_browse_5m")
    begun = {view.id: NOW - MINUTE}
    definitions = type(DEFINITIONS)(
        tile_ms=DEFINITIONS.tile_ms,
        horizon_ms=DEFINITIONS.horizon_ms,
        retention_ms=DEFINITIONS.retention_ms,
        views=DEFINITIONS.views,
        complete_from_ms=begun,
    )
    report = verified([wrong(right(), "user_5m_view", 9)], EVENTS, definitions=definitions)
    assert (report.incomplete, report.differences) == (1, 0)
    assert "user_5m_view" not in report.outcomes
    assert report.outcomes["user_1m_pages"]["equal"] == 1


def test_a_version_that_was_served_is_the_one_that_is_asked_for():
    record = msgspec.structs.replace(right(), as_of_version={"user_browse_5m": 2})
    report = verified([record], EVENTS)
    assert (report.incomplete, "user_5m_view" in report.outcomes) == (1, False)


def test_a_profile_that_came_too_late_is_told_apart_from_a_fault():
    click = event(2, 0, kind="click", item=0)
    record = served(0, [click], user=0, offsets={0: 1}, as_of_ms=NOW, profiles=PROFILES.filter(pl.col("user_id") == 0))
    assert record.items[0].features["item_segment_clicks_10m"] == 0

    def found(written_ms):
        versions = PROFILES.with_columns(kafka_ts=pl.lit(written_ms)).match_to_schema(VERSION_SCHEMA)
        counts = verified([record], [click], versions=versions).outcomes["item_segment_clicks_10m"]
        return counts["late_profile"], counts["missing"]

    assert found(click["kafka_ts"] + 1) == (1, 0)
    assert found(click["kafka_ts"] - MINUTE) == (0, 1)


@pytest.mark.parametrize(
    ("sent_again", "late"),
    [({}, 0), ({"age_band": "9"}, 0), ({"ts": BASE - MINUTE, "country": "IN"}, 0), ({"country": "IN"}, 1)],
    ids=["as it was", "in what the view does not ask for", "an older one", "another one"],
)
def test_a_profile_sent_again_excuses_nothing_but_what_it_may_have_changed(sent_again, late):
    click = event(2, 0, kind="click", item=0)
    record = served(0, [click], user=0, offsets={0: 1}, as_of_ms=NOW)
    record = wrong(record, "item_segment_clicks_10m", 999, item=0)
    mine = PROFILES.filter(pl.col("user_id") == 2)
    versions = pl.concat(
        [
            mine.with_columns(kafka_ts=pl.lit(BASE - MINUTE)),
            mine.with_columns(kafka_ts=pl.lit(NOW + MINUTE), **{name: pl.lit(to) for name, to in sent_again.items()}),
        ]
    )
    report = verified([record], [click], versions=versions.match_to_schema(VERSION_SCHEMA))
    counts = report.outcomes["item_segment_clicks_10m"]
    assert (counts["late_profile"], counts["mismatch"]) == (late, 1 - late)


def test_a_profile_and_an_item_are_compared_with_the_version_that_the_reader_knew():
    moved = pl.concat([PROFILES, PROFILES.filter(pl.col("user_id") == 0).with_columns(country=pl.lit("IN"))])
    renamed = pl.concat([CATALOGUE, CATALOGUE.filter(pl.col("item_id") == 3).with_columns(item_type=pl.lit("video"))])
    assert verified([right()], EVENTS, held=moved, catalogue=renamed).differences == 0, "these came later"

    def knowing(**offsets):
        return msgspec.structs.replace(right(), as_of=right().as_of | {name: {"0": n} for name, n in offsets.items()})

    later = verified([knowing(profile=moved.height, item=renamed.height)], EVENTS, held=moved, catalogue=renamed)
    assert {(each["feature"], each["item_id"], each["recomputed"]) for each in later.as_dict()["examples"]} == {
        ("country", None, "IN"), ("item_type", 3, "video"),
    }  # fmt: skip
    nobody = verified([knowing(profile=0, item=0)], EVENTS)
    assert {name for name, counts in nobody.outcomes.items() if counts["extra"]} == {
        "country", "gender", "city", "item_type", "item_category", "item_category_recently_viewed",
    }  # fmt: skip
    silent = msgspec.structs.replace(wrong(right(), "country", "IN"), as_of={"item": {"0": 6}})
    assert set(verified([silent], EVENTS).outcomes) == {"item_type", "item_category"}


def test_the_sample_is_a_share_of_the_keys_and_always_the_same():
    keys = pl.Series([str(number) for number in range(20_000)])
    some, more, every = (Sample(share=share) for share in (0.05, 0.2, 1.0))
    chosen = some.of("user_browse_5m", keys)
    assert 0.04 < chosen.mean() < 0.06
    assert some.of("user_browse_5m", keys.reverse()).reverse().to_list() == chosen.to_list()
    assert set(keys.filter(chosen)) <= set(keys.filter(more.of("user_browse_5m", keys)))
    assert every.of("user_browse_5m", keys).all()
    asked = {"user_browse_5m": keys}
    assert sample_of(asked, 0.05, turn=1) == some


def test_of_few_keys_each_has_its_turn():
    few = pl.Series(["ad", "product", "video", "article"])
    asked = {"top_viewed_30m": few, "category_top_items_10m": pl.Series([], dtype=pl.String)}
    assert not Sample(share=0.05).of("top_viewed_30m", few).any()
    turns = [sample_of(asked, 0.05, turn=day) for day in range(40)]
    chosen = [few.filter(each.of("top_viewed_30m", few)).to_list() for each in turns]
    assert {len(keys) for keys in chosen} == {1}
    assert {key for keys in chosen for key in keys} == set(few)
    assert not any(each.of("category_top_items_10m", few).any() for each in turns)
