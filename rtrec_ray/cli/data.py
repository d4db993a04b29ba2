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
from rtrec_ray.cli.samples import export, stats, stitch, verify
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.samples.file import load_definition
from rtrec_ray.simulate.replay import ReplayOptions, ReplaySummary
from rtrec_ray.simulate.replay import replay as write_log
from rtrec_ray.stores.changes.log import lsn_text
from rtrec_ray.stores.changes.slots import drop_slot, list_slots, read_means
from rtrec_ray.stores.progress import read_stages
from rtrec_ray.stores.samples.live import Change, apply_definition


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
    """Show what became of the impressions, and write samples into files."""


@samples.command()
@click.option("--drop", metavar="NAME", help="End the consumer of this slot and give up the log that is kept for it.")
@command
def slots(where: Where, drop: str | None) -> None:
    """List the consumers of the change log: how far each is, and how much of the log is kept for it."""
    options = open_system(where.config, where.data_dir).postgres
    if drop is not None:
        drop_slot(options, drop)
    found = {"slots": [asdict(slot) for slot in list_slots(options)], **asdict(read_means(options))}
    where.answer(found, lambda: _print_slots(found))


def _print_slots(found: Mapping[str, Any]) -> None:
    for slot in found["slots"]:
        state = "lost" if slot["lost"] else "active" if slot["active_pid"] else "idle"
        kept = "-" if slot["kept_bytes"] is None else f"{slot['kept_bytes'] / 1e6:,.1f} MB kept"
        click.echo(f"{slot['name']:<40} {state:<7} at {lsn_text(slot['lsn'])}  {kept}")
    if found["no_stream"]:
        click.echo(f"consumers follow by commit_seq: {found['no_stream']}")
    elif not found["slots"]:
        click.echo("no consumer has a slot")


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


samples.add_command(stats)
samples.add_command(export)
samples.add_command(stitch)
samples.add_command(verify)
