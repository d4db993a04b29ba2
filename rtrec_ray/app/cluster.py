"""The Ray cluster: how a driver joins it, how an actor that never ends is started on it and stopped again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from actors.stage import StageActor, Work
from rtrec_ray.app.system import System
from rtrec_ray.errors import RayUnavailable

NAMESPACE = "rtrec"


def leave() -> None:
    """Stop being a driver; actors that outlive their driver stay."""
    ray.shutdown()


def answers() -> bool:
    """Whether this process is a driver and its cluster answers."""
    if not ray.is_initialized():
        return False
    try:
        return bool(ray.cluster_resources())
    except (RayError, RuntimeError):
        return False


@contextmanager
def joined(system: System) -> Iterator[None]:
    """Be a driver of the system's cluster for the block. Raises RayUnavailable, NotRunning."""
    join(system)
    try:
        yield
    finally:
        leave()


def join(system: System) -> None:
    """Become a driver of the system's cluster. Raises RayUnavailable, NotRunning."""
    if ray.is_initialized():
        return
    try:
        ray.init(address=system.ray_address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RayUnavailable(
            f"no Ray cluster answers at {system.ray_address}: {error}", mend="`rtrec status` shows what runs"
        ) from error


def start_actor(name: str, make_work: Callable[[], Sequence[Work]], *, cpus: float) -> Any:
    """Start an actor that outlives its driver and is restarted for ever; one that runs already is left alone."""
    actor = ray.remote(num_cpus=cpus, max_restarts=-1, max_concurrency=2)(StageActor)
    return actor.options(name=name, namespace=NAMESPACE, get_if_exists=True, lifetime="detached").remote(make_work)


def stop_actors(names: Iterable[str], *, timeout_s: float = 30.0) -> None:
    """Let the named actors end their work in order, then end them. Those that do not exist are passed over."""
    found = [actor for actor in map(_find, names) if actor is not None]
    for actor, stopping in [(actor, actor.stop.remote()) for actor in found]:
        with suppress(GetTimeoutError, RayActorError):  # what it did not commit is done again by the next owner
            ray.get(stopping, timeout=timeout_s)
        ray.kill(actor, no_restart=True)


def wait_for(actors: Sequence[Any], *, timeout_s: float = 120.0) -> None:
    """Wait until every actor answers. Raises RayUnavailable."""
    try:
        ray.get([actor.health.remote() for actor in actors], timeout=timeout_s)
    except (RayError, GetTimeoutError) as error:
        raise RayUnavailable(
            f"an actor did not start: {str(error).strip().splitlines()[-1]}", mend="the Ray dashboard shows its log"
        ) from error


def end_actors(names: Iterable[str]) -> None:
    """End the named actors at once; what they had not stored is done again by the next start."""
    for actor in filter(None, map(_find, names)):
        ray.kill(actor, no_restart=True)


def has_actors(names: Iterable[str]) -> bool:
    """Whether one of the named actors is there."""
    return any(_find(name) is not None for name in names)


def _find(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
