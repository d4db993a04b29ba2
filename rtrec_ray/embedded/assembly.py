"""Which embedded servers there are, and how they are made to fit each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rtrec_ray.embedded import ports
from rtrec_ray.embedded.kafka import KafkaServer, KafkaServerOptions
from rtrec_ray.embedded.mlflow import MlflowServer, MlflowServerOptions
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.embedded.ray import RayServer, RayServerOptions
from rtrec_ray.embedded.server import Server
from rtrec_ray.embedded.state import Addresses
from rtrec_ray.errors import EmbeddedFailure

PARTS = ("kafka", "postgres", "mlflow", "ray")
"""The servers there are. MLflow keeps its records in PostgreSQL and brings it along unless told of another."""

MLFLOW_DATABASE = "mlflow"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """Preferred ports (another one is taken when it is in use) and sizes of the embedded servers.

    `mlflow_store`: connection string of an existing PostgreSQL for MLflow's records; none takes the embedded one.
    """

    kafka_port: int = 29092
    postgres_port: int = 25432
    mlflow_port: int = 25000
    dashboard_port: int = 28265
    partitions: int = 4
    kafka_heap: str = "512m"
    mlflow_store: str | None = None
    cpus: int = 16
    object_store_bytes: int = 1_000_000_000


def build(parts: Collection[str], directory: Path, options: EmbeddedOptions) -> dict[str, Server]:
    """The servers of these parts, in the order in which they are started, not started yet."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise EmbeddedFailure(f"unknown part {', '.join(unknown)}", mend=f"the parts are {', '.join(PARTS)}")
    taken: list[int] = []

    def port(preferred: int = 0) -> int:
        taken.append(ports.pick(preferred, taken=taken))
        return taken[-1]

    servers: dict[str, Server] = {}
    if "postgres" in parts or ("mlflow" in parts and options.mlflow_store is None):
        postgres = PostgresServerOptions(directory=directory / "postgres", port=port(options.postgres_port))
        servers["postgres"] = PostgresServer(postgres)
    if "kafka" in parts:
        kafka = KafkaServerOptions(
            directory=directory / "kafka",
            port=port(options.kafka_port),
            controller_port=port(),
            partitions=options.partitions,
            heap=options.kafka_heap,
        )
        servers["kafka"] = KafkaServer(kafka)
    if "mlflow" in parts:
        store = options.mlflow_store or postgres_of(servers).dsn(MLFLOW_DATABASE)
        mlflow = MlflowServerOptions(directory=directory / "mlflow", store=store, port=port(options.mlflow_port))
        servers["mlflow"] = MlflowServer(mlflow)
    if "ray" in parts:
        ray = RayServerOptions(
            directory=directory / "ray",
            dashboard_port=port(options.dashboard_port),
            cpus=options.cpus,
            object_store_bytes=options.object_store_bytes,
        )
        servers["ray"] = RayServer(ray)
    return servers


def addresses(servers: Mapping[str, Server]) -> Addresses:
    """Where these servers can be reached."""
    found: dict[str, str] = {}
    for server in servers.values():
        match server:
            case KafkaServer():
                found |= {"kafka_bootstrap": server.bootstrap}
            case PostgresServer():
                found |= {"postgres_dsn": server.dsn()}
            case MlflowServer():
                found |= {"mlflow_url": server.url}
            case RayServer():
                token = str(server.token_path)
                found |= {
                    "ray_address": server.address,
                    "ray_dashboard": server.dashboard,
                    "ray_token_path": token,
                }
    return Addresses(**found)


def postgres_of(servers: Mapping[str, Server]) -> PostgresServer:
    """The PostgreSQL among these servers."""
    server = servers["postgres"]
    assert isinstance(server, PostgresServer)
    return server
