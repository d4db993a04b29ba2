"""Commands that work on the Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rtrec_ray.app.find import join_environment, open_system
from rtrec_ray.app.system import System
from rtrec_ray.cli.options import Where


@contextmanager
def on_cluster(where: Where) -> Iterator[System]:
    """Be a driver of the running system's cluster for the block. Raises NotRunning, RayUnavailable."""
    system = open_system(where.config, where.data_dir)
    join_environment(system)
    from rtrec_ray.app.cluster import joined  # Ray's variables must be set before it is imported

    # Ray prints warnings of its nodes to stdout, which belongs to the answer.
    with redirect_stdout(sys.stderr), joined(system):
        yield system
