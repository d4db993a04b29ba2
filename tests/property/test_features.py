"""The laws of the feature stage, against a recomputation in plain Python over the events that were accepted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.feature import FeatureOperator
from rtrec_ray.events import PROFILE_SCHEMA
from rtrec_ray.eventtime.watermark import WatermarkOptions
from rtrec_ray.eventtime.window import Window
from rtrec_ray.features.backfill import SLICE_MS, slices, tiles_before
from rtrec_ray.features.counted import EVENT_SCHEMA
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.keys import ViewKey
from rtrec_ray.features.merge import merge
from rtrec_ray.features.profiles import newest_per_version
from rtrec_ray.features.sliding import SlidingView
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode
from rtrec_ray.stores.features.memory import MemoryFeatureStore, MemoryFeatureTables
from rtrec_ray.stores.features.store import TaskOutput

ROOT = Path(__file__).parents[2]
DEFINITIONS = load_definitions(ROOT / "configs" / "features.yaml")
BASE = 1_767_225_600_000
SECOND, MINUTE = 1_000, 60_000
TILE, HORIZON, DISORDER = 10 * SECOND, 40 * MINUTE, 5 * SECOND
PARTITIONS = 2

TYPES = ["impression", "click", "view", "favorite", "cart", "consult", "comment", "search", "retract"]
ITEM_TYPES = ["product", "article", "video", "ad"]
WINDOWS = {
    "user_browse_5m": 5 * MINUTE,
    "user_browse_1m": MINUTE,
    "category_top_items_10m": 10 * MINUTE,
    "top_viewed_30m": 30 * MINUTE,
    "top_queries_30m": 30 * MINUTE,
    "segment_page_top_ads": 10 * MINUTE,
}
USERS, CATEGORIES, PAGES, QUERIES = [1, 2, 3], [7, 8], [3, 4], ["b", "a", "é", "\U0001f600", 'q"\\\n', "B"]
LONGEST, TOO_LONG = "é" * 500, "é" * 500 + "e"  # a value of 1,000 bytes is kept
COUNTRIES, GENDERS, CITIES = ["CN", "IN"], ["f", "m"], ["Shanghai", "Delhi"]
ALL_KEYS = [
    *(ViewKey(view=view, key=str(user)) for view in ("user_browse_5m", "user_browse_1m") for user in [*USERS, 9]),
    *(ViewKey(view="category_top_items_10m", key=str(category)) for category in [*CATEGORIES, 99]),
    *(ViewKey(view="top_viewed_30m", key=kind) for kind in [*ITEM_TYPES, "none"]),
    ViewKey(view="top_queries_30m", key="all"),
    *(
        ViewKey(view="segment_page_top_ads", key="|".join([country, gender, *city, str(page)]))
        for country in COUNTRIES
        for gender in GENDERS
        for city in [[], *([name] for name in CITIES)]
        for page in PAGES
    ),
]

# Few distinct times, on both sides of the edges of tiles, windows and the horizon: ties must collide.
EDGE = HORIZON + DISORDER
times = st.sampled_from(
    [
        *(BASE + step for step in (0, 0, 0, 1, DISORDER, TILE - 1, TILE)),
        *(BASE + edge + step for edge in (MINUTE, 5 * MINUTE, 10 * MINUTE, 30 * MINUTE) for step in (-1, 0)),
        *(BASE + EDGE + step for step in (0, 1, TILE)),
    ]
)
numbers = st.integers(0, 9)
retracted = st.integers(0, 5)
IDS = ["", "e1", "e10", "e2", "é", "\U0001f600", "a word of more than eight bytes", "x" * 70, "x" * 71, 'q"\\']


def present(**fields):
    return {name: value for name, value in fields.items() if value is not None}


views = st.builds(
    lambda number, ts, user, item, page, kind: present(
        event_id=IDS[number], event_type="view", ts=ts, user_id=user, item_id=item, page_id=page, item_type=kind,
        dwell_ms=number,
    ),
    numbers, times, st.sampled_from([1, 1, 2]), st.integers(1, 4), st.sampled_from(PAGES), st.sampled_from(ITEM_TYPES),
)  # fmt: skip
ad_clicks = st.builds(
    lambda number, ts, user, item, page: present(
        event_id=IDS[number], event_type="click", ts=ts, user_id=user, item_id=item, page_id=page, item_type="ad",
        category_id=7,
    ),
    numbers, times, st.sampled_from([1, 1, 2, 3]), st.integers(10, 13), st.sampled_from(PAGES),
)  # fmt: skip
searches = st.builds(
    lambda number, ts, user, query: present(
        event_id=IDS[number], event_type="search", ts=ts, user_id=user, query=query
    ),
    numbers, times, st.sampled_from(USERS), st.sampled_from([*QUERIES, LONGEST, TOO_LONG]),
)  # fmt: skip
odd = st.builds(
    lambda number, kind, ts, fields: present(event_id=IDS[number], event_type=kind, ts=ts, **fields),
    numbers,
    st.sampled_from(TYPES[:-1]),
    times,
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(USERS),
            "item_id": st.sampled_from([None, 1, 2, 10, 11]),
            "item_type": st.sampled_from([None, *ITEM_TYPES]),
            "category_id": st.sampled_from([None, *CATEGORIES]),
            "page_id": st.sampled_from([None, *PAGES]),
            "dwell_ms": st.sampled_from([None, 0, 5, 1_000]),
            "query": st.sampled_from([None, *QUERIES, LONGEST, TOO_LONG]),
        }
    ),
)
single = st.one_of(views, views, ad_clicks, searches, odd)


def name_of(event):
    """What makes two events one: the id, of one user within a minute."""
    return event["user_id"], event["event_id"], event["ts"] // MINUTE


@st.composite
def streams(draw, *, min_size=0):
    """Events in the order they come, some of them twice, some taken back: before they come, after, or never coming."""
    events = draw(st.lists(single, min_size=min_size, max_size=25))
    # What a retraction carries is the event that counted: one of its name only.
    alone = [each for each in events if all(each == other for other in events if name_of(each) == name_of(other))]
    retractions = [
        retraction(draw, number, draw(st.sampled_from(alone))) for number in range(draw(retracted) if alone else 0)
    ]
    never = [each for each in alone if draw(st.integers(0, 19)) == 0]
    came = [each for each in events if each not in never]
    for each in [
        *retractions,
        *(came[index % len(came)] for index in draw(st.lists(st.integers(0, 24), max_size=6)) if came),
    ]:
        came.insert(draw(st.integers(0, len(came))), each)
    return came


def retraction(draw, number, event):
    step = draw(st.sampled_from([0, 0, 1, TILE, MINUTE, 30 * MINUTE, EDGE + 1]))
    later = max(event["ts"], min(event["ts"] + step, BASE + EDGE + TILE))
    return {
        "event_id": f"r{number}",
        "event_type": "retract",
        "ts": later,
        "user_id": event["user_id"],
        "retracts": event,
    }


profiles = st.lists(
    st.builds(
        present,
        user_id=st.sampled_from([1, 1, 2, 3]),
        ts=st.sampled_from([BASE - 1, BASE, BASE, BASE + 1, BASE + 10 * MINUTE]),
        country=st.sampled_from([*COUNTRIES, None]),
        gender=st.sampled_from(GENDERS),
        city=st.sampled_from([*CITIES, None]),
        age_band=st.just("20-29"),
    ),
    max_size=8,
)
steps = st.lists(st.sampled_from(["apply", "apply", "commit", "commit", "restart"]), min_size=2, max_size=12)


@dataclass
class Log:
    """One partition: what came, in order, and the offset after the last committed record."""

    profiles: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    committed: int = 0
    position: int = 0


def operator(partition, store):
    return FeatureOperator(
        partition,
        store=store,
        latest_ms=lambda wall_ms: 2**62,
        watermark=WatermarkOptions(disorder_ms=DISORDER),
    )


def restored(partition, store, log):
    """A new owner: committed state, then the log from the committed offset on."""
    new = operator(partition, store)
    new.restore(None, committed={"behavior": log.committed})
    log.position = log.committed
    if not log.committed:
        new.apply(record_batch("profile", partition, [msgspec.json.encode(each) for each in log.profiles]))
    return new


def run(owners, logs, plan, size, totals):
    """Apply the logs in batches of `size`, doing what `plan` says in turn, to the end and committed."""
    turn, counted, operators = 0, Counter(), owners()
    while any(log.committed < len(log.events) for log in logs):
        step = plan[turn % len(plan)] if turn < 3 * len(plan) else ("apply", "commit")[turn % 2]
        turn += 1
        if step == "restart":
            operators, counted = owners(), Counter()
        elif step == "apply" or all(log.position == log.committed for log in logs):
            for partition, log in enumerate(logs):
                values = [msgspec.json.encode(each) for each in log.events[log.position : log.position + size]]
                batch = record_batch("behavior", partition, values, first_offset=log.position)
                counted += operators[partition].apply(batch).counts
                log.position += len(values)
        else:
            FeatureOperator.prepare(operators)
            for owner, log in zip(operators, logs, strict=True):
                owner.write(None)
                owner.committed()
                log.committed = log.position
            totals += counted
            counted = Counter()


def pipeline(events, profiles, *, plan=("apply", "commit"), size=1000):
    """The store after the events went through, and the counts that were committed."""
    tables, totals = MemoryFeatureTables(), Counter()
    stores = [MemoryFeatureStore(DEFINITIONS, tables=tables) for _ in range(PARTITIONS)]
    logs = [
        Log(
            profiles=[each for each in profiles if each["user_id"] % PARTITIONS == partition],
            events=[each for each in events if each["user_id"] % PARTITIONS == partition],
        )
        for partition in range(PARTITIONS)
    ]

    def owners():
        return [restored(partition, stores[partition], log) for partition, log in enumerate(logs)]

    run(owners, logs, plan, size, totals)
    return MemoryFeatureStore(DEFINITIONS, tables=tables), totals


# --- the plain recomputation ------------------------------------------------------------------------------------------


def accepted(events):
    """The events that count, by the rules of time and of duplicates; and how many did not."""
    kept, outcomes = [], Counter()
    for partition in range(PARTITIONS):
        newest, known, gone = None, set(), set()
        for event in (each for each in events if each["user_id"] % PARTITIONS == partition):
            mark = None if newest is None else newest - DISORDER
            newest = event["ts"] if newest is None else max(newest, event["ts"])
            if mark is not None and event["ts"] < mark - HORIZON:
                outcomes["beyond_horizon"] += 1
                continue
            if mark is not None and event["ts"] < mark:
                outcomes["corrected"] += 1
            if event["event_type"] == "retract":
                take_back(event["retracts"], kept, mark, known, gone, outcomes)
            else:
                name = name_of(event)
                outcomes["duplicate"] += name in known
                outcomes["retracted"] += name in gone - known
                if name not in known | gone:
                    kept.append(event)
                known.add(name)
    return kept, outcomes


def take_back(event, kept, mark, known, gone, outcomes):
    name = name_of(event)
    if mark is not None and event["ts"] < mark - HORIZON:
        outcomes["retract_beyond_horizon"] += 1
        return
    outcomes["duplicate" if name in gone else "retract"] += 1
    if name not in gone and name in known:
        outcomes["retracted"] += 1
        kept[:] = [each for each in kept if name_of(each) != name]
    gone.add(name)


def top(values, limit):
    return [[value, n] for value, n in sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))[:limit]]


def newest_first(events, name):
    ordered = sorted(events, key=lambda event: (event["ts"], event["event_id"]), reverse=True)
    return [event[name] for event in ordered if event.get(name) is not None]


def no_repeats(values):
    return [value for index, value in enumerate(values) if value not in values[:index]]


def segments(event, profiles):
    """The keys a click on an ad counts under: by the newest profile with ts <= the event's, the last sent of equals."""
    versions = [each for each in profiles if each["user_id"] == event["user_id"] and each["ts"] <= event["ts"]]
    if not versions or event.get("page_id") is None:
        return []
    profile = max(enumerate(versions), key=lambda pair: (pair[1]["ts"], pair[0]))[1]
    forms = [("country", "gender"), ("country", "gender", "city")]
    parts = [[profile.get(name) for name in form] for form in forms]
    return ["|".join([*each, str(event["page_id"])]) for each in parts if None not in each]


def expected(ask, events, profiles, *, start, end):
    """The value of one key over [start, end), to the letter of the contract; None without data."""
    within = [event for event in events if start <= event["ts"] < end]
    of = {kind: [event for event in within if event["event_type"] == kind] for kind in TYPES}
    if ask.view in ("user_browse_5m", "user_browse_1m"):
        mine = {kind: [event for event in of[kind] if str(event["user_id"]) == ask.key] for kind in TYPES}
        return (five_minutes if ask.view == "user_browse_5m" else one_minute)(mine)
    if ask.view == "category_top_items_10m":
        hits = [event for event in of["click"] if str(event.get("category_id")) == ask.key]
        return top_of(hits, "item_id", 50)
    if ask.view == "top_viewed_30m":
        return top_of([event for event in of["view"] if event.get("item_type") == ask.key], "item_id", 100)
    if ask.view == "top_queries_30m":
        found = top_of(of["search"], "query", 101)
        return found and {"top": [pair for pair in found["top"] if pair[0] != TOO_LONG]}
    ads = [event for event in of["click"] if event.get("item_type") == "ad" and event.get("item_id") is not None]
    ads = [event for event in ads if ask.key in segments(event, profiles)]
    value = top_of(ads, "item_id", 50)
    return None if value is None else {**value, "last": newest_first(ads, "item_id")[:10]}


def top_of(events, name, limit):
    values = [event[name] for event in events if event.get(name) is not None]
    return {"top": top(values, limit)} if values else None


def five_minutes(mine):
    actions = ["view", "click", "favorite", "cart", "consult", "comment", "search"]
    if not any(mine[kind] for kind in actions):
        return None
    kinds = Counter(event["item_type"] for event in mine["view"] if event.get("item_type") is not None)
    return {
        **{kind: len(mine[kind]) for kind in actions},
        "dwell_ms": sum(event.get("dwell_ms", 0) for event in mine["view"]),
        "view_by_type": dict(sorted(kinds.items())),
        "last_items": no_repeats(newest_first(mine["view"], "item_id"))[:50],
    }


def one_minute(mine):
    products = [event for event in mine["view"] if event.get("item_type") == "product"]
    pages = no_repeats(newest_first(mine["view"], "page_id"))
    return {"pages": pages, "items": no_repeats(newest_first(products, "item_id"))} if mine["view"] else None


def span(view, *, as_of_ms, now_ms):
    if as_of_ms is not None:
        end = as_of_ms - as_of_ms % TILE
        return end - WINDOWS[view], end
    open_tile = now_ms - now_ms % TILE
    return open_tile - WINDOWS[view], open_tile + TILE


MOMENTS = [  # none whose longest window begins before the tiles are kept
    BASE + TILE,
    BASE + 2 * TILE - 1,
    *(BASE + edge + step for edge in (MINUTE, 5 * MINUTE, 10 * MINUTE, 30 * MINUTE) for step in (0, TILE)),
    BASE + EDGE + 2 * TILE,
]


def check(store, events, profiles):
    """Every key of every view at times on both sides of every edge, and now."""
    kept, _ = accepted(events)
    last = max((event["ts"] for event in events), default=BASE)
    for as_of_ms in [*MOMENTS, None]:
        values = store.get(ALL_KEYS, as_of_ms=as_of_ms, now_ms=last)
        for ask in ALL_KEYS:
            start, end = span(ask.view, as_of_ms=as_of_ms, now_ms=last)
            assert values[ask] == expected(ask, kept, profiles, start=start, end=end), (ask, as_of_ms)


# --- the laws ---------------------------------------------------------------------------------------------------------


@given(streams(), profiles)
def test_every_value_equals_a_plain_recomputation_over_the_accepted_events(events, profiles):
    store, _ = pipeline(events, profiles)
    check(store, events, profiles)


@given(streams(min_size=3), profiles, steps, st.integers(1, 9))
def test_batches_commits_and_restarts_change_neither_a_value_nor_a_count(events, profiles, plan, size):
    whole, counts = pipeline(events, profiles)
    cut, cut_counts = pipeline(events, profiles, plan=plan, size=size)
    last = max((event["ts"] for event in events), default=BASE)
    for as_of_ms in [*MOMENTS, None]:
        assert cut.get(ALL_KEYS, as_of_ms=as_of_ms, now_ms=last) == whole.get(ALL_KEYS, as_of_ms=as_of_ms, now_ms=last)
    assert {**counts} == {**cut_counts}


@given(st.lists(single, max_size=25, unique_by=lambda event: event["event_id"]), st.data())
def test_arrival_order_does_not_change_a_value_within_the_horizon(events, data):
    events = [event for event in events if event["ts"] <= BASE + HORIZON]
    shuffled = data.draw(st.permutations(events))
    one, _ = pipeline(events, [])
    other, _ = pipeline(shuffled, [])
    for as_of_ms in [*MOMENTS, None]:
        answers = [store.get(ALL_KEYS, as_of_ms=as_of_ms, now_ms=BASE + HORIZON) for store in (one, other)]
        assert answers[0] == answers[1]


@given(streams())
def test_every_event_has_one_named_outcome(events):
    _, counts = pipeline(events, [])
    _, outcomes = accepted(events)
    assert counts["in"] == len(events)
    assert counts["late"] == counts["corrected"] + counts["beyond_horizon"]
    for name in ("corrected", "beyond_horizon", "duplicate", "retract", "retracted", "retract_beyond_horizon"):
        assert counts[name] == outcomes[name], name


@given(streams(min_size=1))
def test_windows_expire_when_traffic_stops(events):
    store, _ = pipeline(events, [])
    last = max((event["ts"] for event in events), default=BASE)
    later = store.get(ALL_KEYS, as_of_ms=None, now_ms=last + 30 * MINUTE + TILE)
    assert set(later.values()) == {None}


sliding_rows = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 8), st.integers(1, 3), st.sampled_from([1, 1, -1])),
    max_size=6,
)


@given(st.lists(st.tuples(sliding_rows, st.integers(0, 3)), max_size=8))
def test_a_window_that_moves_on_holds_what_a_merge_of_its_rows_says(steps):
    view, window = DEFINITIONS.view("segment_page_top_ads"), Window(length_ms=3 * TILE, tile_ms=TILE)
    sliding, rows, at, known = SlidingView(view), [], 0, {}
    for step, (new, forward) in enumerate(steps):
        taken = [(k, t * TILE, f'[{n},[{i},{n}],[5,"e{step}",{i if n > 0 else "null"}]]') for k, t, i, n in new]
        rows += taken
        sliding.take(taken)
        at += forward
        span = window.now(at * TILE)
        known |= sliding.move(span).values
        for key in ("a", "b"):
            inside = [(start, state) for of, start, state in rows if of == key and span.from_ms <= start < span.to_ms]
            assert known.get(key) == merge(view, inside)


def history_of(logs):
    """What the history has of some logs: EVENT_SCHEMA."""
    frames = [
        decode(
            record_batch("behavior", partition, [msgspec.json.encode(each) for each in log]),
            latest_ms=lambda wall_ms: 2**62,
        ).frame.with_columns(partition=pl.lit(partition, dtype=pl.Int32), kafka_ts=pl.lit(0, dtype=pl.Int64))
        for partition, log in enumerate(logs)
    ]
    return pl.concat(frames).select(EVENT_SCHEMA.names())


def fill(store, views, logs, profiles, starts):
    """Add to the store what the views lack of the logs before their starts."""
    history, versions = history_of(logs), newest_per_version(pl.DataFrame(profiles, schema=PROFILE_SCHEMA))
    for view in views:
        for start_ms in slices(BASE, BASE + EDGE + TILE):
            inside = pl.col("ts").is_between(start_ms, start_ms + SLICE_MS - 1)
            events = history.filter(inside | (pl.col("event_type") == "retract"))
            found = tiles_before(view, events, versions, definitions=store.definitions, starts=starts, from_ms=start_ms)
            for partition, rows in found.items():
                store.append(None, TaskOutput(partition=partition, watermark_ms=None, tiles={view.id: rows}))


# Half a second an example: it fills every view slice by slice.
@settings(max_examples=settings.default.max_examples // 4)
@given(streams(min_size=3), profiles, st.lists(st.integers(0, 30), min_size=PARTITIONS, max_size=PARTITIONS))
def test_a_view_that_begins_later_and_is_filled_from_the_history_is_as_if_it_had_always_been(events, profiles, cuts):
    events = [event for event in events if event["ts"] <= BASE + HORIZON]
    logs = [[each for each in events if each["user_id"] % PARTITIONS == partition] for partition in range(PARTITIONS)]
    store = MemoryFeatureStore(DEFINITIONS)
    store.apply(None)
    owners = []
    for partition, log in enumerate(logs):
        owners.append(restored(partition, store, Log(profiles=profiles)))
        owners[-1].apply(record_batch("behavior", partition, [msgspec.json.encode(e) for e in log[: cuts[partition]]]))
        owners[-1].write(None)
        owners[-1].committed()
    again = tuple(replace(view, version=2) for view in DEFINITIONS.views)
    MemoryFeatureStore(replace(DEFINITIONS, views=again), tables=store.tables).apply(None)
    for partition, (owner, log) in enumerate(zip(owners, logs, strict=True)):
        cut = cuts[partition]
        owner.write(None)
        owner.committed()
        values = [msgspec.json.encode(event) for event in log[cut:]]
        owner.apply(record_batch("behavior", partition, values, first_offset=cut))
        owner.write(None)
        owner.committed()
    fill(store, again, logs, profiles, dict(enumerate(cuts)))
    for now_ms in [moment for moment in MOMENTS if moment is not None]:
        values = [
            store.get(
                [ViewKey(view=f"{ask.view}@{version}", key=ask.key) for ask in ALL_KEYS], as_of_ms=None, now_ms=now_ms
            )
            for version in (1, 2)
        ]
        assert list(values[0].values()) == list(values[1].values())
