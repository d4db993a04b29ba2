"""The `rtrec` command."""

from rtrec_ray.cli.main import main

__all__ = ["main"]
