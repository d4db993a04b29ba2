"""`rtrec meta`: what there is, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import click

from rtrec_ray.app.find import open_system
from rtrec_ray.cli.options import Where, command
from rtrec_ray.metadata.catalogue import KINDS, list_entries, show_entry
from rtrec_ray.metadata.postgres import PostgresMetadataStore


@click.group()
def meta() -> None:
    """List and show datasets, jobs and runs."""


@meta.command(name="list")
@click.argument("kind", default=KINDS[0])
@command
def list_meta(where: Where, kind: str) -> None:
    """List KIND: datasets, projects, workflows, snapshots, jobs, runs, models, kinds, or a kind of your own."""
    with _store(where) as store:
        found = list_entries(store, kind)
    where.answer({kind: found}, lambda: _print(found))


@meta.command()
@click.argument("kind")
@click.argument("name")
@command
def show(where: Where, kind: str, name: str) -> None:
    """Show the entry NAME of KIND."""
    with _store(where) as store:
        found = show_entry(store, kind, name)
    where.answer(found, lambda: _print_pairs(found))


@contextmanager
def _store(where: Where) -> Iterator[PostgresMetadataStore]:
    with closing(PostgresMetadataStore(open_system(where.config, where.data_dir).postgres)) as store:
        yield store


def _print(found: list[dict[str, object]]) -> None:
    for entry in found:
        click.echo("  ".join(str(value) for value in list(entry.values())[:3]))


def _print_pairs(found: dict[str, object]) -> None:
    for name, value in found.items():
        click.echo(f"{name:<14} {value}")
