"""The history's manifest in PostgreSQL, and its twin in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import polars as pl

from rtrec_ray.clock import monotonic_s
from rtrec_ray.postgres.connection import Cursor, Pool, PostgresOptions
from rtrec_ray.postgres.copy import copy_frame
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.history.store import BEGINNING_MS, FOREVER_MS, HistoryFile, TopicSummary

_COLUMNS = [field.name for field in fields(HistoryFile)]


class PostgresHistoryManifest:
    """HistoryManifest on meta.history_files."""

    def __init__(self, options: PostgresOptions) -> None:
        self._pool = Pool(options, size=2, application="rtrec-history")
        self._sql = load("rtrec_ray.stores.history", "history.sql")

    def add(self, cur: Cursor, files: Sequence[HistoryFile], /) -> None:
        """Make the files visible when the caller's transaction commits."""
        copy_frame(cur, "meta.history_files", pl.DataFrame([asdict(file) for file in files]))

    def files(self, topic: str, /, *, from_ms: int = BEGINNING_MS, to_ms: int = FOREVER_MS) -> tuple[HistoryFile, ...]:
        """Visible files that may hold event times of [from_ms, to_ms), by ascending time."""
        rows = self._rows("files", {"topic": topic, "from_ms": from_ms, "to_ms": to_ms})
        return tuple(HistoryFile(**dict(zip(_COLUMNS, row, strict=True))) for row in rows)

    def summary(self) -> tuple[TopicSummary, ...]:
        """What there is, by topic."""
        return tuple(
            TopicSummary(topic=topic, files=files, rows=int(rows), bytes=int(size), min_ts_ms=low, max_ts_ms=high)
            for topic, files, rows, size, low, high in self._rows("summary", {})
        )

    def replace(self, old: Sequence[HistoryFile], new: Sequence[HistoryFile], /) -> bool:
        """Let `new` take the place of `old` in one transaction; False, and nothing done, if one of `old` is gone."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["replace"], {"paths": [file.path for file in old]})
            if cur.rowcount != len(old):
                cur.connection.rollback()
                return False
            self.add(cur, new)
            return True

    def known(self, paths: Sequence[str], /) -> frozenset[str]:
        """Those of `paths` that have a row, replaced or not."""
        return frozenset(path for (path,) in self._rows("known", {"paths": list(paths)}))

    def replaced(self, *, grace_s: float) -> tuple[str, ...]:
        """Paths that were replaced more than `grace_s` seconds ago."""
        return tuple(path for (path,) in self._rows("replaced", {"grace_s": grace_s}))

    def forget(self, paths: Sequence[str], /) -> None:
        """Drop the rows of replaced files."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["forget"], {"paths": list(paths)})

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _rows(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        with self._pool.transaction() as cur:
            cur.execute(self._sql[statement], values)
            return cur.fetchall()


class MemoryHistoryManifest:
    """HistoryManifest that ends with its process; `cur` is not looked at."""

    def __init__(self) -> None:
        self._files: dict[str, HistoryFile] = {}
        self._replaced: dict[str, float] = {}

    def add(self, cur: Any, files: Sequence[HistoryFile], /) -> None:
        """Make the files visible."""
        self._files.update({file.path: file for file in files})

    def files(self, topic: str, /, *, from_ms: int = BEGINNING_MS, to_ms: int = FOREVER_MS) -> tuple[HistoryFile, ...]:
        """Visible files that may hold event times of [from_ms, to_ms), by ascending time."""
        found = [
            file
            for file in self._visible()
            if file.topic == topic and file.max_ts_ms >= from_ms and file.min_ts_ms < to_ms
        ]
        return tuple(sorted(found, key=lambda file: (file.min_ts_ms, file.path)))

    def summary(self) -> tuple[TopicSummary, ...]:
        """What there is, by topic."""
        topics = sorted({file.topic for file in self._visible()})
        return tuple(_summary(topic, self.files(topic)) for topic in topics)

    def replace(self, old: Sequence[HistoryFile], new: Sequence[HistoryFile], /) -> bool:
        """Let `new` take the place of `old`; False, and nothing done, if one of `old` is gone."""
        visible = {file.path for file in self._visible()}
        if not all(file.path in visible for file in old):
            return False
        self._replaced.update(dict.fromkeys((file.path for file in old), monotonic_s()))
        self.add(None, new)
        return True

    def known(self, paths: Sequence[str], /) -> frozenset[str]:
        """Those of `paths` that have a row, replaced or not."""
        return frozenset(path for path in paths if path in self._files)

    def replaced(self, *, grace_s: float) -> tuple[str, ...]:
        """Paths that were replaced more than `grace_s` seconds ago."""
        return tuple(path for path, at in self._replaced.items() if monotonic_s() - at > grace_s)

    def forget(self, paths: Sequence[str], /) -> None:
        """Drop the rows of replaced files."""
        for path in paths:
            if self._replaced.pop(path, None) is not None:
                del self._files[path]

    def close(self) -> None:
        """Nothing to give back."""

    def _visible(self) -> list[HistoryFile]:
        return [file for path, file in self._files.items() if path not in self._replaced]


def _summary(topic: str, files: Sequence[HistoryFile]) -> TopicSummary:
    return TopicSummary(
        topic=topic,
        files=len(files),
        rows=sum(file.row_count for file in files),
        bytes=sum(file.byte_count for file in files),
        min_ts_ms=min(file.min_ts_ms for file in files),
        max_ts_ms=max(file.max_ts_ms for file in files),
    )
