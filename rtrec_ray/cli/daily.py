"""`rtrec features daily`: the static features, of 1 and 7 days; and how `features get` reads them."""

from __future__ import annotations

import datetime as dt
from contextlib import closing
from typing import Any

import click

from rtrec_ray.app.system import System
from rtrec_ray.cli.cluster import on_cluster
from rtrec_ray.cli.options import Where, command
from rtrec_ray.cli.progress import progress_bar
from rtrec_ray.postgres.connection import connect, transaction
from rtrec_ray.stores.progress import read_stages
from rtrec_ray.stores.static.postgres import PostgresStaticFeatures
from rtrec_ray.stores.static.store import read_static


@click.command()
@click.option(
    "--day",
    "days",
    multiple=True,
    type=click.DateTime(["%Y-%m-%d"]),
    help="Count this UTC day in any case; may be given several times.",
)
@click.option("--all", "everything", is_flag=True, help="Count every day anew, as if none had been counted.")
@command
def daily(where: Where, *, days: tuple[dt.datetime, ...], everything: bool) -> None:
    """Count the days anew for which something came since the last run, and bring the static features up to date.

    Late events and retractions are taken up, however late they came, for as long as their days are kept
    (daily.keep_days). The workflow `features` does the same once a day.
    """
    with on_cluster(where) as system, progress_bar("events") as progress:
        from rtrec_ray.app.daily import correct_static  # Ray's variables must be set before it is imported

        wanted = tuple(day.date() for day in days)
        report = correct_static(system, days=wanted, everything=everything, progress=progress)
    answer = {
        "as_of_day": None if report.as_of_day is None else str(report.as_of_day),
        "days": [str(day) for day in report.days],
        "keys": report.keys,
        "events": report.events,
        "too_old": [str(day) for day in report.too_old],
        "beyond_horizon": _beyond_horizon(system),
        "seconds": round(report.seconds, 3),
    }
    where.answer(answer, lambda: _print(answer))


def get_static(system: System, view: str, keys: tuple[str, ...], *, as_of_ms: int | None) -> dict[str, Any]:
    """`features get` of a static view. Raises BeyondRetention, StoreUnavailable, NotRunning."""
    with closing(PostgresStaticFeatures(system.postgres)) as store:
        return read_static(store, view, keys, as_of_ms=as_of_ms)


def _beyond_horizon(system: System) -> int:
    """Events that came too late for the stream so far, as in `rtrec status`."""
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        stage = read_stages(cursor).get("features")
    return 0 if stage is None else stage.counts.get("beyond_horizon", 0)


def _print(answer: dict[str, Any]) -> None:
    days, as_of = answer["days"], answer["as_of_day"]
    counted = f"{len(days)} days from {days[0]} to {days[-1]}, {answer['events']:,} events" if days else "no day"
    click.echo(f"counted {counted} in {answer['seconds']:.1f} s")
    if too_old := answer["too_old"]:
        click.echo(f"something came for {len(too_old)} days up to {too_old[-1]} that are not kept any more")
    if as_of is None:
        click.echo("no day is over yet, so there are no values")
    elif answer["keys"] is None:
        click.echo(f"the values as of {as_of} stand")
    else:
        click.echo(f"{answer['keys']:,} keys have values as of {as_of}")
