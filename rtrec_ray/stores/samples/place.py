"""A place in the ledger: by its own number, and where the write-ahead log has what follows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPlace:
    """How far somebody is: all revisions numbered up to `commit_seq`, and no other.

    `lsn`: from here on the write-ahead log has all later ones; None when that was never known.
    """

    commit_seq: int = 0
    lsn: int | None = None


def lsn_text(lsn: int) -> str:
    """An LSN as PostgreSQL writes it.

    >>> lsn_text(4_294_967_297)
    '1/1'
    """
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
