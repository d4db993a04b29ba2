"""Leases and the counter, against a real PostgreSQL."""

import threading

import pytest

from rtrec_ray.errors import LeaseHeld, LeaseLost, StoreUnavailable
from rtrec_ray.postgres import counter, lease
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction

pytestmark = pytest.mark.server


@pytest.fixture
def options(dsn):
    return PostgresOptions(dsn=dsn)


@pytest.fixture
def open_session(options):
    opened = []

    def _open(**kwargs):
        opened.append(connect(options, **kwargs))
        return opened[-1]

    yield _open
    for connection in opened:
        connection.close()


def take(connection, *, owner="a", ttl_ms=60_000):
    return lease.take(connection, task="t", partition=0, owner=owner, ttl_ms=ttl_ms)


def test_a_live_owner_keeps_its_lease(open_session):
    owner, other = open_session(), open_session()
    take(owner)
    with pytest.raises(LeaseHeld, match=r"t\[0\] belongs to a"):
        take(other, owner="b")


def test_an_owner_whose_session_is_gone_is_replaced_at_once(open_session):
    owner, other = open_session(), open_session()
    first = take(owner)
    owner.close()
    _until_gone(other)
    assert take(other, owner="b").epoch == first.epoch + 1


def test_a_commit_after_a_takeover_is_refused_whole(open_session):
    owner, other, third = open_session(), open_session(), open_session()
    old = take(owner, ttl_ms=0)
    take(other, owner="b")
    with pytest.raises(LeaseLost):
        _commit(third, old)
    with transaction(third) as cursor:
        cursor.execute("SELECT count(*) FROM meta.counters")
        assert cursor.fetchone() == (0,)


def test_a_takeover_ends_an_owner_that_hangs_in_its_commit(open_session):
    owner, other = open_session(), open_session()
    held = take(owner, ttl_ms=0)
    cursor = owner.cursor()
    lease.fence(cursor, [lease.Lease(task="t", partition=0, epoch=held.epoch, ttl_ms=0)])  # the row's lock stays held
    assert take(other, owner="b").epoch == held.epoch + 1
    with pytest.raises(StoreUnavailable), transaction(owner) as late:
        late.execute("SELECT 1")


def test_a_released_lease_is_free_at_once(open_session):
    owner, other = open_session(), open_session()
    lease.release(owner, [take(owner)])
    take(other, owner="b")


def test_an_owner_that_hangs_in_a_transaction_is_ended_by_the_server(open_session):
    session = open_session(pipeline=True)
    with session.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("5s",)


def test_who_reads_a_number_has_every_smaller_one(options, open_session):
    reader, first, second = open_session(), open_session(), open_session()
    seen = []
    with transaction(first) as cursor:
        assert counter.take(cursor, "n", 2) == 1
        waiting = threading.Thread(target=lambda: seen.append(_take_number(second)))
        waiting.start()
        with transaction(reader) as look:
            look.execute("SELECT count(*) FROM meta.counters")
            assert look.fetchone() == (0,)
    waiting.join(timeout=120)
    assert seen == [3]


def _commit(connection, held):
    with transaction(connection) as cursor:
        cursor.execute("INSERT INTO meta.counters VALUES ('x', 1)")
        lease.fence(cursor, [held])


def _take_number(connection):
    with transaction(connection) as cursor:
        return counter.take(cursor, "n")


def _until_gone(connection):
    for _ in range(10_000):
        with transaction(connection) as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            if cursor.fetchone() == (1,):
                return
    raise AssertionError("the closed session is still there")
