"""Where the model center is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RegistryOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """Where MLflow is, and under which names it keeps our models. Credentials come from MLflow's own variables."""

    url: str
    model_name: str = "rtrec"
    experiment: str = "rtrec"
    timeout_s: int = 20
    max_retries: int = 2
