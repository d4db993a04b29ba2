"""When a process looks for reference cycles. Reading and writing records forms none, and looking takes its time."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Look less often from now on, and never at what is there now, such as modules. For the owner of a process."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
