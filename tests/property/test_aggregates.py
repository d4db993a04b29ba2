"""Partial aggregates: a value read once is the value that is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.eventtime.aggregate import Counts, Mean, Newest, Top, Total

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


single = st.tuples(st.integers(0, 2), st.sampled_from(["e1", "e2"]), st.sampled_from([1, 2, 3])).map(list)


@given(rows_of(entries) | rows_of(single | st.just([])), limits, st.booleans())
def test_the_newest_of_rows_alone_are_those_of_rows_that_came_one_by_one(rows, limit, repeats):
    newest = Newest(limit=limit, repeats=repeats)
    assert alone(newest, rows) == kept(Newest(limit=limit, repeats=repeats), rows)
    assert newest.value() == []  # nothing was taken


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
