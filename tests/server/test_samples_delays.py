"""Click delays come from the actions on samples."""

from contextlib import closing

import pytest

from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.stores.samples.delays import read_delays
from tests.scanned_samples import DAY_MS, FIRST_MS, PostgresPuts, clicked, sample

pytestmark = pytest.mark.server

PUT = """
INSERT INTO samples.actions (request_id, item_id, action_id, kind, action_ms, taken_back, held, source_partition)
VALUES (%s, %s, %s, %s, %s, %s, %s, 0)
"""


@pytest.fixture
def options(dsn) -> PostgresOptions:
    return PostgresOptions(dsn=dsn)


def put(options, *actions):
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        for number, (request, item, kind, ms, taken_back, held) in enumerate(actions):
            cursor.execute(PUT, (request, item, number, kind, ms, taken_back, held))


def test_a_delay_is_from_the_impression_to_its_first_click_that_stands(options):
    shown = FIRST_MS + DAY_MS - 1_000
    rows = [sample("r", item, ts=shown, page_id=item % 2) for item in range(5)]
    rows.append(sample("q", 9, ts=shown, asked=shown - 5_000, page_id=8))
    PostgresPuts(options).put(rows)
    PostgresPuts(options).put([clicked(rows[1])])
    put(
        options,
        ("r", 0, "click", shown + 70, False, False),
        ("r", 0, "click", shown + 50, False, False),
        ("r", 0, "view", shown + 1, False, False),
        ("r", 1, "click", shown + 6 * DAY_MS, False, False),
        ("r", 2, "click", shown + 5, True, False),
        ("r", 2, "click", shown + 9, False, False),
        ("r", 3, "click", shown + 5, True, False),
        ("r", 4, "click", shown + 5, False, True),
        ("q", 9, "click", shown + 3, False, False),
        ("gone", 1, "click", shown + 3, False, False),
    )
    found, share = read_delays(options, horizon_ms=7 * DAY_MS)
    assert share == 1.0
    assert sorted(found.rows()) == [(0, 9), (0, 50), (1, 6 * DAY_MS), (8, 3)]


def test_of_a_big_table_a_share_is_drawn(options):
    count = 4_000
    rows = [sample(f"r{n}", ts=FIRST_MS, page_id=1) for n in range(count)]
    PostgresPuts(options).put(rows)
    put(options, *((f"r{n}", 1, "click", FIRST_MS + 1_000 * (n % 10), False, False) for n in range(count)))
    found, share = read_delays(options, horizon_ms=DAY_MS, most=count // 4)
    assert share < 1.0
    assert 0 < found.height < count
