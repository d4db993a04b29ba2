"""`rtrec features apply|list|drop` as a user has them, on a real PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rtrec_ray.cli.main import main, root
from rtrec_ray.errors import DefinitionInvalid, UnknownView

pytestmark = pytest.mark.server

SHIPPED = (Path(__file__).parents[2] / "configs" / "features.yaml").read_text()
SEARCH = "      search: {count: events, where: {event_type: search}}\n"


LONG = """
tile: 10s
horizon: 130m
retention: 250m
views:
  - name: hourly
    version: 1
    keys: [user_id]
    window: 120m
    source: {event_type: view}
    aggregations: {views: {count: events}}
"""


@pytest.fixture
def times():
    return lambda answer: (answer["horizon_ms"] // 60_000, answer["retention_ms"] // 60_000)


@pytest.fixture
def shell(dsn, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f'servers: {{postgres: {{dsn: "{dsn}"}}}}\n')

    def run(*words: str) -> Any:
        words = ("features", *words, "--json", "--config", str(config), "--data-dir", str(tmp_path / "data"))
        done = CliRunner().invoke(root, words, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return json.loads(done.stdout)

    return run


@pytest.fixture
def write(tmp_path):
    def made(old: str = "", new: str = "") -> str:
        assert old in SHIPPED
        file = tmp_path / "features.yaml"
        file.write_text(SHIPPED.replace(old, new, 1))
        return str(file)

    return made


def test_views_are_applied_listed_and_dropped(shell, write):
    tried = shell("apply", write(), "--dry-run")
    assert (len(tried["added"]), tried["begun"], shell("list")["views"][0]["rows"]) == (6, None, 0)
    assert shell("apply", write())["added"] == tried["added"]
    second = write("user_browse_1m\n    version: 1", "user_browse_1m\n    version: 2")
    assert shell("apply", second)["added"] == ["user_browse_1m@2"]
    assert shell("apply", second)["added"] == []
    shell("drop", "user_browse_1m@1")
    ids = {f"{view['name']}@{view['version']}" for view in shell("list")["views"]}
    assert "user_browse_1m@2" in ids
    assert "user_browse_1m@1" not in ids
    with pytest.raises(UnknownView, match="user_browse_1m@1"):
        shell("drop", "user_browse_1m@1")


def test_what_cannot_be_live_beside_what_is_names_its_file_and_changes_nothing(shell, write):
    shell("apply", write())
    other = write("limit: 50, where: {event_type: view}}", "limit: 49, where: {event_type: view}}")
    with pytest.raises(DefinitionInvalid, match=r"features\.yaml: user_browse_5m version 1 is already defined"):
        shell("apply", other)
    with pytest.raises(DefinitionInvalid, match=r"features\.yaml: tile is 10000 ms in what is live"):
        shell("apply", write("tile: 10s", "tile: 20s"))
    assert shell("apply", write())["added"] == []


def test_a_file_without_a_live_view_lengthens_the_times_that_hold_and_does_not_shorten_them(shell, write, times):
    shell("apply", write())
    long = write().replace("features.yaml", "long.yaml")
    Path(long).write_text(LONG)
    assert times(shell("apply", long, "--dry-run")) == times(shell("apply", long)) == (130, 250)
    again = shell("apply", write())
    assert (again["added"], times(again)) == ([], (130, 250)), "as `rtrec up` does"
    shell("drop", "hourly@1")
    assert times(shell("apply", write())) == (40, 70)


def test_the_times_that_hold_are_told_when_they_are_not_those_of_the_file_or_of_before(dsn, write, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f'servers: {{postgres: {{dsn: "{dsn}"}}}}\n')

    def told(file: str, *flags: str) -> str:
        words = ("features", "apply", file, *flags, "--config", str(config), "--data-dir", str(tmp_path))
        return CliRunner().invoke(root, words, standalone_mode=False).stdout.splitlines()[-1]

    told(write())
    assert told(write("retention: 70m", "retention: 80m"), "--dry-run").startswith(
        "horizon 40m, retention 80m would hold"
    )
    assert told(write()) == "every view in the file is live already"
    assert (
        told(write("retention: 70m", "retention: 80m")) == "horizon 40m, retention 80m hold for all views from now on"
    )
    second = write("user_browse_1m\n    version: 1", "user_browse_1m\n    version: 2")
    assert told(second) == "horizon 40m, retention 80m: live views that the file does not have rely on them"


def test_each_fault_of_a_file_has_a_line_of_its_own(dsn, write, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f'servers: {{postgres: {{dsn: "{dsn}"}}}}\n')
    file = write(
        "user_browse_5m\n    version: 1\n    keys: [user_id]\n    window: 5m",
        "user_browse_5m\n    version: one\n    keys: [user_id]\n    window: 7s",
    )
    with pytest.raises(SystemExit):
        main(["features", "apply", file, "--config", str(config), "--data-dir", str(tmp_path)])
    version, window = capsys.readouterr().err.splitlines()
    assert version.startswith(f"rtrec: {file}, line ")
    assert 'not "one"' in version
    assert window.endswith("window must be a multiple of the tile (correct the file)")


def test_a_version_without_a_value_that_requests_are_made_of_is_refused(shell, write):
    for old, new, lacks in (
        (SEARCH, "", r"search \(count or sum\)"),
        ("view: {count: events", "view: {distinct: item_id", r"view \(count or sum\)"),
        ("    keys: [user_id]\n    window: 5m", "    keys: [item_id]\n    window: 5m", "keys user_id"),
    ):
        with pytest.raises(DefinitionInvalid, match=rf"features\.yaml: user_browse_5m@1 lacks {lacks}:"):
            shell("apply", write(old, new), "--dry-run")
