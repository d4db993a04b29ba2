"""Features + model → answers: the application on Ray Serve, on its fast path."""

from __future__ import annotations

import logging
import os

from ray import serve
from ray.serve.config import HTTPOptions

from rtrec_ray.app.system import System
from rtrec_ray.embedded.ports import pick
from rtrec_ray.errors import RayUnavailable
from rtrec_ray.registry.mlflow import RegistryOptions
from serving.auth import TOKEN_VARIABLE, check_bind
from serving.connect import ReplicaOptions
from serving.deployment import NAME, application


def start_serving(system: System) -> str:
    """Deploy on the connected cluster; returns the address when it answers. Raises ConfigInvalid, NotRunning."""
    http = system.settings.servers.http
    token = os.environ.get(TOKEN_VARIABLE)
    check_bind(http.host, token)
    options = ReplicaOptions(
        postgres=system.postgres,
        kafka=system.kafka,
        registry=RegistryOptions(url=system.mlflow_url),
        definitions=system.features,
        history_uri=system.history_uri,
        serving=system.settings.serving,
        clock=system.clock,
        skew_ms=system.skew_ms,
        on_loopback=system.addresses.ray_token is not None,  # an embedded head, on this machine
        token=token,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress is told by `up`
    # On a cluster of our own another port is as good; on an existing one the address was promised to somebody.
    port = pick(http.port) if options.on_loopback else http.port
    try:
        serve.start(http_options=HTTPOptions(host=http.host, port=port))
        serve.run(application(options, replicas=http.replicas), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise RayUnavailable(
            f"serving did not start: {error}", mend="the Serve page of Ray's dashboard says why"
        ) from error
    return f"http://{http.host}:{port}"


def stop_serving() -> None:
    """Take the application off the connected cluster."""
    serve.delete(NAME)
