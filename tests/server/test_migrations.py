"""The schema explains itself, and is applied once."""

import pytest

from rtrec_ray.clock import ScaledClock
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.migrate import files, migrate
from rtrec_ray.stores.progress import put_clock

pytestmark = pytest.mark.server

UNCOMMENTED = """
SELECT n.nspname || '.' || c.relname || coalesce('.' || a.attname, '')
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname IN ('meta', 'features', 'samples') AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
  AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL)
"""


def test_every_table_and_column_says_what_it_is(dsn):
    connection = connect(PostgresOptions(dsn=dsn))
    with transaction(connection) as cursor:
        cursor.execute(UNCOMMENTED)
        assert [name for (name,) in cursor.fetchall()] == []
    connection.close()


def test_migrating_again_changes_nothing(dsn):
    assert migrate(PostgresOptions(dsn=dsn)) == []
    assert len(files()) == len({name[:4] for name in files()})


def test_times_of_the_machine_are_told_by_the_systems_clock(dsn):
    asked = "SELECT meta.event_ms(to_timestamp(2.5)), meta.event_ms(NULL)"
    connection = connect(PostgresOptions(dsn=dsn))
    with transaction(connection) as cursor:
        cursor.execute(asked)
        assert cursor.fetchone() == (2_500, None), "no clock is fixed yet"
        put_clock(cursor, ScaledClock(origin_event_ms=7, origin_wall_ms=1_500, speed=60.0))
        cursor.execute(asked)
        assert cursor.fetchone() == (60_007, None)
    connection.close()
