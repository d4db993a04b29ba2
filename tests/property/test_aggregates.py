"""Partial aggregates: a value read once is the value that is kept."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.eventtime import aggregate
from rtrec_ray.eventtime.aggregate import Counts, Mean, Newest, Top, Total
from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.definition import Aggregation, FeatureView
from rtrec_ray.features.merge import Merged, Once, timed_state

starts = st.sampled_from([0, 10, 20])
numbers = st.integers(-3, 5)
values = st.sampled_from(["a", "b", "é"])
limits = st.sampled_from([None, 1, 3])
# Few times and ids, so that ties and entries that take others back are common.
entries = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["e1", "e2"]), st.sampled_from([1, 2, 3, None])), max_size=2
).map(lambda found: [part for entry in found for part in entry])
counted = st.lists(st.tuples(values, numbers), max_size=3).map(lambda found: [part for pair in found for part in pair])


def kept(aggregate, rows):
    """What it comes to when the rows come one by one."""
    for start, partial in rows:
        aggregate.add([partial], [start])
    return aggregate.value()


def alone(aggregate, rows):
    return aggregate.alone([partial for _, partial in rows], [start for start, _ in rows])


def rows_of(partials):
    return st.lists(st.tuples(starts, partials), max_size=6)


def in_turn(partials):
    """One row a tile, the oldest first, as most users' come."""
    return st.dictionaries(starts, partials, min_size=2).map(lambda found: sorted(found.items()))


def plain(rows, limit, repeats):
    """Every entry that was not taken back, sorted at once; of the values those that count."""
    gone, standing = Counter(), []
    found = [(start, *entry) for start, row in rows for entry in zip(*[iter(row)] * 3, strict=True)]
    gone.update((start, ms, event) for start, ms, event, value in found if value is None)
    for start, ms, event, value in found:
        if value is not None and gone[start, ms, event] > 0:
            gone[start, ms, event] -= 1
        elif value is not None:
            standing.append((start, ms, event, value))
    newest_first = [value for *_, value in sorted(standing, reverse=True)]
    return (newest_first if repeats else list(dict.fromkeys(newest_first)))[:limit]


single = st.tuples(st.integers(0, 2), st.sampled_from(["e1", "e2"]), st.sampled_from([1, 2, 3])).map(list)
# Without what takes another back.
single_pair = st.tuples(single, single).map(lambda found: [*found[0], *found[1]])


@given(
    rows_of(entries) | rows_of(single | st.just([])) | in_turn(entries) | in_turn(single | single_pair),
    limits,
    st.booleans(),
)
def test_the_newest_of_rows_alone_are_those_of_rows_that_came_one_by_one(rows, limit, repeats):
    newest = Newest(limit=limit, repeats=repeats)
    expected = plain(rows, limit, repeats)
    assert alone(newest, rows) == kept(Newest(limit=limit, repeats=repeats), rows) == expected
    assert alone(newest, [(start, msgspec.Raw(msgspec.json.encode(row))) for start, row in rows]) == expected
    assert newest.value() == []  # nothing was taken


def test_entries_older_than_a_limit_needs_are_not_decoded(monkeypatch):
    rows = [[ms, f"e{ms}", 10 * tile + ms, 9, "x", 7] for tile in range(5) for ms in range(2)]
    raw = [msgspec.Raw(msgspec.json.encode(row)) for row in rows]
    decoded = []
    monkeypatch.setattr(
        aggregate, "_decode", lambda partial: decoded.append(bytes(partial)) or msgspec.json.decode(partial)
    )
    found = Newest(limit=3, repeats=False).alone(raw, [tile for tile in range(5) for _ in range(2)])
    assert found == [7, 41, 40]
    assert decoded == [bytes(partial) for partial in raw[-2:]]


@given(rows_of(st.tuples(numbers, entries, counted)), limits, st.booleans())
def test_a_value_of_much_text_is_that_of_little(rows, limit, repeats):
    last = Aggregation(name="last", kind="last_n", field="item_id", limit=limit, repeats=repeats)
    top = Aggregation(name="top", kind="top_k", field="item_type", limit=2)
    view = FeatureView(name="v", version=1, keys=((),), window_ms=30, source=(), aggregations=(last, top))
    states = [(start, msgspec.json.encode(row).decode()) for start, row in rows]
    once, span = Once(view), Span(from_ms=10, to_ms=20, as_of_ms=20)
    timed = [timed_state(*row) for row in states]
    for blank in ("\n", " " * 10_000) if rows else ():
        assert once.value(f",{blank}".join(timed)) == merged(view, states)
        assert once.value(f",{blank}".join(timed), span=span) == merged(view, [row for row in states if row[0] == 10])


def merged(view, rows):
    total = Merged(view)
    for start, state in rows:
        total.add([start], state)
    return total.value()


@given(rows_of(counted), st.integers(0, 3))
def test_the_counts_of_rows_alone_are_those_of_rows_that_came_one_by_one(rows, limit):
    counts = Counts()
    assert list(alone(counts, rows).items()) == list(kept(Counts(), rows).items())
    assert counts.value() == {}  # nothing was taken
    assert alone(Top(limit=limit), rows) == kept(Top(limit=limit), rows)


@given(rows_of(numbers), rows_of(st.tuples(numbers, st.integers(0, 2))))
def test_sums_and_means_of_rows_alone_are_those_of_rows_that_came_one_by_one(totals, means):
    assert alone(Total(), totals) == kept(Total(), totals)
    assert alone(Mean(), means) == kept(Mean(), means)
