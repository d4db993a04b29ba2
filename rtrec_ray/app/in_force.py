"""What holds in the database, whatever the files say: views, labels and workflows that were applied while it ran."""

from __future__ import annotations

from contextlib import closing

from rtrec_ray.app.system import System
from rtrec_ray.app.workflow import open_desk
from rtrec_ray.features.text import to_texts
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.samples.file import file_text
from rtrec_ray.stores.features.live import read_live
from rtrec_ray.stores.samples.live import read_timeline
from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.text import to_text


def texts_in_force(system: System, *applied: Workflow) -> dict[str, str]:
    """Name → text of the files that would apply it all again: views, in the order of their names, labels, workflows.

    `applied`: workflows that are about to be in force. Raises StoreUnavailable.
    """
    found: dict[str, str] = {}
    with closing(Pool(system.postgres, size=1)) as pool, pool.transaction() as cursor:
        live, labels = read_live(cursor), read_timeline(cursor)
    if live is not None:
        texts = to_texts(live.definitions)
        found |= {f"in-force/features-{age}.yaml": text for age, text in enumerate(texts, 1)}
    if labels is not None:
        found["in-force/samples.yaml"] = file_text(labels.newest)
    with open_desk(system) as desk:
        standing = [saved.definition for saved in desk.workflows.load().workflows.values()]
    return found | {f"in-force/workflow-{flow.name}.yaml": to_text(flow) for flow in (*standing, *applied)}
