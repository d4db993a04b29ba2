"""A hash of an event's identity, the same wherever and whenever it is computed."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

_LONG: Final = 64  # bytes; longer ids are hashed one by one, so that one huge id does not cost a round over all
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_LOWEST: Final = np.uint64(1)


def hash_ids(ids: pl.Series) -> Hashes:
    """An even hash of each text, (n,), the same on every machine and with every version of the libraries.

    SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) over words of eight bytes.

    >>> hash_ids(pl.Series(["e7-1", "e7-2", "e7-1"])).tolist()[::2] == [int(hash_ids(pl.Series(["e7-1"]))[0])] * 2
    True
    """
    if ids.is_empty():
        return np.zeros(0, dtype=np.uint64)
    text = ids.cast(pl.String).to_arrow().cast(pa.large_string())
    _, offset_buffer, data_buffer = text.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[text.offset : text.offset + len(text) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.zeros(0, dtype=np.uint8)
    lengths = np.diff(offsets)
    hashes = _short_hashes(data, offsets[:-1], np.where(lengths > _LONG, 0, lengths))
    for row in np.flatnonzero(lengths > _LONG):
        digest = hashlib.blake2b(data[offsets[row] : offsets[row + 1]].tobytes(), digest_size=8).digest()
        hashes[row] = np.frombuffer(digest, dtype="<u8")[0]
    return hashes & ~_LOWEST


def hash_events(user_ids: pl.Series, event_ids: pl.Series) -> Hashes:
    """As `hash_ids`, of events that are named by their user (an integer) and their id.

    >>> events = pl.DataFrame({"user_id": [7, 8, 7], "event_id": ["e1", "e1", "e2"]})
    >>> len(set(hash_events(*events.get_columns()).tolist()))
    3
    """
    users = user_ids.cast(pl.Int64).to_numpy().view(np.uint64)
    return hash_ids(event_ids) ^ (_mix(users + _GOLDEN) & ~_LOWEST)


def _short_hashes(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Hashes:
    hashes = _mix(lengths.astype(np.uint64) * _GOLDEN)
    # Every byte of the text is also the start of a word of eight: an overlapping view, not a copy of each text.
    padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
    words = np.ndarray(shape=(len(padded) - 7,), dtype="<u8", buffer=padded.data, strides=(1,))
    for begin in range(0, int(lengths.max()), 8):
        # A shorter text ends before this word: what it hashes to must not depend on its neighbours in the batch.
        left = lengths - begin
        word = words[np.where(left > 0, starts + begin, 0)]
        kept = np.uint64(0xFFFFFFFFFFFFFFFF) >> (8 * (8 - np.clip(left, 1, 8))).astype(np.uint64)
        hashes = np.where(left > 0, _mix((hashes ^ (word & kept)) + _GOLDEN), hashes)
    return hashes


def _mix(x: Hashes) -> Hashes:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
