"""Which partition a key belongs to: murmur2, as in the Java client (librdkafka calls it `murmur2_random`).

Adapters leave this to their client; it is here for the in-memory broker and for whoever must find a user's partition.
"""

from __future__ import annotations

from typing import Final

_MULTIPLIER: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_WORD: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash of `data` (Appleby's MurmurHash2 with Kafka's seed).

    >>> murmur2(b"21") == 0xFFFFFFFF & -973932308
    True
    """
    state = (_SEED ^ len(data)) & _WORD
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        mixed = int.from_bytes(data[start : start + 4], "little") * _MULTIPLIER & _WORD
        mixed = (mixed ^ (mixed >> 24)) * _MULTIPLIER & _WORD
        state = (state * _MULTIPLIER & _WORD) ^ mixed
    if rest := data[whole:]:
        state = (state ^ int.from_bytes(rest, "little")) * _MULTIPLIER & _WORD
    state = (state ^ (state >> 13)) * _MULTIPLIER & _WORD
    return state ^ (state >> 15)


def partition_of(key: bytes, *, partitions: int) -> int:
    """The partition of `key` among `partitions`.

    >>> partition_of(b"42", partitions=4) in range(4)
    True
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions
