"""`rtrec samples`: what became of the impressions, samples as files, samples from the history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from rtrec_ray.app.find import open_system
from rtrec_ray.cli.cluster import on_cluster
from rtrec_ray.cli.options import Duration, Moment, Where, command
from rtrec_ray.cli.progress import progress_bar
from rtrec_ray.errors import SamplesDiffer
from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.samples.delays import DelayReport, report_delays
from rtrec_ray.samples.verify import Comparison
from rtrec_ray.stores.samples.delays import read_delays
from rtrec_ray.stores.samples.export import Export, export_samples
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.scan import ALL, ScanAsk
from rtrec_ray.stores.samples.scan_postgres import PostgresSampleScan

_PAGES_SHOWN: Final = 20


class Columns(click.ParamType[Any]):
    """Names of a sample's columns, with commas between."""

    name = "columns"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The names."""
        if not isinstance(value, str):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
        unknown = [name for name in names if name not in SAMPLE_SCHEMA]
        if unknown:
            self.fail(f"{unknown[0]!r} is no column of a sample: {', '.join(ALL)}", param, ctx)
        return names


@click.command()
@click.option("--wait", "wait_ms", type=Duration(), help="Share of clicks that this wait would miss; as 60s, 10m.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=lambda ctx, param, value: _drawable(value),
    help="Draw how long clicks take to come, by page: a .png or .svg.",
)
@command
def stats(where: Where, wait_ms: int | None, plot: Path | None) -> None:
    """Count samples, outcomes, misses by reason and corrections; measure how long clicks take to come.

    Of many clicks a part is drawn. A click later than the wait finds its sample written as a negative, and corrects it.
    """
    system = open_system(where.config, where.data_dir)
    found = PostgresSampleStore(system.postgres).stats().as_dict()
    clicks, share = read_delays(system.postgres, horizon_ms=system.samples.longest_horizon_ms)
    delays = report_delays(clicks, wait_ms=system.samples.wait_ms if wait_ms is None else wait_ms, sampled=share)
    if plot is not None and delays is not None:
        from rtrec_ray.demo.charts.delays import draw_delays  # matplotlib takes a second to import

        draw_delays(clicks, delays, plot)
    answer = {**found, "click_delays": None if delays is None else delays.as_dict()}
    where.answer(answer, lambda: _print_stats(found, delays))


@click.command()
@click.option("--from", "from_ms", type=Moment(), required=True, help="Event time of impressions, ms UTC, inclusive.")
@click.option("--to", "to_ms", type=Moment(), required=True, help="Event time of impressions, ms UTC, exclusive.")
@click.option("--out", required=True, help="An empty or new folder: a path, or a URI (s3://, gs://, hdfs://).")
@click.option("--columns", type=Columns(), default=ALL, help="With commas between; all by default.")
@click.option("--as-of", "as_of_ms", type=Moment(), help="As it was known then: wall time, ms UTC.")
@click.option("--as-of-seq", type=click.IntRange(min=0), help="As it was when the ledger had come to this commit_seq.")
@click.option("--readers", type=click.IntRange(1, 64), default=2, show_default=True, help="Parts read at a time.")
@command
def export(where: Where, out: str, readers: int, **asked: Any) -> None:
    """Write the newest revision of every sample of a time range as Parquet, by event day, out of one moment.

    That moment is now, or an earlier one: --as-of a time, or --as-of-seq a commit_seq (`to_seq` of another export).
    _manifest.json is written last: where it is, the export is whole. After a kill, run it again.
    """
    if asked["as_of_ms"] is not None and asked["as_of_seq"] is not None:
        raise click.UsageError("--as-of and --as-of-seq both say a moment: give one")
    system = open_system(where.config, where.data_dir)
    scan = PostgresSampleScan(system.postgres)
    with progress_bar("export") as progress:
        done = export_samples(scan, ScanAsk(**asked), out, readers=readers, progress=progress)
    where.answer({"out": out, **done.as_dict()}, lambda: _print_export(done, out))


@click.command()
@click.option("--from", "from_ms", type=Moment(), required=True, help="Event time of impressions, ms UTC, inclusive.")
@click.option("--to", "to_ms", type=Moment(), required=True, help="Event time of impressions, ms UTC, exclusive.")
@click.option("--out", required=True, help="An empty or new folder: a path, or a URI (s3://, gs://, hdfs://).")
@command
def stitch(where: Where, from_ms: int, to_ms: int, out: str) -> None:
    """Stitch the samples of a time range anew from the history, with all that is known by now, into Parquet.

    The files are laid out as those of `rtrec samples export`.
    """
    with on_cluster(where) as system, progress_bar("stitch") as progress:
        from rtrec_ray.app.stitch import stitch_into  # Ray's variables must be set before it is imported

        done = stitch_into(system, out, from_ms=from_ms, to_ms=to_ms, progress=progress)
    where.answer({"out": out, **done.as_dict()}, lambda: _print_export(done, out))


@click.command()
@click.option("--from", "from_ms", type=Moment(), required=True, help="Event time of impressions, ms UTC, inclusive.")
@click.option("--to", "to_ms", type=Moment(), required=True, help="Event time of impressions, ms UTC, exclusive.")
@command
def verify(where: Where, from_ms: int, to_ms: int) -> None:
    """Compare the live samples of a time range with those stitched from the history.

    Ends with 1 if a difference has no cause.
    """
    with on_cluster(where) as system, progress_bar("verify") as progress:
        from rtrec_ray.app.stitch import verify_samples  # as above

        found = verify_samples(system, from_ms=from_ms, to_ms=to_ms, progress=progress)
    where.answer(found.as_dict(), lambda: _print_comparison(found))
    if found.unexplained:
        raise SamplesDiffer(
            f"{found.unexplained:,} samples differ from those that the history gives, without a cause",
            mend="the examples name requests and items; --json has them with both labels",
        )


def _print_comparison(found: Comparison) -> None:
    click.echo(f"{found.compared:,} samples compared, {found.equal:,} are equal")
    for kind, causes in found.causes.items():
        for cause, count in causes.items():
            click.echo(f"  {kind:<8} {count:>10,}  {cause}")
    for row in found.examples:
        labels = f"live {row['labels_live']}, stitched {row['labels']}"
        click.echo(f"{row['kind']}: item {row['item_id']} of request {row['request_id']}: {labels} ({row['cause']})")


def _drawable(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in (".png", ".svg"):
        raise click.BadParameter(f"{path} must end in .png or .svg")
    return path


def _print_export(done: Export, out: str) -> None:
    size = sum(file.bytes for file in done.files)
    days = len({file.path.partition("/")[0] for file in done.files})
    click.echo(f"{done.rows:,} samples of {days} days, {size / 1e6:,.1f} MB in {len(done.files)} files below {out}")
    if done.to_seq is not None:
        click.echo(f"as of commit_seq {done.to_seq:,}")


def _print_stats(found: Mapping[str, Any], delays: DelayReport | None) -> None:
    for name, value in found.items():
        if isinstance(value, Mapping):
            click.echo(f"{name}:")
            for inner, count in value.items():
                click.echo(f"  {inner:<22} {count:>12,}")
        else:
            click.echo(f"{name:<24} {'-' if value is None else f'{value:,}':>12}")
    if delays is None:
        click.echo("no click on a sample yet, so no delays")
        return
    names = list(delays.all_pages.quantiles_ms)
    drawn = "" if delays.sampled >= 1 else f", from {delays.sampled:.1%} of the actions"
    click.echo(f"first click after its impression{drawn}; a wait of {_time(delays.wait_ms)} misses:")
    click.echo(f"  {'page':<8}{'clicks':>10}" + "".join(f"{name:>10}" for name in names) + f"{'missed':>10}")
    for page in [delays.all_pages, *delays.pages[:_PAGES_SHOWN]]:
        times = "".join(f"{_time(page.quantiles_ms[name]):>10}" for name in names)
        label = "all" if page.page_id is None else str(page.page_id)
        click.echo(f"  {label:<8}{page.clicks:>10,}{times}{page.missed:>10.2%}")
    if len(delays.pages) > _PAGES_SHOWN:
        click.echo(f"  and {len(delays.pages) - _PAGES_SHOWN} pages with fewer clicks (--json has all)")


def _time(ms: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * size:
            return f"{ms / size:.1f} {unit}"
    return f"{ms / 1_000:.1f} s"
