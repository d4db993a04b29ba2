"""Events over some days as a history has them, and the plain count that static features must equal."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.daily import COUNTED, DAY_MS, ENTITIES, VALUES, day_of
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.store import HistoryFile, schema

DAY = dt.date(2026, 1, 1)
DAY_START_MS = 1_767_225_600_000
PARTITIONS = 2

Event = dict[str, Any]
Counts = dict[tuple[dt.date, str, int], dict[str, int]]


def day(number: int) -> dt.date:
    """The day so many after the first."""
    return DAY + dt.timedelta(days=number)


def event(number: object, kind: str, *, at_ms: int, user: int = 1, item: int | None = 10, **more: Any) -> Event:
    """An event at a time after the first midnight."""
    category = None if item is None else item % 3
    named = {"event_id": f"e{number}", "event_type": kind, "ts": DAY_START_MS + at_ms, "user_id": user}
    return {**named, "item_id": item, "category_id": category, **more}


def retraction(original: Event, *, after_ms: int = 0) -> Event:
    """What takes an event back, so much later."""
    about = {name: value for name, value in original.items() if value is not None}
    taken = {"event_id": f"r-{original['event_id']}", "event_type": "retract", "ts": original["ts"] + after_ms}
    return {**taken, "user_id": original["user_id"], "retracts": orjson.dumps(about).decode()}


def random_events(count: int, *, days: int, seed: int = 0) -> list[Event]:
    """Events of some days in disorder: some twice, some taken back, some days later."""
    rng = random.Random(seed)
    found: list[Event] = []
    for number in range(count):
        at_ms = round(number / count * days * DAY_MS) - rng.choice([0, 0, 0, 0, min(number, 5) * 30_000_000 // 5])
        kind = rng.choices(COUNTED, weights=[50, 10, 20, 2, 2, 2, 2, 5])[0]
        item = None if kind == "search" else rng.randrange(40)
        found.append(event(number, kind, at_ms=max(0, at_ms), user=rng.randrange(60), item=item))
        if rng.random() < 0.05:
            found.append(found[-1])
        if rng.random() < 0.05:
            found.append(retraction(rng.choice(found[-200:]), after_ms=rng.choice([0, 1_000, 2 * DAY_MS])))
    return [each for each in found if each["event_type"] != "retract" or '"retract"' not in each["retracts"]]


def records(events: Sequence[Event], *, first: int = 0, partitions: int = PARTITIONS) -> dict[int, pl.DataFrame]:
    """Partition → the events in the history's columns, at offsets from `first` on, in their order."""
    by_partition: defaultdict[int, list[Event]] = defaultdict(list)
    for offset, each in enumerate(events, start=first):
        origin = {"partition": each["user_id"] % partitions, "offset": offset, "kafka_ts": -1, "raw": b""}
        by_partition[origin["partition"]].append({**each, **origin})
    return {number: pl.DataFrame(rows, schema=schema(BEHAVIOR)) for number, rows in by_partition.items()}


def write(folder: Path, events: Sequence[Event], *, first: int = 0, partitions: int = PARTITIONS) -> list[HistoryFile]:
    """The events as files of a history, for its manifest."""
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=str(folder)))
    return [
        file
        for partition, frame in records(events, first=first, partitions=partitions).items()
        for file in files.write(BEHAVIOR, frame, partition=partition)
    ]


def plain_counts(events: Iterable[Event]) -> Counts:
    """Each event once and none that was taken back, counted one by one."""
    every = list(events)
    gone = {_name(orjson.loads(each["retracts"])) for each in every if each["event_type"] == "retract"}
    first: dict[tuple[int, int, str], Event] = {}
    for each in every:
        if each["event_type"] != "retract":
            first.setdefault(_name(each), each)
    counts: defaultdict[tuple[dt.date, str, int], Counter[str]] = defaultdict(Counter)
    for name, each in first.items():
        for entity, field in ENTITIES.items():
            if name not in gone and each[field] is not None:
                counts[day_of(each["ts"]), entity, each[field]][each["event_type"]] += 1
    return {key: {kind: of_key[kind] for kind in COUNTED} for key, of_key in counts.items()}


def plain_values(counts: Counts, *, as_of_day: dt.date) -> dict[tuple[str, int], dict[str, Any]]:
    """The values as of a day, added up one by one."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for (one, entity, key), of_day in counts.items():
        for suffix, days in (("1d", 1), ("7d", 7)):
            if as_of_day - dt.timedelta(days=7) < one <= as_of_day:
                value = found.setdefault((entity, key), dict.fromkeys(VALUES, 0))
                for kind, n in of_day.items():
                    value[f"{kind}_{suffix}"] += n if as_of_day - dt.timedelta(days=days) < one else 0
    for value in found.values():
        for suffix in ("1d", "7d"):
            shown = value[f"impression_{suffix}"]
            value[f"click_rate_{suffix}"] = value[f"click_{suffix}"] / shown if shown else None
    return found


def by_key(frame: pl.DataFrame, *names: str) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Rows by the columns `names`."""
    return {tuple(row.pop(name) for name in names): row for row in frame.to_dicts()}


def _name(each: Event) -> tuple[int, int, str]:
    return each["user_id"], each["ts"] // 60_000, each["event_id"]
