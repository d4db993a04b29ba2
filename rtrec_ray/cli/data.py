"""`rtrec replay`, `rtrec samples`: what goes in, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rtrec_ray.app.find import open_system
from rtrec_ray.app.system import System
from rtrec_ray.cli.options import Where, command
from rtrec_ray.cli.progress import progress_bar
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.samples.file import load_definition
from rtrec_ray.simulate.replay import ReplayOptions, ReplaySummary
from rtrec_ray.simulate.replay import replay as write_log
from rtrec_ray.stores.progress import read_stages
from rtrec_ray.stores.samples_live import Change, apply_definition
from rtrec_ray.stores.samples_postgres import PostgresSampleStore


@click.command()
@click.argument("source")
@click.option("--speed", type=float, help="Seconds of the log per second; without it, as fast as it goes.")
@click.option("--pace", type=click.Choice(["free", "clock"]), default="free", help="clock: when its time has come.")
@click.option("--shift-to-now", is_flag=True, help="Move all times, so that the log ends (or with --speed begins) now.")
@click.option("--bad-lines", type=click.Choice(["send", "skip", "refuse"]), default="send", show_default=True)
@command
def replay(where: Where, source: str, **options: Any) -> None:
    """Write SOURCE into Kafka: a JSONL or Parquet file, or `open-bandit` for the log that comes with the program."""
    system = open_system(where.config, where.data_dir)
    producer = connect_producer(system.kafka)
    with closing(producer), progress_bar("replay") as progress:
        summary = write_log(
            source,
            producer,
            ReplayOptions(**options, skew_ms=system.skew_ms),
            clock=system.clock,
            progress=progress,
            watermark_ms=_furthest_watermark(system),
        )
    where.answer(asdict(summary), lambda: _print_replay(summary))


def _furthest_watermark(system: System) -> int | None:
    if system.addresses.postgres is None:
        return None
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        stages = read_stages(cursor).values()
    return max((stage.watermark_ms for stage in stages if stage.watermark_ms is not None), default=None)


def _print_replay(summary: ReplaySummary) -> None:
    total = sum(summary.records.values())
    topics = ", ".join(f"{count:,} {topic}" for topic, count in summary.records.items() if count)
    click.echo(f"{total:,} records in {summary.seconds:.1f} s: {topics}")
    for line in summary.bad_lines:
        click.echo(f"  bad: {line}", err=True)
    if summary.bad:
        click.echo(f"  {summary.bad:,} bad records in all", err=True)


@click.group()
def samples() -> None:
    """Show what became of the impressions."""


@samples.command()
@command
def stats(where: Where) -> None:
    """Count samples, positives, misses by reason and corrections."""
    system = open_system(where.config, where.data_dir)
    found = PostgresSampleStore(system.postgres).stats().as_dict()
    where.answer(found, lambda: _print_pairs(found))


@samples.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@command
def apply(where: Where, file: Path, *, dry_run: bool) -> None:
    """Let FILE say what a sample is, for the impressions from now on. It needs a higher version than what holds."""
    system = open_system(where.config, where.data_dir)
    new = load_definition(file)
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        change = apply_definition(cursor, new, dry_run=dry_run)
    where.answer({**asdict(change), "dry_run": dry_run}, lambda: _print_change(change))


def _print_change(change: Change) -> None:
    if change.added:
        click.echo(f"version {change.version} holds for impressions from {change.from_ms} ms on")
    else:
        click.echo(f"version {change.version} holds already")


def _print_pairs(found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if isinstance(value, Mapping):
            click.echo(f"{name}:")
            for inner, count in value.items():
                click.echo(f"  {inner:<22} {count:>12,}")
        else:
            click.echo(f"{name:<24} {'-' if value is None else f'{value:,}':>12}")
