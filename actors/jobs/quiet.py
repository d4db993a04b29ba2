"""Ray Data without words of its own: a job tells by itself how far it is, and what went wrong."""

from __future__ import annotations

import logging

from ray.data import DataContext


def keep_quiet() -> None:
    """Let this process's datasets show neither bars nor their plans, and raise what a task raised; warnings stay."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
