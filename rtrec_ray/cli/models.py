"""`rtrec train` and `rtrec models`: what was learnt, and what serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import click

from rtrec_ray.app.find import open_system
from rtrec_ray.app.system import System
from rtrec_ray.cli.cluster import on_cluster
from rtrec_ray.cli.options import Where, command, until_told
from rtrec_ray.errors import AlreadyRunning, ModelRejected
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.registry.base import ModelCenter, ModelVersion
from rtrec_ray.registry.changes import Change, ChangeBook, Served
from rtrec_ray.registry.changes_postgres import PostgresChangeBook
from rtrec_ray.registry.lifecycle import LifeCycle
from rtrec_ray.registry.mlflow import MlflowModelCenter, RegistryOptions
from rtrec_ray.stores.training import PostgresTrainingBook

_SENDER: Final = "rtrec models"


@click.group()
def train() -> None:
    """Train a base model; run the increments, the gate."""


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
@click.option("--take-over", is_flag=True, help="Begin although another run goes on, which then ends.")
@command
def incremental(where: Where, *, take_over: bool) -> None:
    """Follow the sample ledger until stopped; the system's workflow runs this (configs/workflow.yaml)."""
    if not take_over:
        _refuse_second_run(open_system(where.config, where.data_dir))
    with on_cluster(where) as system:
        from rtrec_ray.app.training import run_incremental  # as above

        # Ray's driver has put its own handler in place, which would cut the run off.
        run_incremental(system, until_told())


@train.command()
@command
def gate(where: Where) -> None:
    """Judge each version when asked to, until stopped; the system's workflow runs this (configs/workflow.yaml)."""
    system = open_system(where.config, where.data_dir)
    from rtrec_ray.app.training import run_gate  # MLflow, which takes seconds to import

    run_gate(system, until_told())


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
    """Show the versions that VERSION was trained on, back to its base, and which run made each of what."""
    system = open_system(where.config, where.data_dir)
    center = _center(system)
    chain = [_known(center, version)]
    while (parent := chain[-1].draft.parent) is not None:
        chain.append(_known(center, parent))
    with closing(PostgresMetadataStore(system.postgres)) as store:
        made = {one.version: asdict(one) for one in store.ancestry(version)}
    entries = [{**_plain(each), "made_by": made.get(each.version)} for each in chain]
    where.answer({"lineage": entries}, lambda: _print_lineage(chain, made))


@models.command()
@click.argument("version")
@command
def promote(where: Where, version: str) -> None:
    """Let VERSION serve, on your own word: the gate is not asked."""
    with _life_cycle(where) as (life, _):
        chosen = life.choose(version, sender=_SENDER, reason="promoted by hand")
    where.answer(_plain(chosen), lambda: click.echo(f"version {chosen.version} is champion"))


@models.command()
@click.option("--reason", default="rolled back by hand", show_default=True)
@command
def rollback(where: Where, reason: str) -> None:
    """Reject the champion and go back to the one before it."""
    with _life_cycle(where) as (life, _):
        earlier = life.rollback(sender=_SENDER, reason=reason)
    if earlier is None:
        raise ModelRejected("no version served before this one", mend="`rtrec models list` shows what there is")
    where.answer(_plain(earlier), lambda: click.echo(f"version {earlier.version} is champion again"))


@models.command()
@click.option("--version", help="Only changes of this version.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@command
def history(where: Where, version: str | None, limit: int) -> None:
    """Show what served when, and every change of a version: by whom, and why."""
    with closing(PostgresChangeBook(open_system(where.config, where.data_dir).postgres)) as book:
        served = [each for each in book.served(limit=limit) if version in (None, each.version)]
        changes = book.changes(version=version, limit=limit)
    answer = {"served": [asdict(each) for each in served], "changes": [asdict(each) for each in changes]}
    where.answer(answer, lambda: _print_history(served, changes))


@contextmanager
def _life_cycle(where: Where) -> Iterator[tuple[LifeCycle, ChangeBook]]:
    system = open_system(where.config, where.data_dir)
    with closing(PostgresChangeBook(system.postgres, clock=system.clock)) as book:
        yield LifeCycle(_center(system), book), book


def _refuse_second_run(system: System) -> None:
    with closing(PostgresTrainingBook(system.postgres)) as book:
        run = book.runs().get("incremental")
    if run is not None and run.up:
        raise AlreadyRunning("the incremental run goes on already", mend="`rtrec status` shows it; --take-over ends it")


def _center(system: System) -> ModelCenter:
    return MlflowModelCenter(RegistryOptions(url=system.mlflow_url))


def _known(center: ModelCenter, version: str) -> ModelVersion:
    found = center.get(version)
    if found is None:
        raise ModelRejected(f"there is no model version {version}", mend="`rtrec models list` shows what there is")
    return found


def _plain(version: ModelVersion) -> dict[str, Any]:
    draft = asdict(version.draft)
    return {
        "version": version.version,
        "status": version.status,
        "stage": version.stage,
        "run_id": version.run_id,
        **draft,
    } | {
        "reason": version.reason,
        "champion_ms": version.champion_ms,
    }


def _print(found: list[ModelVersion], champion: str | None = None) -> None:
    for version in found:
        draft = version.draft
        made = datetime.fromtimestamp(draft.created_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        mark = "*" if version.version == champion else " "
        what = f"{draft.kind:<9} {draft.model:<8} on {draft.parent or '-':>4}  samples {draft.from_seq}-{draft.to_seq}"
        click.echo(f"{mark}{version.version:>5}  {version.stage:<10}  {made}  {what}  {version.reason}".rstrip())


def _print_one(version: ModelVersion) -> None:
    _print([version])
    for title, pairs in (("metrics", version.draft.metrics), ("parameters", version.draft.parameters)):
        click.echo(f"{title}:")
        for name, value in sorted(pairs.items()):
            click.echo(f"  {name:<28} {value}")


def _print_lineage(chain: list[ModelVersion], made: dict[str, dict[str, Any]]) -> None:
    for version in chain:
        _print([version])
        if (by := made.get(version.version)) is not None:
            definitions = f"features {by['feature_version']}  labels {by['label_version']}"
            click.echo(
                f"        {by['job']} run {by['run_id']}  snapshot {(by['snapshot'] or '-')[:12]}  {definitions}"
            )


def _print_history(served: Sequence[Served], changes: Sequence[Change]) -> None:
    for stretch in served:
        until = "now" if stretch.to_ms is None else _time(stretch.to_ms)
        click.echo(f"served {stretch.version:>5}  {_time(stretch.from_ms)} to {until}")
    for change in changes:
        mark = "" if change.done else "  not done yet"
        what = f"{change.version:>5}  {change.change:<9}  {change.sender}  {change.reason}{mark}"
        click.echo(f"{_time(change.made_ms)}  {what}".rstrip())


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
