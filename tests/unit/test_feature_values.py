"""Values of views as text: for people, programs and files."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from rtrec_ray.cli.features import _print_values
from rtrec_ray.cli.main import main
from rtrec_ray.cli.options import Where
from rtrec_ray.features.as_of import schema_of
from rtrec_ray.features.definition import Aggregation, FeatureView
from rtrec_ray.stores.row_files import write_rows

SUM = 3 * (2**63 - 1)


def test_a_command_prints_a_sum_beyond_64_bits_as_it_is(capsys):
    found = {"view": "v", "values": {"1": {"dwell_ms": SUM, "text": "é\U0001f600"}, "2": None}}
    for as_json in (True, False):
        where = Where(config=None, data_dir=Path(), json=as_json, debug=False)
        where.answer(found, lambda: _print_values(found))
    first, *lines = capsys.readouterr().out.splitlines()
    assert json.loads(first) == found
    assert {line.split(": ", 1)[0]: json.loads(line.split(": ", 1)[1]) for line in lines} == found["values"]


TIMES = [
    ("features", "get", "user_browse_5m", "1", "--as-of"),
    ("features", "backfill", "user_browse_5m", "--from"),
    ("features", "backfill", "user_browse_5m", "--to"),
    ("features", "verify", "--from"),
    ("features", "verify", "--to"),
    ("samples", "export", "--as-of"),
    ("samples", "stitch", "--from"),
    ("samples", "verify", "--to"),
]


@pytest.mark.parametrize("words", TIMES, ids=" ".join)
@pytest.mark.parametrize("time", ["99999999999999999999", "253402300800000", "-1", "soon", "1.5", "", "\u0661"])
def test_what_is_no_time_is_refused_in_one_line_that_says_what_is_one(capsys, words, time):
    with pytest.raises(SystemExit) as ended:
        main([*words, time])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(time) in line
    assert "ms since 1970" in line


@pytest.mark.parametrize("last", ["9999999999d", "-1d", "soon"])
def test_what_is_no_length_of_time_is_refused_in_one_line(capsys, last):
    with pytest.raises(SystemExit) as ended:
        main(["features", "verify", "--last", last])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(last) in line


@pytest.mark.parametrize(("name", "sum_"), [("rows.jsonl", SUM), ("rows.csv", 2**63 - 1)])
def test_a_file_has_a_sum_beyond_64_bits_as_its_format_can(tmp_path, name, sum_):
    dwell = Aggregation(name="dwell_ms", kind="sum", field="dwell_ms")
    view = FeatureView(name="v", version=1, keys=(("user_id",),), window_ms=10, source=(), aggregations=(dwell,))
    rows = pl.DataFrame({"key": ["1"], "v": [True], "v.dwell_ms": [SUM]}, schema={"key": pl.String, **schema_of(view)})
    write_rows(tmp_path / name, rows, view)
    text = (tmp_path / name).read_text()
    assert str(sum_) in text
    assert name != "rows.jsonl" or json.loads(text) == {"key": "1", "v": {"dwell_ms": sum_}}
