"""The jars are those of the lock file, byte for byte, or there is an error that names the mend."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

from rtrec_ray.embedded import fetch, jars
from rtrec_ray.errors import EmbeddedFailure


def test_every_jar_is_pinned_by_coordinate_and_sum_and_by_no_address() -> None:
    pinned = jars.pinned()
    assert jars.version() == "4.4.0"
    assert len({jar.file_name for jar in pinned}) == len(pinned) > 40
    assert all(re.fullmatch(r"[\w.\-]+:[\w.\-]+:[\w.\-]+", jar.coordinate) for jar in pinned)
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) for jar in pinned)
    assert "//" not in jars.LOCK.read_text()


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a-1.jar"
    file.write_bytes(b"jar")
    jar = jars.Jar(coordinate="g:a:1", sha256=hashlib.sha256(b"jar").hexdigest())
    assert jar.is_whole(file)
    file.write_bytes(b"jaR")
    assert not jar.is_whole(file)
    assert not jar.is_whole(tmp_path / "absent.jar")


def test_missing_jars_name_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert len(jars.missing()) == len(jars.pinned())
    with pytest.raises(EmbeddedFailure, match="jars of Kafka are missing") as caught:
        jars.class_path()
    assert "make setup" in caught.value.mend


def test_what_is_there_is_not_fetched_again() -> None:
    steps: list[str] = []
    assert fetch.fetch(on_step=lambda done, of, name: steps.append(name)) == 0
    assert steps == []
