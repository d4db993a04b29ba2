"""`rtrec features as-of`: values of a view for many keys, each as of a time of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from rtrec_ray.app.as_of import AsOfReport, as_of_file
from rtrec_ray.app.find import open_system
from rtrec_ray.cli.options import Where, command
from rtrec_ray.cli.progress import progress_bar


@click.command(name="as-of")
@click.argument("view")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help=".parquet, .jsonl or .csv")
@command
def as_of(where: Where, view: str, file: Path, out: Path) -> None:
    """Add to each row of FILE (.parquet, .jsonl or .csv with key and time_ms) what VIEW said of the key at that time.

    Of the same tile and later nothing is in a value: it is what a training set may know.
    """
    system = open_system(where.config, where.data_dir)
    with progress_bar("rows") as progress:
        report = as_of_file(system, view, file, out, progress=progress)
    where.answer(asdict(report), lambda: _print(report))


def _print(report: AsOfReport) -> None:
    click.echo(
        f"{report.rows:,} rows with {report.view}@{report.version} in {report.out} ({report.found:,} with data) in "
        f"{report.seconds:.1f} s"
    )
    if report.ahead:
        click.echo(f"{report.ahead:,} of them are of times that the history has not reached yet: run it again later")
