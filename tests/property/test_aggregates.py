"""Partial aggregates: a value read once is the value that is kept."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.eventtime.aggregate import Counts, Mean, Newest, Top, Total
from rtrec_ray.features.definition import Aggregation, FeatureView
from rtrec_ray.features.merge import Merged, Once

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


@given(rows_of(entries) | rows_of(single | st.just([])), limits, st.booleans())
def test_the_newest_of_rows_alone_are_those_of_rows_that_came_one_by_one(rows, limit, repeats):
    newest = Newest(limit=limit, repeats=repeats)
    expected = plain(rows, limit, repeats)
    assert alone(newest, rows) == kept(Newest(limit=limit, repeats=repeats), rows) == expected
    assert alone(newest, [(start, msgspec.Raw(msgspec.json.encode(row))) for start, row in rows]) == expected
    assert newest.value() == []  # nothing was taken


class Looked(list):
    """A partial that knows whether somebody looked into it."""

    looked = False

    def __iter__(self):
        self.looked = True
        return super().__iter__()


def test_entries_older_than_a_limit_needs_are_not_looked_at():
    rows = [Looked([ms, f"e{ms}", 10 * tile + ms, 9, "x", 7]) for tile in range(5) for ms in range(2)]
    found = Newest(limit=3, repeats=False).alone(rows, [tile for tile in range(5) for _ in range(2)])
    assert found == [7, 41, 40]
    assert [row.looked for row in rows] == [False] * 8 + [True] * 2


@given(rows_of(st.tuples(numbers, entries, counted)), limits, st.booleans())
def test_a_value_of_much_text_is_that_of_little(rows, limit, repeats):
    last = Aggregation(name="last", kind="last_n", field="item_id", limit=limit, repeats=repeats)
    top = Aggregation(name="top", kind="top_k", field="item_type", limit=2)
    view = FeatureView(name="v", version=1, keys=((),), window_ms=30, source=(), aggregations=(last, top))
    states, merged = [msgspec.json.encode(row).decode() for _, row in rows], Merged(view)
    for (start, _), state in zip(rows, states, strict=True):
        merged.add([start], state)
    if rows:
        once, found = Once(view), merged.value()
        for blank in (" ", " " * 100_000):
            assert once.value([start for start, _ in rows], (blank + ",").join(states)) == found


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
