"""Click delays: what they amount to, how they look."""

import numpy as np
import polars as pl
import pytest
from click import BadParameter

from rtrec_ray.cli.samples import Columns, Duration
from rtrec_ray.demo.charts.delays import draw_delays
from rtrec_ray.samples.delays import DELAY_SCHEMA, EDGES_MS, report_delays


def clicks(*rows):
    return pl.DataFrame(rows, schema=DELAY_SCHEMA, orient="row")


def test_a_wait_misses_the_clicks_that_do_not_come_within_it():
    delays = np.random.default_rng(3).integers(0, 200, 500) * 1_000
    for wait_ms in (0, 1_000, 60_000, 199_000, 200_000):
        found = report_delays(clicks(*((1, int(delay)) for delay in delays)), wait_ms=wait_ms)
        assert found.all_pages.missed == pytest.approx((delays >= wait_ms).mean())


def test_quantiles_are_delays_by_which_that_share_has_come():
    found = report_delays(clicks(*((1, n) for n in range(1, 1_001))), wait_ms=0).all_pages
    assert found.quantiles_ms == {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p999": 999}


def test_every_click_is_in_one_bucket_of_its_page_and_of_all():
    rows = [(page, edge + shift) for page in (1, 2) for edge in EDGES_MS for shift in (-1, 0)]
    found = report_delays(clicks(*rows), wait_ms=0)
    assert found.all_pages.histogram == [2, *[4] * (len(EDGES_MS) - 1), 2]
    assert [sum(page.histogram) for page in found.pages] == [2 * len(EDGES_MS)] * 2


def test_a_click_before_its_impression_waited_for_nothing_and_one_without_a_page_counts_for_all():
    found = report_delays(clicks((1, -5_000), (None, 70_000)), wait_ms=60_000)
    assert (found.all_pages.clicks, found.all_pages.missed) == (2, 0.5)
    assert [(page.page_id, page.quantiles_ms["p50"]) for page in found.pages] == [(1, 0)]


def test_no_clicks_are_no_report():
    assert report_delays(clicks(), wait_ms=0) is None


@pytest.mark.parametrize("name", ["delays.png", "delays.svg"])
@pytest.mark.parametrize("rows", [[(1, 0)], [(n % 9, n * n) for n in range(1_000)]])
def test_delays_are_drawn_whatever_they_are(tmp_path, name, rows):
    found = clicks(*rows)
    draw_delays(found, report_delays(found, wait_ms=60_000), tmp_path / name)
    head = (tmp_path / name).read_bytes()[:100]
    assert head.startswith(b"\x89PNG") or b"<?xml" in head


def test_a_time_needs_its_unit_and_a_column_must_exist():
    assert [Duration().convert(text, None, None) for text in ("5ms", "60s", "10m", "2h", "7d")] == [
        5, 60_000, 600_000, 7_200_000, 604_800_000,
    ]  # fmt: skip
    for text in ("60", "s", "1.5m", "-1s"):
        with pytest.raises(BadParameter, match="60s"):
            Duration().convert(text, None, None)
    assert Columns().convert("label, item_id,label", None, None) == ("label", "item_id")
    with pytest.raises(BadParameter, match="'lable' is no column"):
        Columns().convert("lable", None, None)
