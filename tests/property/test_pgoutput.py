"""What was written in pgoutput's form is what is read from it, however transactions are made up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rtrec_ray.stores.changes.pgoutput import Begin, Commit, Insert, Relation, Transactions, parse
from tests import pgoutput_bytes as write

lsns = st.integers(0, 2**63 - 1)
oids = st.integers(1, 2**32 - 1)
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12)
cells = st.none() | st.binary(max_size=20)


@given(lsns, st.integers(0, 2**32 - 1), lsns)
def test_ends_of_transactions_come_back(one, xid, other):
    assert parse(write.begin(one, xid=xid, at_us=-5)) == Begin(final_lsn=one, xid=xid)
    assert parse(write.commit(one, other)) == Commit(commit_lsn=one, end_lsn=other)


@given(oids, names, names, st.lists(names, max_size=5))
def test_a_table_comes_back(oid, schema, name, columns):
    found = parse(write.relation(oid, schema, name, columns))
    assert found == Relation(oid=oid, schema=schema, name=name, columns=tuple(columns))


@given(oids, st.lists(cells, max_size=9))
def test_a_row_comes_back_and_null_is_not_empty(oid, values):
    assert parse(write.insert(oid, values)) == Insert(oid=oid, values=tuple(values))


@given(st.lists(st.lists(st.tuples(st.booleans(), cells), max_size=4), max_size=5))
def test_every_row_is_in_the_transaction_that_commits_it_in_its_shape(transactions):
    reader, found, end = Transactions("s.t"), [], 0
    for rows in transactions:
        end += 10
        messages = [write.begin(end)]
        for wide, value in rows:
            columns = ("a", "b") if wide else ("a",)
            messages += [write.relation(7, "s", "t", columns), write.insert(7, [value] * len(columns))]
        answers = [reader.handle(message) for message in [*messages, write.commit(end, end + 5)]]
        assert all(answer is None for answer in answers[:-1])
        found.append(answers[-1])
    assert [whole.end_lsn for whole in found] == [10 * n + 5 for n in range(1, len(found) + 1)]
    for whole, rows in zip(found, transactions, strict=True):
        read = [(part.columns, values) for part in whole.parts for values in part.values]
        assert read == [(("a", "b"), (v, v)) if wide else (("a",), (v,)) for wide, v in rows]
