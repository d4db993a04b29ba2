"""Between the event log and workflows: what the log calls an event, they call an occurrence or an announcement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtrec_ray.notification.base import Event, NewEvent, NotificationStore
from rtrec_ray.workflow.events import SENDER, Announcement
from rtrec_ray.workflow.stimuli import Occurred


def new_event(what: Announcement) -> NewEvent:
    """An announcement as the log takes it.

    >>> new_event(Announcement(type="JOB_FAILED", key="train", value="w.train.1", workflow="w")).namespace
    'w'
    """
    return NewEvent(
        key=what.key,
        value=what.value,
        type=what.type,
        namespace=what.workflow,
        sender=SENDER,
        context=what.context,
    )


def occurred(event: Event) -> Occurred:
    """An event of the log as a workflow sees it."""
    return Occurred(
        offset=event.offset,
        key=event.key,
        value=event.value,
        type=event.type,
        namespace=event.namespace,
        sender=event.sender,
        time_ms=event.time_ms,
        context=event.context,
    )


def sending(log: NotificationStore) -> Callable[[Any, Announcement], object]:
    """What a workflow store sends with."""
    return lambda cursor, what: log.send_in(cursor, new_event(what))
