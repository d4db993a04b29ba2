"""`rtrec features`: the views that are live, their values, and how they change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Final

import click

from rtrec_ray.app.find import open_system
from rtrec_ray.app.system import System
from rtrec_ray.app.verify import VerifyOptions, verify_system
from rtrec_ray.app.views import apply_views, raise_unfit
from rtrec_ray.cli.as_of import as_of
from rtrec_ray.cli.backfill import backfill, when
from rtrec_ray.cli.daily import daily, get_static
from rtrec_ray.cli.options import Duration, Moment, Where, command
from rtrec_ray.cli.progress import progress_bar
from rtrec_ray.clock import monotonic_s
from rtrec_ray.definition_file import duration_text
from rtrec_ray.errors import DefinitionInvalid, FeaturesDiffer, VerifyImpossible
from rtrec_ray.features.definition import NOT_BEGUN_MS, Definitions
from rtrec_ray.features.file import load_definitions
from rtrec_ray.features.json_text import json_bytes
from rtrec_ray.features.verify import Report
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.stores.features.live import evolved, read_live
from rtrec_ray.stores.features.open import open_features
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.sizes import ViewSize
from rtrec_ray.stores.features.views import list_views, read_view
from rtrec_ray.stores.progress import read_stages
from rtrec_ray.stores.static.store import VIEWS as STATIC_VIEWS
from rtrec_ray.stores.static.store import list_static

_BEGIN_S: Final = 15.0  # a task that has nothing to commit looks for changes each third of its lease


@click.group()
def features() -> None:
    """Feature views and their values: list, read, change, fill from the history, check."""


@features.command(name="list")
@command
def list_features(where: Where) -> None:
    """List the views that are live and what they keep, or those of the file while nothing runs."""
    system = open_system(where.config, where.data_dir)
    if system.addresses.postgres is None:
        views = list_views(system.features)
    else:
        with _store(system) as store:
            sizes = store.sizes()
            nothing = ViewSize()  # of the views of the file, before any is live
            views = [
                {**view, **asdict(sizes.get(f"{view['name']}@{view['version']}", nothing))}
                for view in list_views(store.definitions)
            ]
    views += list_static()
    where.answer({"views": views}, lambda: _print_views(views))


@features.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@command
def apply(where: Where, file: Path, *, dry_run: bool) -> None:
    """Let the views in FILE be live too, from the next event on. What is live stays until it is dropped.

    The horizon and the retention of FILE hold for all views; a FILE without some live version can only lengthen them.
    A view of a higher version is read instead of the older one as soon as a whole window of it is there. The workflow
    `features` fills new views from the history.
    """
    system, new = open_system(where.config, where.data_dir), load_definitions(file)
    try:
        done = _apply(system, new, dry_run=dry_run)
    except DefinitionInvalid as error:
        raise DefinitionInvalid(f"{file}: {error.message}", mend=error.mend) from error
    answer = {
        "added": done.added,
        "begun": done.begun,
        "dry_run": dry_run,
        "horizon_ms": done.held.horizon_ms,
        "retention_ms": done.held.retention_ms,
        "views": list_views(done.held),
    }

    def show() -> None:
        _print_applied(done.added, begun=done.begun, dry_run=dry_run)
        _print_times(done.held, file=new, before=done.before, dry_run=dry_run)

    where.answer(answer, show)


@features.command()
@click.argument("view")
@command
def drop(where: Where, view: str) -> None:
    """Let VIEW (as NAME@VERSION) be live no longer. Nobody reads its values again."""
    system = open_system(where.config, where.data_dir)
    with _store(system) as store:
        store.drop_view(view)
    where.answer({"dropped": view}, lambda: click.echo(f"{view} is dropped"))


@features.command()
@click.argument("view")
@click.argument("keys", nargs=-1, required=True)
@click.option("--as-of", "as_of_ms", type=Moment(), help="Event time, ms UTC; without it, now.")
@command
def get(where: Where, view: str, keys: tuple[str, ...], as_of_ms: int | None) -> None:
    """Read VIEW for KEYS."""
    system = open_system(where.config, where.data_dir)
    if view in STATIC_VIEWS:
        found = get_static(system, view, keys, as_of_ms=as_of_ms)
    else:
        with _store(system) as store:
            found = read_view(store, view=view, keys=keys, as_of_ms=as_of_ms, now_ms=system.clock.now_ms())
    where.answer(found, lambda: _print_values(found))


@features.command()
@click.option("--sample", default=0.05, show_default=True, help="Share of each view's keys (users, ...), one at least.")
@click.option("--from", "from_ms", type=Moment(), help="Time of requests, ms UTC; without it, from the first.")
@click.option("--to", "to_ms", type=Moment(), help="Time of requests, ms UTC; without it, to the last.")
@click.option("--last", "last_ms", type=Duration(), help="In place of --from: so long before now, as 2h or 1d.")
@click.option("--limit", type=click.IntRange(min=1), help="Compare at most so many requests.")
@click.option(
    "--allow-none",
    is_flag=True,
    help="Nothing to compare is no error: no request of that time, or none whose events the history has yet.",
)
@command
def verify(where: Where, sample: float, *, last_ms: int | None, allow_none: bool, **chosen: int | None) -> None:
    """Compute again what requests were served, from the history's events, and compare. Ends with 1 if that differs."""
    system = open_system(where.config, where.data_dir)
    options = VerifyOptions(share=sample, **_times(chosen, last_ms, now_ms=system.clock.now_ms()))
    try:
        with progress_bar("verify") as progress:
            report = verify_system(system, options, progress=progress)
    except VerifyImpossible:
        if not allow_none:
            raise
        report = Report()
    found = report.as_dict()
    where.answer(found, lambda: _print_report(found))
    if report.differences:
        raise FeaturesDiffer(
            f"{report.differences:,} values were served that the events do not give",
            mend="the examples name requests, keys and values; --debug and `rtrec features get` help to look closer",
        )


def _times(chosen: dict[str, int | None], last_ms: int | None, *, now_ms: int) -> dict[str, int | None]:
    """The options that say which requests."""
    times = {"from_ms": chosen["from_ms"], "to_ms": chosen["to_ms"], "most": chosen["limit"]}
    if last_ms is None:
        return times
    if times["from_ms"] is not None:
        raise click.UsageError("give --from or --last")
    return times | {"from_ms": now_ms - last_ms}


def _print_report(found: dict[str, Any]) -> None:
    outcomes = ("equal", "mismatch", "missing", "extra", "late_profile")
    click.echo(
        f"{found['requests']:,} requests: {found['compared']:,} compared, {found['not_yet']:,} with events that the "
        f"history does not have yet, {found['incomplete']:,} with values of a view that was too new"
    )
    click.echo(f"{'':<30}" + "".join(f"{name:>13}" for name in outcomes))
    for feature, counts in found["features"].items():
        click.echo(f"{feature:<30}" + "".join(f"{counts[name]:>13,}" for name in outcomes))
    if unseen := [name for name, counts in found["features"].items() if not any(counts.values())]:
        click.echo(f"no key of the sample for {', '.join(unseen)}: raise --sample to compare them")
    for each in found["examples"]:
        item = "" if each["item_id"] is None else f" of item {each['item_id']}"
        click.echo(
            f"{each['kind']}: {each['feature']}{item} in request {each['request_id']} ({each['view']} {each['key']}): "
            f"served {each['served']}, recomputed {each['recomputed']}"
        )


def _print_values(found: dict[str, Any]) -> None:
    for key, value in found["values"].items():
        click.echo(f"{key}: {json_bytes(value).decode()}")


def _print_views(views: list[dict[str, Any]]) -> None:
    for view in views:
        window, begins = duration_text(view["window_ms"]), view["complete_from_ms"]
        since = "" if begins is None else f"  complete from {when(begins)}"
        click.echo(f"{view['name']:<24} v{view['version']}  {window}  key {', '.join(view['keys'])}{since}")
        click.echo(f"{'':<24} {', '.join(view['values'])}")
        if view.get("rows"):
            click.echo(
                f"{'':<24} keeps {view['rows']:,} rows of tiles, {view['bytes'] / 1e6:,.1f} MB, from "
                f"{when(view['oldest_ms'])} on; {view['lists']:,} lists"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Applied:
    """`before`, `held`: what was live and what is. `begun`: whether all partitions have begun; None: nobody runs."""

    before: Definitions | None
    held: Definitions
    added: list[str]
    begun: bool | None = None


def _apply(system: System, new: Definitions, *, dry_run: bool) -> _Applied:
    with closing(Pool(system.postgres, size=1)) as pool:
        store = PostgresFeatureStore(new, pool=pool)
        with pool.transaction() as cursor:
            live = read_live(cursor)
            before = None if live is None else live.definitions
            if dry_run:
                raise_unfit(new)
                held = evolved(cursor, new)
                known = () if before is None else [view.id for view in before.views]
                return _Applied(before=before, held=held, added=[v.id for v in held.views if v.id not in known])
            added = list(apply_views(system, new, pool=pool, cursor=cursor, clock=system.clock))
        begun = _wait_for_begin(store, added) if _pipeline_runs(pool) else None
        store.refresh()
        return _Applied(before=before, held=store.definitions, added=added, begun=begun)


def _print_applied(added: list[str], *, begun: bool | None, dry_run: bool) -> None:
    if not added:
        click.echo("every view in the file is live already")
        return
    verb = "would be added" if dry_run else "added"
    click.echo(f"{verb}: {', '.join(added)}")
    if not dry_run:
        click.echo(
            {
                None: "they begin when the pipeline runs",
                True: "they have begun in every partition; `rtrec features list` shows since when they are complete",
                False: "some partition has not begun yet; `rtrec status` shows whether the stage is up",
            }[begun]
        )


def _print_times(held: Definitions, *, file: Definitions, before: Definitions | None, dry_run: bool) -> None:
    def of(found: Definitions) -> tuple[int, int]:
        return found.horizon_ms, found.retention_ms

    horizon, retention = map(duration_text, of(held))
    if of(held) != of(file):
        click.echo(f"horizon {horizon}, retention {retention}: live views that the file does not have rely on them")
    elif before is not None and of(held) != of(before):
        verb = "would hold" if dry_run else "hold"
        click.echo(f"horizon {horizon}, retention {retention} {verb} for all views from now on")


@contextmanager
def _store(system: System) -> Iterator[PostgresFeatureStore]:
    """The store with what is live, and the history behind it."""
    with open_features(system.features, postgres=system.postgres, history_uri=system.history_uri) as opened:
        yield opened.store


def _pipeline_runs(pool: Pool) -> bool:
    with pool.transaction() as cursor:
        stage = read_stages(cursor).get("features")
    return stage is not None and stage.up


def _wait_for_begin(store: PostgresFeatureStore, added: list[str]) -> bool:
    deadline, pause = monotonic_s() + _BEGIN_S, Event()
    while True:
        store.refresh()
        begins = [store.definitions.complete_from_ms.get(view, 0) for view in added]
        if NOT_BEGUN_MS not in begins:
            return True
        if monotonic_s() > deadline:
            return False
        pause.wait(0.2)


features.add_command(as_of)
features.add_command(backfill)
features.add_command(daily)
