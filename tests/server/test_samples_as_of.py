"""The example of the documentation: samples as of a time and as of a number, by command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from click.testing import CliRunner, Result

from rtrec_ray.cli.main import root
from rtrec_ray.postgres.connection import PostgresOptions
from tests.scanned_samples import FIRST_MS, PostgresPuts, clicked, sample

pytestmark = pytest.mark.server
CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts.md"
SHOWN = "rtrec samples export "


@pytest.fixture
def config(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a store with the samples that the documentation speaks of."""
    shown = [sample(f"r{n}", ts=FIRST_MS) for n in range(2)]
    puts = PostgresPuts(PostgresOptions(dsn=dsn))
    puts.put(shown, known_ms=FIRST_MS)
    puts.put([clicked(shown[0])], known_ms=FIRST_MS + 20 * 60_000)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "rtrec.yaml"
    config.write_text(f'servers: {{postgres: {{dsn: "{dsn}"}}}}\n')
    return config


def call(config: Path, *words: str) -> Result:
    where = ["--config", str(config), "--data-dir", str(config.parent / "data"), "--json"]
    return CliRunner().invoke(root, ["samples", "export", *words, *where])


def rows(out: Path) -> list[dict[str, Any]]:
    found = ds.dataset(out, format="parquet", exclude_invalid_files=False).to_table().to_pylist()
    return sorted(found, key=lambda row: row["commit_seq"])


def test_the_documented_commands_give_what_is_said_of_them(config: Path, tmp_path: Path) -> None:
    commands = [line for line in CONTRACTS.read_text().splitlines() if line.startswith(SHOWN)]
    assert [("--as-of-seq" in line, "--as-of " in line) for line in commands] == [
        (False, False),
        (False, True),
        (True, False),
    ]
    told = {}
    for line in commands:
        done = call(config, *shlex.split(line.removeprefix(SHOWN)))
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout)
        told[answer["out"]] = (answer["to_seq"], answer["rows"])
    assert told == {"now": (3, 2), "then": (2, 2), "again": (2, 2)}
    assert sum(row["label"] for row in rows(tmp_path / "now")) == 1
    assert sum(row["label"] for row in rows(tmp_path / "then")) == 0
    assert rows(tmp_path / "then") == rows(tmp_path / "again")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--as-of-seq", "4"), "from 0 to 3"),
        (("--as-of-seq", "2", "--as-of", "5"), "give one"),
        (("--as-of-seq", "-1"), "x>=0"),
    ],
)
def test_a_moment_that_there_is_not_is_refused_with_what_can_be_asked_for(
    config: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = call(config, "--from", "0", "--to", "9", "--out", "out", *words)
    assert done.exit_code != 0
    assert said in (done.output or getattr(done.exception, "mend", ""))
    assert not (tmp_path / "out").exists()
