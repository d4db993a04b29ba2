"""The forms in which a log comes: JSONL, Parquet, the Open Bandit table, files of our own history."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE, SCHEMAS
from rtrec_ray.kafka.codec import KEY_FIELD, encode
from rtrec_ray.kafka.judge import JSON_COLUMNS
from rtrec_ray.simulate.datasets import open_bandit
from rtrec_ray.simulate.recording import ORDER, Raw, Recording, arrange

OPEN_BANDIT: Final = "open-bandit"
"""As a source: the log that comes with the package."""


def read(source: str | Path, *, latest_ms: int) -> Recording:
    """Read a JSONL or Parquet file, a folder of such files, or `open-bandit`.

    `latest_ms`: later event times are taken for mistakes. Raises ConfigInvalid when there is nothing to replay.
    """
    if str(source) == OPEN_BANDIT:
        return arrange(list(of_frames(open_bandit.records(open_bandit.load()))), latest_ms=latest_ms)
    raws = [raw._replace(file=turn) for turn, path in enumerate(_files(Path(source))) for raw in _read_file(path)]
    recording = arrange(raws, latest_ms=latest_ms)
    if not recording.sound.any():
        first = f": {recording.spoilt[0]}" if recording.spoilt else ""
        raise ConfigInvalid(f"{source} holds no record of ours{first}", mend="see README, 'Replaying a log'")
    return recording


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix in _READERS)
        if not found:
            raise ConfigInvalid(f"{source} holds no .jsonl and no .parquet file", mend="name a file or another folder")
        return found
    if not source.is_file():
        raise ConfigInvalid(f"there is no file {source}", mend=f"name a JSONL or Parquet file, or '{OPEN_BANDIT}'")
    return [source]


def _read_file(path: Path) -> Iterator[Raw]:
    return _READERS.get(path.suffix, _read_jsonl)(path)


def _read_jsonl(path: Path) -> Iterator[Raw]:
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    yield from _by_topic([line for _, line in numbered], np.array([number for number, _ in numbered], dtype=np.int64))


def _by_topic(values: list[bytes], line: npt.NDArray[np.int64]) -> Iterator[Raw]:
    topics = np.array([ORDER.index(_topic_of(value)) for value in values], dtype=np.int8)
    for number in np.unique(topics):
        chosen = np.flatnonzero(topics == number)
        yield Raw(ORDER[number], [values[index] for index in chosen], line[chosen])


class _Probe(msgspec.Struct, kw_only=True):
    """Which fields a line has; what is in them does not matter yet."""

    event_type: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model_version: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    features: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    user_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    item_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_PROBE: Final = msgspec.json.Decoder(_Probe)


def _topic_of(value: bytes) -> str:
    """The topic a line belongs to, by its fields; what cannot be read is taken for behaviour.

    >>> _topic_of(b'{"item_id": 1, "ts": 0}'), _topic_of(b'{"user_id": 1, "ts": 0}'), _topic_of(b"{")
    ('item', 'profile', 'behavior')
    """
    try:
        probe = _PROBE.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BEHAVIOR
    return _topic_with({name for name in probe.__struct_fields__ if getattr(probe, name) is not msgspec.UNSET})


def _topic_with(fields: set[str]) -> str:
    if "event_type" in fields:
        return BEHAVIOR
    if fields & {"model_version", "features"}:
        return INFERENCE
    if "user_id" in fields and "item_id" not in fields:
        return PROFILE
    return ITEM if "item_id" in fields and "user_id" not in fields else BEHAVIOR


def _read_parquet(path: Path) -> Iterator[Raw]:
    try:
        frame = pl.read_parquet(path, hive_partitioning=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigInvalid(f"{path} is no readable Parquet file: {error}", mend="name another file") from error
    if open_bandit.COLUMNS.issubset(frame.columns):
        yield from of_frames(open_bandit.records(frame))
    elif frame.schema.get("raw") == pl.Binary:  # a file of the history: the records as they came
        yield from _by_topic(frame["raw"].drop_nulls().to_list(), np.arange(1, len(frame) + 1, dtype=np.int64))
    else:
        yield from of_frames({_topic_with(set(frame.columns)): _in_our_types(frame, path)})


def of_frames(frames: Mapping[str, pl.DataFrame]) -> Iterator[Raw]:
    """Frames by topic (topic → its columns) as undecoded records."""
    for topic, frame in frames.items():
        line = np.arange(1, len(frame) + 1, dtype=np.int64)
        yield Raw(topic, encode(topic, frame)[1], line)


def _in_our_types(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Times as ms, nested columns as JSON text."""
    schema = SCHEMAS[_topic_with(set(frame.columns))]
    if missing := {"ts", KEY_FIELD[_topic_with(set(frame.columns))]} - set(frame.columns):
        raise ConfigInvalid(f"{path} has no column {', '.join(sorted(missing))}", mend="see README, 'Replaying a log'")
    try:
        return frame.select(_converted(frame[name]) for name in frame.columns if name in schema)
    except pl.exceptions.PolarsError as error:
        raise ConfigInvalid(f"{path}: {error}", mend="see README, 'Replaying a log'") from error


def _converted(column: pl.Series) -> pl.Series:
    if isinstance(column.dtype, pl.Datetime):
        return column.dt.epoch("ms")
    if column.name in JSON_COLUMNS and column.dtype != pl.String:
        texts = [None if content is None else json.dumps(content) for content in column.to_list()]
        return pl.Series(column.name, texts, dtype=pl.String)
    return column


_READERS: Final[dict[str, Callable[[Path], Iterator[Raw]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}
