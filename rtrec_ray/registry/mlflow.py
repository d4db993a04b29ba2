"""The model center over an MLflow server: one run per version, its artifact under `model/`, lineage as tags.

Artifacts travel through the server (mlflow-artifacts), so whoever reaches its address needs no other store.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Protocol, cast

import msgspec
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from rtrec_ray.clock import wall_ms
from rtrec_ray.errors import ModelRejected, RegistryUnavailable
from rtrec_ray.registry.base import Draft, ModelVersion, Stage, Status
from rtrec_ray.registry.options import RegistryOptions

__all__ = ["MlflowModelCenter", "RegistryOptions"]

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_MAX_PARAMS = 100  # MLflow's bound for one log_batch


class _Tagged(Protocol):
    """The part of MLflow's model version that is read here."""

    version: str
    run_id: str
    tags: dict[str, str]


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise RegistryUnavailable(
            f"MLflow at {url} does not answer as it should: {str(error).splitlines()[0][:200]}",
            mend="`rtrec status` shows its address; the caller tries again",
        ) from error


class MlflowModelCenter:
    """Speaks to one MLflow server; safe to share between threads. Making one raises RegistryUnavailable."""

    def __init__(self, options: RegistryOptions) -> None:
        # MLflow reads these at each call and would otherwise retry an absent server for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(options.max_retries))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(options.timeout_s))
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self._options = options
        self._name = options.model_name
        with _translated(options.url):
            self._client = MlflowClient(tracking_uri=options.url, registry_uri=options.url)
            self._experiment = self._ensure()

    def log_version(self, directory: Path, draft: Draft) -> ModelVersion:
        """As the port says."""
        with _translated(self._options.url):
            run = self._client.create_run(
                self._experiment, run_name=f"{draft.kind}-{draft.to_seq}", tags={"job": draft.job}
            )
            run_id = run.info.run_id
            self._log(run_id, parameters=draft.parameters, metrics=draft.metrics, step=draft.to_seq)
            self._client.log_artifacts(run_id, str(directory), "model")
            made = self._client.create_model_version(
                self._name,
                f"{run.info.artifact_uri}/model",
                run_id=run_id,
                tags={**_tags(draft), "status": "generated"},
                await_creation_for=0,  # the artifact is there already
            )
            self._client.set_registered_model_alias(self._name, "candidate", made.version)
            self._client.set_terminated(run_id)
        return ModelVersion(version=str(made.version), run_id=run_id, status="generated", draft=draft)

    def get(self, version: str) -> ModelVersion | None:
        """As the port says."""
        return self._one(lambda: self._client.get_model_version(self._name, version))

    def list(self, *, limit: int = 100) -> list[ModelVersion]:
        """As the port says."""
        with _translated(self._options.url):
            found = self._client.search_model_versions(
                f"name='{self._name}'", max_results=limit, order_by=["version_number DESC"]
            )
        return [version for version in map(_version, found) if version is not None]

    def champion(self) -> ModelVersion | None:
        """As the port says."""
        return self._one(lambda: self._client.get_model_version_by_alias(self._name, "champion"))

    def set_champion(self, version: str) -> ModelVersion:
        """As the port says."""
        self._known(version)
        # Status first: a crash between the two leaves a validated version without the alias, never the reverse.
        self._tag(version, {"status": "validated", "stage": "validated", "champion_ms": str(wall_ms()), "reason": ""})
        with _translated(self._options.url):
            self._client.set_registered_model_alias(self._name, "champion", version)
        return self._known(version)

    def reject(self, version: str, *, reason: str) -> ModelVersion:
        """As the port says."""
        self._known(version)
        self._tag(version, {"status": "rejected", "stage": "rejected", "reason": reason[:4000]})
        return self._known(version)

    def mark(self, version: str, stage: Stage) -> None:
        """As the port says."""
        self._known(version)
        self._tag(version, {"stage": stage})

    def download(self, version: str, to: Path) -> Path:
        """As the port says."""
        run_id = self._known(version).run_id
        to.mkdir(parents=True, exist_ok=True)
        try:
            with _translated(self._options.url):
                return Path(self._client.download_artifacts(run_id, "model", str(to)))
        except RegistryUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, MlflowException) and cause.error_code in _ABSENT:
                raise ModelRejected(f"the files of model version {version} are gone") from error
            raise

    def open_run(self, name: str, *, parameters: Mapping[str, str]) -> str:
        """As the port says."""
        with _translated(self._options.url):
            run_id = str(self._client.create_run(self._experiment, run_name=name).info.run_id)
            self._log(run_id, parameters=parameters, metrics={}, step=0)
        return run_id

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int) -> None:
        """As the port says."""
        with _translated(self._options.url):
            self._log(run_id, parameters={}, metrics=metrics, step=step)

    def close_run(self, run_id: str) -> None:
        """As the port says."""
        with _translated(self._options.url):
            self._client.set_terminated(run_id)

    def _ensure(self) -> str:
        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        try:
            return str(self._client.create_experiment(self._options.experiment))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return str(self._client.get_experiment_by_name(self._options.experiment).experiment_id)

    def _log(self, run_id: str, *, parameters: Mapping[str, str], metrics: Mapping[str, float], step: int) -> None:
        now_ms = wall_ms()
        points = [Metric(key, value, now_ms, step) for key, value in metrics.items() if math.isfinite(value)]
        params = [Param(key, value[:500]) for key, value in list(parameters.items())[:_MAX_PARAMS]]
        if points or params:
            self._client.log_batch(run_id, metrics=points, params=params)

    def _tag(self, version: str, tags: Mapping[str, str]) -> None:
        with _translated(self._options.url):
            for key, value in tags.items():
                self._client.set_model_version_tag(self._name, version, key, value)

    def _one(self, read: Callable[[], _Tagged]) -> ModelVersion | None:
        try:
            with _translated(self._options.url):
                return _version(read())
        except RegistryUnavailable as error:
            if isinstance(error.__cause__, MlflowException) and error.__cause__.error_code in _ABSENT:
                return None
            raise

    def _known(self, version: str) -> ModelVersion:
        found = self.get(version)
        if found is None:
            raise ModelRejected(f"there is no model version {version}", mend="`rtrec models list` names them")
        return found


_TEXT = ("kind", "model", "job", "definitions", "parent", "base")


def _tags(draft: Draft) -> dict[str, str]:
    """Lineage as tags: text as it is, for people's searches, the rest as JSON; what is absent is left out."""
    values = {entry.name: getattr(draft, entry.name) for entry in fields(Draft)}
    values["parameters"] = dict(draft.parameters)
    values["metrics"] = {key: value for key, value in draft.metrics.items() if math.isfinite(value)}
    return {name: value if name in _TEXT else json.dumps(value) for name, value in values.items() if value is not None}


def _version(entry: _Tagged) -> ModelVersion | None:
    """The version as we wrote it; None for one that somebody else registered under our name."""
    tags = entry.tags
    known = {field.name: tags[field.name] for field in fields(Draft) if field.name in tags}
    values = {name: value if name in _TEXT else json.loads(value) for name, value in known.items()}
    try:
        draft = msgspec.convert(values, Draft)
    except msgspec.ValidationError:
        return None
    return ModelVersion(
        version=str(entry.version),
        run_id=str(entry.run_id),
        status=cast(Status, tags.get("status", "generated")),
        draft=draft,
        reason=tags.get("reason", ""),
        stage=cast(Stage, tags.get("stage", tags.get("status", "generated"))),
        champion_ms=int(tags["champion_ms"]) if "champion_ms" in tags else None,
    )
