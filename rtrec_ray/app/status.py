"""What `rtrec status` says: addresses, each stage's lag, watermark and counts, freshness, models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

import httpx

from rtrec_ray.app.system import System
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.stores.features.live import read_unread
from rtrec_ray.stores.features.sizes import read_sizes
from rtrec_ray.stores.progress import Stage, read_stages
from rtrec_ray.stores.samples.retention import Removed, read_removed
from rtrec_ray.stores.training import PostgresTrainingBook, TrainingRun

# Counts that every stage shows, also before anything was counted.
SHOWN = ("in", "late", "dead", "corrected")
_ANSWER_S = 3.0


def status(system: System) -> dict[str, Any]:
    """The state of every part as plain values; a part that does not run is None."""
    at = system.addresses
    return {
        "kafka": at.kafka and {"bootstrap": at.kafka},
        "postgres": at.postgres and {"dsn": at.postgres},
        "mlflow": at.mlflow and {"url": at.mlflow},
        "ray": at.ray and {"dashboard": at.ray_dashboard, "address": at.ray, "token_path": at.ray_token},
        "serve": at.http and {"url": at.http},
        "clock": {"now_ms": system.clock.now_ms(), "speed": system.clock.speed},
        "stages": stages(system) if at.postgres else {},
        "models": models(system),
    }


def stages(system: System) -> dict[str, dict[str, Any]]:
    """Each stage in flow order; one whose store is away is not up."""
    try:
        with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
            found = {name: _stage(stage, system) for name, stage in read_stages(cursor).items()}
            if "features" in found:
                found["features"]["comes_first"] = {str(at): offset for at, offset in read_unread(cursor).items()}
                found["features"]["views"] = {view: asdict(size) for view, size in read_sizes(cursor).items()}
        with closing(PostgresTrainingBook(system.postgres)) as book:
            runs: dict[str, dict[str, Any]] = {
                name: _run(run) for name, run in book.runs().items() if name == "incremental"
            }
        if "samples" in found:
            found["samples"] |= _removed(read_removed(system.postgres))
    except StoreUnavailable as error:
        return {"store": {"up": False, "trouble": error.message}}
    ordered: dict[str, dict[str, Any]] = {
        name: found[name] for name in ("history", "features", "samples") if name in found
    }
    serving = {"serving": _serving(system.addresses.http)} if system.addresses.http else {}
    return {**ordered, **runs, **serving}


def models(system: System) -> dict[str, Any]:
    """The champion in the registry and the version that serves, None where they are unknown."""
    answer = _get(system.addresses.http, "/readyz") or {}
    return {"champion": _champion(system), "serving": answer.get("model_version")}


def _stage(stage: Stage, system: System) -> dict[str, Any]:
    mark = stage.watermark_ms
    return {
        "up": stage.up,
        "lag": stage.lag,
        "watermark_ms": mark,
        "behind_ms": None if mark is None else system.clock.now_ms() - mark,
        "age_ms": stage.age_ms,
        **dict.fromkeys(SHOWN, 0),
        **stage.counts,
    }


def _removed(removed: Removed) -> dict[str, Any]:
    return {
        "kept_from_ms": removed.kept_from_ms,
        "dropped_partitions": removed.partitions,
        "dropped_misses": removed.misses,
        "retention_held_by": removed.held_by,
    }


def _run(run: TrainingRun) -> dict[str, Any]:
    beat = run.beat
    return {
        "up": run.up,
        "state": beat.state,
        "lag": beat.lag_rows,
        "watermark_ms": beat.event_time_ms,
        "age_ms": run.age_ms,
        **dict.fromkeys(SHOWN, 0),
        "in": beat.rows_trained,
        "version": beat.version,
        "followed_by": beat.followed_by,
        "fallbacks": beat.fallbacks,
        "fallback_reason": beat.fallback_reason,
    }


def _serving(url: str) -> dict[str, Any]:
    ready = _get(url, "/readyz")
    return {
        "up": ready is not None,
        "lag": None,
        "watermark_ms": None,
        "missing": [] if ready is None else ready.get("missing", []),
        "version": None if ready is None else ready.get("model_version"),
    }


def _champion(system: System) -> str | None:
    # MLflow's own client takes five seconds to import; this is one question.
    query = "/api/2.0/mlflow/registered-models/alias?name=rtrec&alias=champion"
    found = _get(system.addresses.mlflow, query) or {}
    version: Mapping[str, Any] = found.get("model_version") or {}
    return version.get("version")


def _get(url: str | None, path: str) -> dict[str, Any] | None:
    if url is None:
        return None
    try:
        answer = httpx.get(url + path, timeout=_ANSWER_S)
        found = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return found if isinstance(found, dict) else None
