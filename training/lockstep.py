"""How the workers of the incremental run do the same thing at the same time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["ALONE", "Lockstep", "Turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What all workers do next: begin from `version`, train up to `to_seq`, wait, or stop."""

    action: Literal["begin", "train", "wait", "stop"]
    version: str = ""
    to_seq: int = 0


class Lockstep(Protocol):
    """How the workers agree: the first decides, and all get its answer."""

    @property
    def rank(self) -> int:
        """Of this worker, from 0."""
        ...

    @property
    def workers(self) -> int:
        """How many there are."""
        ...

    def agree(self, turn: Turn | None, /) -> Turn:
        """The first worker's turn; the others give None."""
        ...


@dataclass(frozen=True, slots=True)
class _Alone:
    rank: int = 0
    workers: int = 1

    def agree(self, turn: Turn | None, /) -> Turn:
        assert turn is not None
        return turn


ALONE: Lockstep = _Alone()
