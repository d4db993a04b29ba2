"""A real MLflow tracking server and model registry on loopback, its records in PostgreSQL, its artifacts on disk."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, build_opener

from psycopg2.extensions import parse_dsn

from rtrec_ray.embedded import ports, process
from rtrec_ray.embedded.server import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowServerOptions:
    """How the embedded MLflow runs. `store` is the connection string of a PostgreSQL database of its own."""

    directory: Path
    store: str
    port: int = 0
    start_timeout_s: float = 240.0


class MlflowServer(Server):
    """The server with one worker process; clients read and write artifacts through it."""

    name = "mlflow"

    def __init__(self, options: MlflowServerOptions) -> None:
        super().__init__(options.directory.absolute(), start_timeout_s=options.start_timeout_s)
        self.port = options.port or ports.pick()
        self._options = options

    @property
    def url(self) -> str:
        """Tracking URI, and the address of its pages."""
        return f"http://{ports.LOOPBACK}:{self.port}"

    def _prepare(self) -> None:
        (self.directory / "artifacts").mkdir(exist_ok=True)

    def _command(self) -> Sequence[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", ports.LOOPBACK, "--port", str(self.port), "--workers", "1"),
            *("--artifacts-destination", (self.directory / "artifacts").as_uri()),
        ]

    def _environment(self) -> Mapping[str, str]:
        return {
            # Not an argument: everybody can read those, and the address of another PostgreSQL may have a password.
            "MLFLOW_BACKEND_STORE_URI": store_uri(self._options.store),
            # Ten helper processes of 280 MB each, for a feature that nobody here uses.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "4",
            "GIT_PYTHON_REFRESH": "quiet",
        }

    def _ready(self) -> bool:
        # Another server that took the port in the same moment would answer just as well.
        if not process.listens(self.processes(), self.port):
            return False
        # A proxy of the environment is not for loopback.
        try:
            with build_opener(ProxyHandler({})).open(f"{self.url}/health", timeout=5.0) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def store_uri(dsn: str) -> str:
    """The connection string as a URI for SQLAlchemy.

    >>> store_uri("host=127.0.0.1 port=5432 dbname=mlflow user=me passfile='/a b/c'")
    'postgresql+psycopg2://me@127.0.0.1:5432/mlflow?passfile=%2Fa+b%2Fc'
    """
    fields: dict[str, str] = parse_dsn(dsn)
    user, password, host, port, database = (
        quote(fields.pop(name, ""), safe="") for name in ("user", "password", "host", "port", "dbname")
    )
    login = f"{user}{':' if password else ''}{password}@" if user else ""
    rest = f"?{urlencode(fields)}" if fields else ""
    return f"postgresql+psycopg2://{login}{host}{':' if port else ''}{port}/{database}{rest}"
