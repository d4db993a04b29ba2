"""Lets a version serve and is killed on the way: `python lifecycle_worker.py DSN FOLDER POINT VERSION`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.registry.base import Draft, ModelVersion
from rtrec_ray.registry.changes_postgres import PostgresChangeBook
from rtrec_ray.registry.lifecycle import LifeCycle

# Where to die: (the object, its method, before or after that was called).
POINTS = {
    "before intending": ("book", "intend", False),
    "after intending": ("book", "intend", True),
    "before MLflow": ("center", "set_champion", False),
    "after MLflow": ("center", "set_champion", True),
    "in the transaction that tells": ("book", "_tell", True),
    "after telling": ("book", "finish", True),
}

_DRAFT = Draft(kind="base", model="dcn", from_seq=1, to_seq=1, trained_to_ms=1, created_ms=1)


class FolderCenter:
    """The part of a model center that a change needs, in a folder that outlives the process."""

    def __init__(self, folder: Path) -> None:
        self._champion = folder / "champion"
        self._status = folder / "status.json"

    def get(self, version: str) -> ModelVersion | None:
        status = json.loads(self._status.read_text()) if self._status.exists() else {}
        return ModelVersion(version=version, run_id="r", status=status.get(version, "generated"), draft=_DRAFT)

    def mark(self, version: str, stage: str) -> None:
        """A stage is nobody's business here."""

    def champion(self) -> ModelVersion | None:
        return self.get(self._champion.read_text()) if self._champion.exists() else None

    def set_champion(self, version: str) -> ModelVersion | None:
        status = json.loads(self._status.read_text()) if self._status.exists() else {}
        _put(self._status, json.dumps({**status, version: "validated"}))
        _put(self._champion, version)
        return self.get(version)


def _put(file: Path, text: str) -> None:
    """At once: others read while one writes."""
    aside = file.with_suffix(".new")
    aside.write_text(text)
    aside.replace(file)


def _deadly(method: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> None:
        if after:
            method(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    return call


def main() -> None:
    """Choose a version, and die."""
    dsn, folder, point, version = sys.argv[1:]
    targets = {"book": PostgresChangeBook(PostgresOptions(dsn=dsn)), "center": FolderCenter(Path(folder))}
    target, name, after = POINTS[point]
    setattr(targets[target], name, _deadly(getattr(targets[target], name), after=after))
    LifeCycle(targets["center"], targets["book"]).choose(version, sender="worker")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
