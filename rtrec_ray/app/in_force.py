"""What holds in the database, whatever the files say: views, labels and workflows that were applied while it ran."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict

import orjson

from rtrec_ray.app.system import System
from rtrec_ray.app.workflow import open_desk
from rtrec_ray.features.definition import Definitions
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.samples.file import file_text
from rtrec_ray.stores.features.live import read_live
from rtrec_ray.stores.samples.live import read_timeline
from rtrec_ray.workflow.text import to_text


def texts_in_force(system: System) -> dict[str, str]:
    """Name → text: all live views as JSON, the newest labels and each workflow as the files that would apply them.

    Raises StoreUnavailable.
    """
    found = {}
    with closing(Pool(system.postgres, size=1)) as pool, pool.transaction() as cursor:
        live, labels = read_live(cursor), read_timeline(cursor)
    if live is not None:
        found["in-force/features.json"] = _views(live.definitions)
    if labels is not None:
        found["in-force/samples.yaml"] = file_text(labels.newest)
    with open_desk(system) as desk:
        flows = desk.workflows.load().workflows
    return found | {f"in-force/workflow-{name}.yaml": to_text(saved.definition) for name, saved in flows.items()}


def _views(live: Definitions) -> str:
    """Several versions of a view may be live, which no one file says."""
    times = {"tile_ms": live.tile_ms, "horizon_ms": live.horizon_ms, "retention_ms": live.retention_ms}
    views = sorted((asdict(view) for view in live.views), key=lambda view: (view["name"], view["version"]))
    return orjson.dumps({**times, "views": views}, option=orjson.OPT_INDENT_2).decode()
