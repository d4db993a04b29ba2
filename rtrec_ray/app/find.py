"""How a command finds the system: by its settings, and by what `up` wrote into the data directory."""

from __future__ import annotations

import os
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

from configs.settings import Definitions, Settings, load_settings
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.clock import REAL, ScaledClock
from rtrec_ray.embedded.ray import client_environment
from rtrec_ray.embedded.state import Addresses as EmbeddedAddresses
from rtrec_ray.embedded.state import State, read_state
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.features.file import load_definitions
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.samples.file import load_definition
from rtrec_ray.stores.progress import read_clock


def open_system(config: Path | None, directory: Path) -> System:
    """The system that runs on `directory`, or whose addresses `config` names; parts that do not run have no address.

    Raises ConfigInvalid, DefinitionInvalid.
    """
    state = read_state(directory)
    running = state if state is not None and state.is_running() else None
    facts = running.facts if running is not None else {}
    settings = load_settings(config or _path(facts.get("config")))
    system = compose(settings, directory, _embedded(running), http=facts.get("http"))
    return system if system.addresses.postgres is None else _with_clock(system, facts)


def compose(settings: Settings, directory: Path, embedded: EmbeddedAddresses, *, http: str | None = None) -> System:
    """A system out of settings and the addresses of embedded servers; an address in the settings goes first."""
    servers = settings.servers
    own_ray = servers.ray.address is None
    return System(
        settings=settings,
        directory=directory,
        addresses=Addresses(
            kafka=servers.kafka.bootstrap or embedded.kafka_bootstrap,
            postgres=servers.postgres.dsn or embedded.postgres_dsn,
            mlflow=servers.mlflow.url or embedded.mlflow_url,
            ray=servers.ray.address or embedded.ray_address,
            ray_dashboard=embedded.ray_dashboard if own_ray else None,
            ray_token=embedded.ray_token_path if own_ray else None,
            http=http,
        ),
        features=load_definitions(definition_file("features", settings.definitions.features)),
        samples=load_definition(definition_file("samples", settings.definitions.samples)),
    )


def definition_file(name: str, chosen: str | None) -> Path:
    """The file of a definition: the chosen one, or the one that comes with the program."""
    # The package is installed as files: a zip would need as_file and its clean-up.
    return Path(chosen) if chosen else Path(str(resources.files("configs") / f"{name}.yaml"))


def workflow_files(chosen: Definitions) -> dict[str, Path]:
    """The files of the system's workflows by their names in the settings, without those that it shall not have."""
    named = {"workflow_features": chosen.workflow_features, "workflow": chosen.workflow}
    return {name: definition_file(name, path) for name, path in named.items() if path != "none"}


def join_environment(system: System) -> None:
    """Set what a driver of an embedded Ray needs, before anything imports ray; an existing cluster's own is kept."""
    at = system.addresses
    if at.ray is not None and at.ray_token is not None:
        token = Path(at.ray_token)
        os.environ.update(client_environment(address=at.ray, dashboard=at.ray_dashboard or "", token_path=token))


def clock_fact(clock: ScaledClock) -> dict[str, Any]:
    """The clock as `up` writes it down, so that a command has it while PostgreSQL is away."""
    return {
        "origin_event_ms": clock.origin_event_ms,
        "origin_wall_ms": clock.origin_wall_ms,
        "speed": clock.speed,
    }


def _with_clock(system: System, facts: dict[str, Any]) -> System:
    if "clock" in facts:
        return system.at(ScaledClock(**facts["clock"]))
    try:
        with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
            return system.at(read_clock(cursor) or REAL)
    except StoreUnavailable:
        return system


def _embedded(state: State | None) -> EmbeddedAddresses:
    return EmbeddedAddresses() if state is None else state.addresses


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
