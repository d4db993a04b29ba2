"""Features + model → answers: the application on Ray Serve, on its fast path."""

from __future__ import annotations

import logging
import os
import threading
from typing import Final
from urllib.request import ProxyHandler, build_opener

from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve.config import HTTPOptions

from rtrec_ray.app.system import System
from rtrec_ray.clock import monotonic_s
from rtrec_ray.embedded.ports import pick
from rtrec_ray.errors import RayUnavailable
from rtrec_ray.registry.mlflow import RegistryOptions
from serving.auth import TOKEN_VARIABLE, check_bind
from serving.connect import ReplicaOptions
from serving.deployment import NAME, application

_ANSWERED_WITHIN_S: Final = 120.0


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
        _start_proxies(HTTPOptions(host=http.host, port=port))
        serve.run(application(options, replicas=http.replicas), name=NAME, route_prefix="/")
    except (RuntimeError, TimeoutError, RayError) as error:
        raise RayUnavailable(
            f"serving did not start: {error}", mend="the Serve page of Ray's dashboard says why"
        ) from error
    url = f"http://{http.host}:{port}"
    if options.on_loopback:
        _wait_until_answered(url)
    return url


def _start_proxies(options: HTTPOptions) -> None:
    """Start Serve. A proxy that a busy machine does not start in time is ended, and Serve starts another by itself."""
    try:
        serve.start(http_options=options)
    except (ActorDiedError, TimeoutError):
        serve.start(http_options=options)


def _wait_until_answered(url: str) -> None:
    # A proxy that Serve started again is not waited for by its start.
    deadline_s, pause, opener = monotonic_s() + _ANSWERED_WITHIN_S, threading.Event(), build_opener(ProxyHandler({}))
    while True:
        try:
            opener.open(f"{url}/healthz", timeout=5.0).close()
        except OSError as error:
            if monotonic_s() > deadline_s:
                mend = "the Serve page of Ray's dashboard says why"
                raise RayUnavailable(f"serving does not answer at {url}: {error}", mend=mend) from error
            pause.wait(0.1)
        else:
            return


def stop_serving() -> None:
    """Take the application off the connected cluster."""
    serve.delete(NAME)
