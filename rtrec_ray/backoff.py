"""How long to wait before asking a server again that is away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between attempts, in seconds of wall time: doubling from `first_s` up to `longest_s`.

    >>> [Backoff(first_s=0.1, longest_s=1.0).wait_s(attempt) for attempt in (1, 2, 3, 9)]
    [0.1, 0.2, 0.4, 1.0]
    """

    first_s: float = 0.1
    longest_s: float = 5.0

    def wait_s(self, attempt: int) -> float:
        """How long to wait after `attempt` failures in a row."""
        return float(min(self.longest_s, self.first_s * 2 ** min(attempt - 1, 30)))
