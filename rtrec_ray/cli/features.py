"""`rtrec features`: the views in force and their values."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click
import orjson

from rtrec_ray.app.find import open_system
from rtrec_ray.cli.options import Where, command
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.stores.features import list_views, read_view
from rtrec_ray.stores.features_past import past_of
from rtrec_ray.stores.features_postgres import PostgresFeatureStore


@click.group()
def features() -> None:
    """List feature views, read their values."""


@features.command(name="list")
@command
def list_features(where: Where) -> None:
    """List the feature views in force."""
    system = open_system(where.config, where.data_dir)
    views = list_views(system.features)
    where.answer({"views": views}, lambda: _print_views(views))


@features.command()
@click.argument("view")
@click.argument("keys", nargs=-1, required=True)
@click.option("--as-of", "as_of_ms", type=int, help="Event time, ms UTC; without it, now.")
@command
def get(where: Where, view: str, keys: tuple[str, ...], as_of_ms: int | None) -> None:
    """Read VIEW for KEYS."""
    system = open_system(where.config, where.data_dir)
    with closing(Pool(system.postgres, size=1)) as pool:
        past = past_of(system.history_uri, system.postgres)
        store = PostgresFeatureStore(system.features, pool=pool, past=past)
        found = read_view(store, view=view, keys=keys, as_of_ms=as_of_ms, now_ms=system.clock.now_ms())
    where.answer(found, lambda: _print_values(found))


def _print_values(found: dict[str, Any]) -> None:
    for key, value in found["values"].items():
        click.echo(f"{key}: {orjson.dumps(value).decode()}")


def _print_views(views: list[dict[str, Any]]) -> None:
    for view in views:
        minutes = view["window_ms"] / 60_000
        click.echo(f"{view['name']:<24} v{view['version']}  {minutes:g} min  key {', '.join(view['keys'])}")
        click.echo(f"{'':<24} {', '.join(view['values'])}")
