"""What a features.yaml defines becomes live, and whoever fills new views is told of them."""

from __future__ import annotations

from contextlib import closing

from rtrec_ray.app.system import System
from rtrec_ray.clock import Clock
from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.features import request
from rtrec_ray.features.definition import Definitions
from rtrec_ray.notification.base import FEATURES, FEATURES_APPLIED, NewEvent
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.postgres.connection import Cursor, Pool
from rtrec_ray.stores.features.live import read_live
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.static.store import VIEWS as STATIC_VIEWS


def raise_unfit(definitions: Definitions) -> None:
    """Raise DefinitionInvalid for views whose features requests would lack, and for names of the static ones."""
    for view in definitions.views:
        request.raise_unfit(view)
        if view.name in STATIC_VIEWS:
            raise DefinitionInvalid(f"{view.name} is the name of static features", mend="choose another name")


def apply_views(
    system: System, definitions: Definitions, *, pool: Pool, cursor: Cursor, clock: Clock
) -> tuple[str, ...]:
    """Let the views be live, beside those that are; answers which are new ("name@version").

    The event of them is in the same transaction, so call it last. The first views of a system are none to tell of: they
    have all events from the first one on. Raises DefinitionInvalid, StoreUnavailable.
    """
    raise_unfit(definitions)
    first = read_live(cursor) is None
    added = PostgresFeatureStore(definitions, pool=pool).apply(cursor)
    if added and not first:
        new = NewEvent(
            key=FEATURES, value=",".join(added), type=FEATURES_APPLIED, sender=FEATURES, context={"views": list(added)}
        )
        with closing(PostgresNotificationStore(system.postgres, clock=clock)) as events:
            events.send_in(cursor, new)
    return added
