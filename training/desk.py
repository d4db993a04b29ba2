"""The servers of a training run, connected."""

from __future__ import annotations

from dataclasses import dataclass

from rtrec_ray.clock import Clock
from rtrec_ray.notification.base import NotificationStore
from rtrec_ray.registry.base import ModelCenter
from rtrec_ray.stores.changes.log import ChangeLog
from rtrec_ray.stores.samples.store import SampleStore
from rtrec_ray.stores.training import TrainingBook
from training.options import Connections

__all__ = ["Desk", "sit_down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What a worker of the incremental run works with; `close` gives the connections back."""

    samples: SampleStore
    log: ChangeLog
    center: ModelCenter
    events: NotificationStore
    book: TrainingBook
    clock: Clock
    connections: Connections

    def close(self) -> None:
        """Close what holds connections."""
        self.log.close()
        self.book.close()
        self.events.close()


def sit_down(connections: Connections, *, run: str) -> Desk:
    """Connect to everything; `run`: the name of its consumer. Raises RegistryUnavailable."""
    return Desk(
        samples=connections.samples(),
        log=connections.change_log(run),
        center=connections.center(),
        events=connections.events(),
        book=connections.book(),
        clock=connections.clock,
        connections=connections,
    )
