"""`rtrec train` and `rtrec models`: what was learnt, and what serves."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from rtrec_ray.app.find import open_system
from rtrec_ray.app.system import System
from rtrec_ray.cli.cluster import on_cluster
from rtrec_ray.cli.options import Where, command
from rtrec_ray.errors import AlreadyRunning, ModelRejected
from rtrec_ray.notification.base import MODEL, MODEL_VALIDATED, NewEvent
from rtrec_ray.notification.postgres import PostgresNotificationStore
from rtrec_ray.registry.base import ModelCenter, ModelVersion
from rtrec_ray.registry.base import rollback as go_back
from rtrec_ray.registry.mlflow import MlflowModelCenter, RegistryOptions
from rtrec_ray.stores.training import PostgresTrainingBook


@click.group()
def train() -> None:
    """Train a base model, or run the increments."""


@train.command()
@click.option("--model", type=click.Choice(["dcn", "fm", "logistic"]), help="Family; without it, that of model.yaml.")
@command
def base(where: Where, model: str | None) -> None:
    """Train a base model on all samples so far; the gate then decides whether it serves."""
    with on_cluster(where) as system:
        from rtrec_ray.app.training import train_base  # Ray's variables must be set before it is imported

        version = train_base(system, family=model)
    where.answer(_plain(version), lambda: _print([version]))


@train.command()
@command
def incremental(where: Where) -> None:
    """Follow the sample ledger until stopped; `rtrec up` runs this as its part `training`."""
    _refuse_second_run(open_system(where.config, where.data_dir))
    with on_cluster(where) as system:
        from rtrec_ray.app.training import run_incremental  # as above

        run_incremental(system)


@click.group()
def models() -> None:
    """List and show model versions, promote, roll back."""


@models.command(name="list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@command
def list_models(where: Where, limit: int) -> None:
    """List versions, newest first."""
    center = _center(open_system(where.config, where.data_dir))
    found, champion = center.list(limit=limit), center.champion()
    name = champion.version if champion else None
    where.answer({"models": [_plain(version) for version in found], "champion": name}, lambda: _print(found, name))


@models.command()
@click.argument("version")
@command
def show(where: Where, version: str) -> None:
    """Show one version: parameters, metrics, samples, parent."""
    found = _known(_center(open_system(where.config, where.data_dir)), version)
    where.answer(_plain(found), lambda: _print_one(found))


@models.command()
@click.argument("version")
@command
def lineage(where: Where, version: str) -> None:
    """Show the versions that VERSION was trained on, back to its base."""
    center = _center(open_system(where.config, where.data_dir))
    chain = [_known(center, version)]
    while (parent := chain[-1].draft.parent) is not None:
        chain.append(_known(center, parent))
    where.answer({"lineage": [_plain(each) for each in chain]}, lambda: _print(chain))


@models.command()
@click.argument("version")
@command
def promote(where: Where, version: str) -> None:
    """Let VERSION serve, on your own word: the gate is not asked."""
    system = open_system(where.config, where.data_dir)
    center = _center(system)
    chosen = center.set_champion(_known(center, version).version)
    _announce(system, chosen, "promoted by hand")
    where.answer(_plain(chosen), lambda: click.echo(f"version {chosen.version} is champion"))


@models.command()
@click.option("--reason", default="rolled back by hand", show_default=True)
@command
def rollback(where: Where, reason: str) -> None:
    """Reject the champion and go back to the one before it."""
    system = open_system(where.config, where.data_dir)
    earlier = go_back(_center(system), reason=reason)
    if earlier is None:
        raise ModelRejected("no version served before this one", mend="`rtrec models list` shows what there is")
    _announce(system, earlier, reason)
    where.answer(_plain(earlier), lambda: click.echo(f"version {earlier.version} is champion again"))


def _refuse_second_run(system: System) -> None:
    with closing(PostgresTrainingBook(system.postgres)) as book:
        run = book.runs().get("incremental")
    if run is not None and run.up:
        raise AlreadyRunning("the incremental run goes on already", mend="`rtrec status` shows it; `up` runs one")


def _center(system: System) -> ModelCenter:
    return MlflowModelCenter(RegistryOptions(url=system.mlflow_url))


def _known(center: ModelCenter, version: str) -> ModelVersion:
    found = center.get(version)
    if found is None:
        raise ModelRejected(f"there is no model version {version}", mend="`rtrec models list` shows what there is")
    return found


def _announce(system: System, version: ModelVersion, reason: str) -> None:
    with closing(PostgresNotificationStore(system.postgres, clock=system.clock)) as events:
        context = {"kind": version.draft.kind, "base": version.root, "reason": reason}
        events.send(
            NewEvent(key=MODEL, value=version.version, type=MODEL_VALIDATED, sender="rtrec models", context=context)
        )


def _plain(version: ModelVersion) -> dict[str, Any]:
    draft = asdict(version.draft)
    return {"version": version.version, "status": version.status, "run_id": version.run_id, **draft} | {
        "reason": version.reason,
        "champion_ms": version.champion_ms,
    }


def _print(found: list[ModelVersion], champion: str | None = None) -> None:
    for version in found:
        draft = version.draft
        made = datetime.fromtimestamp(draft.created_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        mark = "*" if version.version == champion else " "
        what = f"{draft.kind:<9} {draft.model:<8} on {draft.parent or '-':>4}  samples {draft.from_seq}-{draft.to_seq}"
        click.echo(f"{mark}{version.version:>5}  {version.status:<9}  {made}  {what}  {version.reason}".rstrip())


def _print_one(version: ModelVersion) -> None:
    _print([version])
    for title, pairs in (("metrics", version.draft.metrics), ("parameters", version.draft.parameters)):
        click.echo(f"{title}:")
        for name, value in sorted(pairs.items()):
            click.echo(f"  {name:<28} {value}")
