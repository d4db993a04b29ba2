"""Click delays come from the actions on samples."""

import json
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from rtrec_ray.cli.main import root
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


def test_the_command_says_and_draws_how_long_clicks_take(options, tmp_path: Path) -> None:
    rows = [sample(f"r{n}", ts=FIRST_MS, page_id=n % 2) for n in range(40)]
    PostgresPuts(options).put(rows)
    put(options, *((f"r{n}", 1, "click", FIRST_MS + 1_000 * n, False, False) for n in range(40)))
    config = tmp_path / "config.yaml"
    config.write_text(f'servers: {{postgres: {{dsn: "{options.dsn}"}}}}\n')

    def stats(*words: str) -> str:
        asked = ["samples", "stats", *words, "--config", str(config), "--data-dir", str(tmp_path / "data")]
        done = CliRunner().invoke(root, asked, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.output

    png, svg = tmp_path / "delays.png", tmp_path / "delays.svg"
    found = json.loads(stats("--wait", "30s", "--plot", str(png), "--json"))
    assert found["click_delays"]["all_pages"]["missed"] == 10 / 40
    assert "a wait of 30.0 s misses:" in stats("--wait", "30s", "--plot", str(svg))
    pixels = imread(png)
    assert pixels.shape[0] > 100
    assert len({tuple(colour) for colour in pixels.reshape(-1, pixels.shape[2])[::7]}) > 10, "something is drawn"
    assert svg.read_text().count("<path") > 5
    with pytest.raises(click.BadParameter, match=r"must end in \.png or \.svg"):
        stats("--plot", "delays.gif")
