"""Ray Data without words of its own: a job tells by itself how far it is."""

from __future__ import annotations

import logging

from ray.data import DataContext


def keep_quiet() -> None:
    """Let this process's datasets show neither bars nor their plans; warnings stay."""
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
