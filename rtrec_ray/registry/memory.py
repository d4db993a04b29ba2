"""The model center in a folder and a dict: the twin for tests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rtrec_ray.clock import wall_ms
from rtrec_ray.errors import ModelRejected
from rtrec_ray.registry.base import Draft, ModelVersion, Stage


class MemoryModelCenter:
    """Keeps versions in this process and their artifacts below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._versions: dict[str, ModelVersion] = {}
        self._champion: str | None = None
        self.points: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def log_version(self, directory: Path, draft: Draft) -> ModelVersion:
        """As the port says."""
        number = str(len(self._versions) + 1)
        shutil.copytree(directory, self._root / number)
        version = ModelVersion(version=number, run_id=f"run-{number}", status="generated", draft=draft)
        self._versions[number] = version
        self.points[version.run_id] = []
        return version

    def get(self, version: str) -> ModelVersion | None:
        """As the port says."""
        return self._versions.get(version)

    def list(self, *, limit: int = 100) -> list[ModelVersion]:
        """As the port says."""
        return list(reversed(self._versions.values()))[:limit]

    def champion(self) -> ModelVersion | None:
        """As the port says."""
        return None if self._champion is None else self._versions[self._champion]

    def set_champion(self, version: str) -> ModelVersion:
        """As the port says."""
        known = self._known(version)
        before = max((v.champion_ms or 0 for v in self._versions.values()), default=0)
        now_ms = max(wall_ms(), before + 1)
        self._versions[version] = replace(known, status="validated", stage="validated", champion_ms=now_ms, reason="")
        self._champion = version
        return self._versions[version]

    def reject(self, version: str, *, reason: str) -> ModelVersion:
        """As the port says."""
        rejected = replace(self._known(version), status="rejected", stage="rejected", reason=reason)
        self._versions[version] = rejected
        return rejected

    def mark(self, version: str, stage: Stage) -> None:
        """As the port says."""
        self._versions[version] = replace(self._known(version), stage=stage)

    def set_alias(self, version: str | None) -> None:
        """What a person does in MLflow's pages: the alias alone."""
        self._champion = version

    def download(self, version: str, to: Path) -> Path:
        """As the port says."""
        self._known(version)
        return Path(shutil.copytree(self._root / version, to / "model", dirs_exist_ok=True))

    def open_run(self, name: str, *, parameters: Mapping[str, str]) -> str:
        """As the port says."""
        run_id = f"{name}-{len(self.points) + 1}"
        self.points[run_id] = []
        return run_id

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int) -> None:
        """As the port says."""
        self.points[run_id].append((step, dict(metrics)))

    def close_run(self, run_id: str) -> None:
        """As the port says."""

    def _known(self, version: str) -> ModelVersion:
        found = self._versions.get(version)
        if found is None:
            raise ModelRejected(f"there is no model version {version}", mend="`rtrec models list` names them")
        return found
