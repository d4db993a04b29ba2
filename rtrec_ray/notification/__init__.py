"""Events that tie the jobs together: numbered in commit order, read by cursor, none lost while a reader is away."""

from rtrec_ray.notification.base import (
    MODEL,
    MODEL_DEPLOYED,
    MODEL_DEPRECATED,
    MODEL_GENERATED,
    MODEL_REJECTED,
    MODEL_VALIDATED,
    RELOAD_REQUESTED,
    SYSTEM,
    SYSTEM_STARTED,
    Event,
    EventFilter,
    NewEvent,
    NotificationStore,
    Retention,
    Step,
)
from rtrec_ray.notification.listener import NOW, Listener
from rtrec_ray.notification.memory import MemoryNotificationStore
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.notification.switchboard import Subscription, Switchboard

__all__ = [
    "MODEL",
    "MODEL_DEPLOYED",
    "MODEL_DEPRECATED",
    "MODEL_GENERATED",
    "MODEL_REJECTED",
    "MODEL_VALIDATED",
    "NOW",
    "RELOAD_REQUESTED",
    "SYSTEM",
    "SYSTEM_STARTED",
    "Event",
    "EventFilter",
    "Listener",
    "MemoryNotificationStore",
    "NewEvent",
    "NotificationStore",
    "PostgresNotificationStore",
    "Retention",
    "Step",
    "Subscription",
    "Switchboard",
]
