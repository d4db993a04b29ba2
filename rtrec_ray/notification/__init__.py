"""Events that tie the jobs together: numbered in commit order, read by cursor, none lost while a reader is away."""

from rtrec_ray.notification.base import (
    MODEL,
    MODEL_DEPLOYED,
    MODEL_GENERATED,
    MODEL_REJECTED,
    MODEL_VALIDATED,
    Event,
    EventFilter,
    NewEvent,
    NotificationStore,
    Step,
)
from rtrec_ray.notification.listener import NOW, Listener, Subscription
from rtrec_ray.notification.memory import MemoryNotificationStore
from rtrec_ray.notification.postgres import PostgresNotificationStore

__all__ = [
    "MODEL",
    "MODEL_DEPLOYED",
    "MODEL_GENERATED",
    "MODEL_REJECTED",
    "MODEL_VALIDATED",
    "NOW",
    "Event",
    "EventFilter",
    "Listener",
    "MemoryNotificationStore",
    "NewEvent",
    "NotificationStore",
    "PostgresNotificationStore",
    "Step",
    "Subscription",
]
