"""Which events were already counted, and which were taken back: hashes of user and event_id per minute of event time.

Kafka delivers at least once and producers send again, so the same event comes twice now and then. Eight bytes an event
for the horizon are the price of counting it once; two different events of a minute share a hash with a probability of
n²/2^64, 1 in 200 million for n = 300,000. The lowest bit tells an event that came (0) from one taken back (1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Final

import numpy as np
import numpy.typing as npt

from rtrec_ray.eventtime.identity import Hashes

MINUTE_MS: Final = 60_000
_TAKEN_BACK: Final = np.uint64(1)


def _by_minute(ts_ms: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """(minute, the rows of it in their order)."""
    minutes = ts_ms // MINUTE_MS * MINUTE_MS
    order = np.argsort(minutes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(minutes[order])) + 1):
        if len(rows):
            yield int(minutes[rows[0]]), rows


class Seen:
    """The hashes of one partition's events, by minute.

    >>> seen = Seen(); seen.first_time(np.array([5, 5]), np.array([8, 8], dtype=np.uint64)).tolist()
    [True, False]
    """

    def __init__(self) -> None:
        self._runs: dict[int, list[Hashes]] = {}
        self._new: dict[int, list[Hashes]] = {}
        self._with_taken_back: set[int] = set()

    def first_time(self, ts_ms: npt.NDArray[np.int64], hashes: Hashes) -> npt.NDArray[np.bool_]:
        """For each event, in order of arrival, whether it comes for the first time; from now on all are known."""
        first = np.zeros(len(hashes), dtype=np.bool_)
        for minute, rows in _by_minute(ts_ms):
            first[rows] = self._first_of_minute(minute, hashes[rows])
        return first

    def came(self, ts_ms: npt.NDArray[np.int64], hashes: Hashes) -> npt.NDArray[np.bool_]:
        """For each event, whether it came already."""
        known = np.zeros(len(hashes), dtype=np.bool_)
        for minute, rows in _by_minute(ts_ms):
            known[rows] = self._known(minute, hashes[rows])
        return known

    def take_back(self, ts_ms: npt.NDArray[np.int64], hashes: Hashes) -> npt.NDArray[np.bool_]:
        """For each event to be taken back, whether that is said for the first time; from now on all are known to be."""
        return self.first_time(ts_ms, hashes | _TAKEN_BACK)

    def taken_back(self, ts_ms: npt.NDArray[np.int64], hashes: Hashes) -> npt.NDArray[np.bool_]:
        """For each event, whether it was taken back. Costs next to nothing in minutes of which no event was."""
        known = np.zeros(len(hashes), dtype=np.bool_)
        if self._with_taken_back:
            for minute, rows in _by_minute(ts_ms):
                if minute in self._with_taken_back:
                    known[rows] = self._known(minute, hashes[rows] | _TAKEN_BACK)
        return known

    def new(self) -> list[tuple[int, bytes]]:
        """(minute_ms, packed hashes) since the last `settle`, for the table."""
        return [(minute, np.concatenate(runs).astype("<u8").tobytes()) for minute, runs in sorted(self._new.items())]

    def settle(self) -> None:
        """What `new` answered is durable."""
        self._new = {}

    def load(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Take what the table holds, a minute at a time when the rows come by minute."""
        for minute, of_minute in groupby(rows, key=itemgetter(0)):
            hashes = np.frombuffer(b"".join(packed for _, packed in of_minute), dtype="<u8").astype(np.uint64)
            # Unique they need not be, and np.unique hashes first: 20 times as long as to sort.
            hashes.sort()
            self._remember(minute, hashes)

    def forget(self, *, before_ms: int) -> None:
        """Drop the minutes that end at `before_ms` or earlier: their events are refused as too late."""
        for minute in [minute for minute in self._runs if minute + MINUTE_MS <= before_ms]:
            del self._runs[minute]
            self._new.pop(minute, None)
            self._with_taken_back.discard(minute)

    def __len__(self) -> int:
        return sum(len(run) for runs in self._runs.values() for run in runs)

    def _first_of_minute(self, minute: int, hashes: Hashes) -> npt.NDArray[np.bool_]:
        unique, index = np.unique(hashes, return_index=True)
        fresh = ~self._known(minute, unique)
        if fresh.any():
            self._remember(minute, unique[fresh])
            self._new.setdefault(minute, []).append(unique[fresh])
        first = np.zeros(len(hashes), dtype=np.bool_)
        first[index[fresh]] = True
        return first

    def _known(self, minute: int, hashes: Hashes) -> npt.NDArray[np.bool_]:
        known = np.zeros(len(hashes), dtype=np.bool_)
        for run in self._runs.get(minute, ()):
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            known |= run[at] == hashes
        return known

    def _remember(self, minute: int, ascending: Hashes) -> None:
        if (ascending & _TAKEN_BACK).any():
            self._with_taken_back.add(minute)
        runs = self._runs.setdefault(minute, [])
        runs.append(ascending)
        # Sorted runs, each at least twice as long as the next, so that there are few of them and each hash is moved
        # O(log n) times.
        while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
            last = runs.pop()
            runs[-1] = np.sort(np.concatenate([runs[-1], last]), kind="stable")
