"""All settings of the system, composed once from a file and the environment; only rtrec_ray.app and the commands read
them.

A value of the file may name a variable of the environment, `${KAFKA_PASSWORD}`: secrets are never in files. Any
setting can be given as `RTREC_SECTION__NAME=value`, which goes before the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rtrec_ray import yaml_text
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.features.daily import WINDOWS
from serving.options import ServingOptions

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaServer:
    """`bootstrap`: none starts an embedded broker. `client`: librdkafka's settings (TLS, SASL), passed through."""

    bootstrap: str | None = None
    library: str = "confluent"
    client: dict[str, str] = field(default_factory=dict)
    replication: int = 1
    suffix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresServer:
    """`dsn`: in libpq's words (sslmode, sslrootcert, passfile, ...); none starts an embedded server."""

    dsn: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowServer:
    """`url`: none starts an embedded server. MLflow's own variables (MLFLOW_TRACKING_TOKEN, ...) hold its secrets."""

    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RayServer:
    """`address`: of an existing cluster (`auto` inside a Ray job); none starts an embedded head with `num_cpus`."""

    address: str | None = None
    # Logical CPUs. Actors, Serve, Train and Data at one each would wait for each other for ever on a small machine.
    num_cpus: int = 16
    object_store_mb: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """Where `POST /v1/recommend` answers. Any host but loopback requires RTREC_HTTP_TOKEN."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The servers: an address uses an existing one."""

    kafka: KafkaServer = field(default_factory=KafkaServer)
    postgres: PostgresServer = field(default_factory=PostgresServer)
    mlflow: MlflowServer = field(default_factory=MlflowServer)
    ray: RayServer = field(default_factory=RayServer)
    http: Http = field(default_factory=Http)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSettings:
    """The clock of events. `origin_event_ms`: its time (ms UTC) when the system first starts; none is the real time."""

    origin_event_ms: int | None = None
    speed: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The actors between Kafka and the stores. `disorder_ms`, `skew_ms` in event time; the rest in wall time."""

    partitions: int = 4
    feature_actors: int = 1
    sample_actors: int = 1
    history_actors: int = 1
    disorder_ms: int = 5_000
    skew_ms: int = 60_000
    idle_after_ms: int = 10_000
    feature_commit_s: float = 0.1
    sample_commit_s: float = 0.25
    history_commit_s: float = 10.0
    lease_ttl_ms: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Where behaviour is kept as Parquet: a directory or a URI (s3://, hdfs://); none is below the data directory.

    `tidy_every_s` in wall time: small files of an hour are put together, replaced and orphaned ones removed.
    """

    uri: str | None = None
    tidy_every_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """How long the event log is kept: `keep_days` by the system's clock, the newest `keep_events`; none keeps all.

    What a durable cursor has not acknowledged stays, unless it has said nothing for `cursor_alive_days` of wall time.
    """

    keep_days: float | None = 30.0
    keep_events: int | None = None
    cursor_alive_days: float = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """How long samples are kept. `retention_days` of event time behind the watermark, at least the horizon and the wait
    of samples.yaml; older days are dropped whole. The pipeline looks each `look_every_s` of wall time.
    """

    retention_days: int = 90
    look_every_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse a retention of nothing."""
        if self.retention_days < 1:
            raise ValueError(f"retention_days is {self.retention_days}; samples are kept 1 day or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Daily:
    """The runs that count the static features, of 1 and 7 days; when they begin, the workflow `features` says.

    Ray Data's `tasks` of one logical CPU run side by side, also those of a backfill; each with about `rows_per_task`
    events in memory, in a backfill with a minute's (half a million at least) and a slice's tiles. So many
    days of event time as `keep_days` are kept, up to the newest one of the values; what comes for earlier ones counts
    nowhere.
    """

    tasks: int = 2
    rows_per_task: int = 1_000_000
    keep_days: int = 35

    def __post_init__(self) -> None:
        """Refuse to drop days that the values are counted from."""
        if self.keep_days < max(WINDOWS.values()):
            raise ValueError(f"keep_days is {self.keep_days}; the longest window is of {max(WINDOWS.values())} days")


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """Files read at the start; none is the one that comes with the program.

    `workflow` (of training), `workflow_features`: `none` for no such workflow.
    """

    features: str | None = None
    samples: str | None = None
    model: str | None = None
    workflow: str | None = None
    workflow_features: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The runs of Ray Train. `publish_every_s` in wall time: a full version, to be validated, about that often.

    `held_out_percent`: of requests, by hash, never trained on; a version is judged on the newest `exam_rows` samples of
    these: fewer judge by what holds now, more with less noise. `storage`: path or URI where Ray Train keeps its state;
    none is below the data directory.
    """

    workers: int = 1
    publish_every_s: float = 60.0
    held_out_percent: int = 10
    exam_rows: int = 20_000
    storage: str | None = None


class Settings(BaseSettings):
    """Every section, frozen. An unknown key is an error."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="RTREC_", env_nested_delimiter="__", env_ignore_empty=True
    )

    servers: Servers = Servers()
    clock: ClockSettings = ClockSettings()
    pipeline: Pipeline = Pipeline()
    history: History = History()
    samples: Samples = Samples()
    daily: Daily = Daily()
    events: Events = Events()
    definitions: Definitions = Definitions()
    training: Training = Training()
    serving: ServingOptions = ServingOptions()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file, and nothing else is read."""
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """Read a file, `configs/local.yaml` when none is named. Raises ConfigInvalid that names the file and the key."""
    name = str(path) if path else "configs/local.yaml"
    text = _read(path)
    try:
        tree = yaml_text.load(text) or {}
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that is none
        raise ConfigInvalid(f"{name}{yaml_text.fault(error, text)}", mend="mend that line") from error
    if not isinstance(tree, dict):
        raise ConfigInvalid(f"{name} holds no sections", mend="see configs/local.yaml")
    try:
        return Settings(**_expand(tree, os.environ, name))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigInvalid(
            f"{name}: {key}: {first['msg']}",
            mend="configs/local.yaml, configs/settings.py and serving/options.py show the keys",
        ) from error


def _read(path: Path | None) -> str:
    if path is None:
        return (resources.files(__package__) / "local.yaml").read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}", mend="give --config a file") from error


def _expand(node: Any, variables: Mapping[str, str], name: str) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value, variables, name) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, variables, name) for value in node]
    return _VARIABLE.sub(lambda found: _variable(found[1], variables, name), node) if isinstance(node, str) else node


def _variable(variable: str, variables: Mapping[str, str], name: str) -> str:
    if variable not in variables:
        raise ConfigInvalid(f"{name} names ${{{variable}}}, which is not set", mend=f"export {variable}=...")
    return variables[variable]
