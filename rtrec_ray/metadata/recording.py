"""Runs on their way into the metadata: written when they begin and when they end, whatever ends them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Final

from rtrec_ray.clock import Clock
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.metadata.base import JobRun, MetadataStore, RunState

log = logging.getLogger(__name__)

NODE_RUN: Final = "RTREC_NODE_RUN"
"""Environment variable of a job: the run of a workflow's node that it is the work of."""


@contextmanager
def recorded(
    connect: Callable[[], MetadataStore], run: JobRun, *, clock: Clock, alone: bool = False
) -> Iterator[dict[str, Any]]:
    """Write the run down around the block, which may add to its context. `alone`: see MetadataStore.start_run.

    In the job of a workflow's node the context has the node's run, `node_run`.

    Raises StoreUnavailable at the beginning; at the end the run's own outcome goes first.

    >>> from rtrec_ray.clock import REAL
    >>> from rtrec_ray.metadata.memory import MemoryMetadataStore
    >>> store = MemoryMetadataStore()
    >>> with recorded(lambda: store, JobRun(run_id="r", job="j", kind="batch", started_ms=0), clock=REAL) as context:
    ...     context["rows"] = 7
    >>> store.run("r").state, store.run("r").context
    ('succeeded', {'rows': 7})
    """
    node_run = os.environ.get(NODE_RUN)
    if node_run is not None:
        run = replace(run, context={**run.context, "node_run": node_run})
    with closing(connect()) as store:
        store.start_run(run, alone=alone)
    context: dict[str, Any] = {}
    state: RunState = "succeeded" if run.kind == "batch" else "stopped"
    try:
        yield context
    except BaseException as error:
        state = "failed" if isinstance(error, Exception) else "stopped"
        context["reason"] = f"{type(error).__name__}: {error}"[:500]
        raise
    finally:
        _end(connect, run.run_id, state=state, ended_ms=clock.now_ms(), context=context)


def _end(
    connect: Callable[[], MetadataStore], run_id: str, *, state: RunState, ended_ms: int, context: dict[str, Any]
) -> None:
    try:
        with closing(connect()) as store:
            store.end_run(run_id, state=state, ended_ms=ended_ms, context=context)
    except StoreUnavailable as error:
        log.warning("run_end_not_written", extra={"run_id": run_id, "state": state, "cause": error.message})
