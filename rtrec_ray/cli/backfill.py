"""`rtrec features backfill`: what views lack from before they began, and their features for past samples."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rtrec_ray.app.backfill_samples import backfill_samples
from rtrec_ray.app.find import open_system
from rtrec_ray.app.lacking import lacking_views
from rtrec_ray.cli.cluster import on_cluster
from rtrec_ray.cli.options import Moment, Where, command
from rtrec_ray.cli.progress import progress_bar
from rtrec_ray.features.definition import NOT_BEGUN_MS
from rtrec_ray.stores.samples.backfill import SamplesBackfillSummary

if TYPE_CHECKING:
    from actors.jobs.backfill import BackfillSummary


@click.command()
@click.argument("view", required=False)
@click.option("--from", "from_ms", type=Moment(), help="Event time, ms UTC; without it, as far back as tiles are kept.")
@click.option("--to", "to_ms", type=Moment(), help="Event time, ms UTC; without it, up to where the stream began.")
@click.option(
    "--samples", is_flag=True, help="Add its features to past samples instead, of requests of that time (or all)."
)
@command
def backfill(where: Where, view: str | None, *, samples: bool, **stretch: int | None) -> None:
    """Compute what VIEW (or VIEW@VERSION) lacks from before it began, out of the history; without VIEW, what each live
    view lacks.

    Past samples get of VIEW the features that serving makes of it; of a view that serving does not know every value, as
    VIEW.NAME.
    """
    if view is None:
        if samples or any(ms is not None for ms in stretch.values()):
            raise click.UsageError("--samples, --from and --to are for one VIEW")
        _backfill_all(where)
        return
    if samples:
        system = open_system(where.config, where.data_dir)
        with progress_bar("requests") as progress:
            added = backfill_samples(system, view, **stretch, progress=progress)
        where.answer(asdict(added), lambda: _print_samples(added))
        return
    with on_cluster(where) as system, progress_bar("backfill") as progress:
        from rtrec_ray.app.backfill import backfill_view  # Ray's variables must be set before it is imported

        done = backfill_view(system, view, **stretch, on_slice=progress)
    where.answer(asdict(done), lambda: _print_backfill(done, asked_from_ms=stretch["from_ms"]))


def _backfill_all(where: Where) -> None:
    filled: list[BackfillSummary] = []
    # Before Ray is asked for anything: mostly nothing is to be done.
    views = lacking_views(open_system(where.config, where.data_dir))
    if views:
        with on_cluster(where) as system, progress_bar("backfill") as progress:
            from rtrec_ray.app.backfill import backfill_view  # as above

            filled = [backfill_view(system, view, from_ms=None, to_ms=None, on_slice=progress) for view in views]
    where.answer({"views": [asdict(done) for done in filled]}, lambda: _print_filled(filled))


def when(ms: int) -> str:
    """A time of an answer for people; "later" for a view that has not begun."""
    return (
        "later" if ms == NOT_BEGUN_MS else dt.datetime.fromtimestamp(ms / 1_000, dt.UTC).isoformat(timespec="seconds")
    )


def _print_filled(filled: list[BackfillSummary]) -> None:
    for done in filled:
        _print_backfill(done)
    if not filled:
        click.echo("no view lacks anything")


def _print_backfill(done: BackfillSummary, *, asked_from_ms: int | None = None) -> None:
    if asked_from_ms is not None and asked_from_ms < done.kept_from_ms:
        click.echo(f"tiles are kept from {when(done.kept_from_ms)} on: older times are read from the history")
    click.echo(
        f"{done.view}: {done.slices} slices of 10 minutes ({done.already} were there), {done.rows:,} rows of tiles in "
        f"{done.seconds:.1f} s; complete from {when(done.complete_from_ms)}"
    )


def _print_samples(added: SamplesBackfillSummary) -> None:
    click.echo(f"{added.requests:,} requests got features of {added.view}: {', '.join(added.features)}")
    if added.already:
        click.echo(f"{added.already:,} had them already")
    if added.ahead:
        click.echo(f"{added.ahead:,} are of times that the history has not reached yet: run it again later")
