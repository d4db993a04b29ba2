"""Keep a Serve replica's own port on loopback."""

from __future__ import annotations

from typing import Any

from rtrec_ray.embedded.ports import LOOPBACK


def keep_replica_on_loopback() -> None:
    """Call in the constructor of a deployment on the embedded Ray, before Serve opens the replica's port.

    Each replica listens for calls of other deployments, which are pickled and carry no token, and Serve 2.60 writes the
    address of all interfaces into its code.
    """
    # The only door there is; imported here because it takes a second and exists only where Serve runs.
    from ray.serve._private import replica

    open_port = replica.add_port_to_grpc_server
    if getattr(open_port, "on_loopback", False):
        return

    def on_loopback(server: Any, address: str) -> int:
        return int(open_port(server, address.replace("[::]:", f"{LOOPBACK}:")))

    on_loopback.on_loopback = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = on_loopback
