"""The shell that Ray Serve runs a replica in. Only plain options cross into it; everything else is made inside."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from ray import serve

from rtrec_ray.embedded.loopback import keep_replica_on_loopback
from rtrec_ray.garbage import collect_rarely
from serving.connect import ReplicaOptions, connect
from serving.model import preload
from serving.replica import Backends, Replica

NAME = "recommend"


class RecommendReplica:
    """A deployment's replica: builds its parts in its own process, and hands its application to Serve."""

    _replica: Replica | None = None

    def __init__(self, options: ReplicaOptions, connect_servers: Callable[[ReplicaOptions], Backends]) -> None:
        if options.on_loopback:
            keep_replica_on_loopback()
        # Before the first request: importing TensorFlow holds the interpreter for seconds.
        preload()
        self._replica = Replica(
            connect_servers(options),
            options=options.serving,
            clock=options.clock,
            skew_ms=options.skew_ms,
            token=options.token,
            name=f"serving-{serve.get_replica_context().replica_id.unique_id}",
        )
        # A look through the half million objects that TensorFlow's import leaves stops all requests for a second.
        collect_rarely()
        self._replica.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        assert self._replica is not None
        return self._replica.app

    def __del__(self) -> None:
        # Serve calls it also after a constructor that raised.
        if self._replica is not None:
            self._replica.close()


def application(
    options: ReplicaOptions,
    *,
    replicas: int = 1,
    cpus: float = 1.0,
    connect_servers: Callable[[ReplicaOptions], Backends] = connect,
) -> serve.Application:
    """What `serve.run(..., name=..., route_prefix="/")` takes. `connect_servers` is called in each replica."""
    ingress = serve.ingress()(RecommendReplica)
    deployment = serve.deployment(
        ingress,
        name=NAME,
        num_replicas=replicas,
        # Waiting is done in the replica, where it has a deadline.
        max_ongoing_requests=500,
        graceful_shutdown_timeout_s=10.0,
        ray_actor_options={"num_cpus": cpus},
        # A line for each request costs as much as the request; /metrics counts them.
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(options, connect_servers)
