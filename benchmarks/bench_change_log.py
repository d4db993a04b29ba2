"""From a committed sample to a trainer that has it, and rows a second: by the change log, and by number with NOTIFY.

python -m benchmarks.bench_change_log [--commits 200] [--rows 100] [--burst 200000] prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from rtrec_ray.clock import monotonic_s
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.stores.changes.bell import LedgerBell
from rtrec_ray.stores.changes.log import LogPlace
from rtrec_ray.stores.changes.postgres import PostgresChangeLog
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from tests.sample_rows import put_samples, sample_rows
from training.dataset import COLUMNS

TURN_ROWS = 8 * 1024
Next = Callable[[], pl.DataFrame | None]


class ByNumber:
    """What training did before the change log: look, wait for the bell, scan."""

    def __init__(self, options: PostgresOptions, *, at: int) -> None:
        self._store, self._bell, self._at = PostgresSampleStore(options), LedgerBell(options), at
        self._bell.wait(0.0)

    def take(self) -> pl.DataFrame | None:
        high = self._store.high_water()
        if high <= self._at:
            self._bell.wait(0.5)
            return None
        upto = min(high, self._at + TURN_ROWS)
        frames = list(self._store.scan(from_seq_exclusive=self._at, to_seq=upto, columns=COLUMNS))
        self._at = upto
        return pl.concat(frames)

    def close(self) -> None:
        self._bell.close()


class ByLog:
    """The change log."""

    def __init__(self, options: PostgresOptions, *, at: int) -> None:
        self._log = PostgresChangeLog(options, name="bench", columns=COLUMNS)
        self._log.begin(LogPlace(commit_seq=at))
        self._log.poll(max_rows=1, timeout_s=0.0)

    def take(self) -> pl.DataFrame | None:
        changes = self._log.poll(max_rows=TURN_ROWS, timeout_s=0.5)
        return None if changes is None else changes.rows

    def close(self) -> None:
        self._log.remove()
        self._log.close()


def latencies(dsn: str, way: type[ByNumber] | type[ByLog], *, commits: int, rows: int) -> list[float]:
    """Seconds from the return of each commit to its rows, one commit at a time."""
    options = PostgresOptions(dsn=dsn)
    high = PostgresSampleStore(options).high_water()
    reader, found, had, again = way(options, at=high), [], threading.Event(), threading.Event()
    arrived = [0.0]

    def follow() -> None:
        for _ in range(commits):
            left = rows
            while left:
                frame = reader.take()
                left -= 0 if frame is None else frame.height
            arrived[0] = monotonic_s()
            had.set()
            again.wait()
            again.clear()

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(commits):
        first = high + number * rows
        put_samples(dsn, sample_rows(rows, seed=number, first=first))
        committed_s = monotonic_s()
        had.wait()
        had.clear()
        found.append(arrived[0] - committed_s)
        again.set()
    thread.join()
    reader.close()
    return found


def rate(dsn: str, way: type[ByNumber] | type[ByLog], *, rows: int) -> float:
    """Rows a second of a backlog that is there already, its slot older than it."""
    options = PostgresOptions(dsn=dsn)
    high = PostgresSampleStore(options).high_water()
    reader = way(options, at=high)
    for first in range(high, high + rows, 20_000):
        put_samples(dsn, sample_rows(min(20_000, high + rows - first), seed=first, first=first))
    begun_s, left = monotonic_s(), rows
    while left:
        frame = reader.take()
        left -= 0 if frame is None else frame.height
    spent_s = monotonic_s() - begun_s
    reader.close()
    return rows / spent_s


def main() -> None:
    """Measure both, alternating, so that the machine's other load falls on both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--burst", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rtrec-bench-") as folder:
        server = PostgresServer(PostgresServerOptions(directory=Path(folder)))
        server.start()
        try:
            dsn = server.dsn()
            migrate(PostgresOptions(dsn=dsn))
            print(json.dumps(_measure(dsn, arguments)))
        finally:
            server.stop()


def _measure(dsn: str, arguments: argparse.Namespace) -> dict[str, float]:
    ways: tuple[tuple[str, type[ByNumber] | type[ByLog]], ...] = (("by_number", ByNumber), ("by_log", ByLog))
    spent: dict[str, list[float]] = {"by_number": [], "by_log": []}
    for _ in range(4):
        for name, way in ways:
            spent[name] += latencies(dsn, way, commits=arguments.commits // 4, rows=arguments.rows)
    found: dict[str, float] = {"commits": arguments.commits, "rows": arguments.rows, "burst": arguments.burst}
    for name, way in ways:
        for share in (50, 99):
            found[f"{name}_p{share}_ms"] = round(1000 * float(np.percentile(spent[name], share)), 2)
        found[f"{name}_rows_per_s"] = round(rate(dsn, way, rows=arguments.burst))
    return found


if __name__ == "__main__":
    main()
