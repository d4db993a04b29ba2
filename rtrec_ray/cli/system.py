"""`rtrec up`, `down`, `status`, `doctor`: the system as a whole."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
from psycopg2.extensions import make_dsn, parse_dsn
from rich.console import Console
from rich.table import Table

from configs.settings import load_settings
from rtrec_ray.app.find import open_system
from rtrec_ray.app.status import status as read_status
from rtrec_ray.cli.options import Where, command
from rtrec_ray.embedded.doctor import Check, checks
from rtrec_ray.embedded.state import claim, read_state
from rtrec_ray.embedded.system import stop_other
from rtrec_ray.errors import AlreadyRunning, EmbeddedFailure, StoreUnavailable
from rtrec_ray.stores.changes.slots import list_slots, read_means

_LOOK_S = 1.0


@click.command()
@click.option("--only", "only", help="Parts to start, with commas: kafka,postgres,mlflow,ray,pipeline,training,serve.")
@click.option(
    "--traffic", type=float, default=0.0, help="Requests per second of simulated shoppers, as long as it is up."
)
@click.option("--detach", is_flag=True, help="Return when it is ready; `rtrec down` stops it.")
@command
def up(where: Where, only: str | None, traffic: float, *, detach: bool) -> None:
    """Start the system and keep it running until Ctrl-C."""
    if detach:
        _detach(where, only, traffic)
    else:
        _stay(where, only, traffic)
    if detach and where.json:
        where.answer(read_status(open_system(where.config, where.data_dir)), lambda: None)


@click.command()
@command
def down(where: Where) -> None:
    """Stop everything that `up` started on this data directory, and only that."""
    stopped = stop_other(where.data_dir)
    parts = list(stopped.facts.get("parts", stopped.parts))
    where.answer({"stopped": parts}, lambda: click.echo(f"stopped: {', '.join(parts)}"))


@click.command()
@command
def status(where: Where) -> None:
    """Show each stage: up, lag, watermark, counts, freshness, models."""
    found = read_status(open_system(where.config, where.data_dir))
    where.answer(found, lambda: _print_status(found))


@click.command()
@command
def doctor(where: Where) -> int:
    """Say what this machine lacks."""
    found = [*checks(where.data_dir), *_change_log(where)]
    answer = {"ok": all(check.ok for check in found), "checks": [_plain(check) for check in found]}
    where.answer(answer, lambda: _print_checks(found))
    return 0 if answer["ok"] else 1


def _stay(where: Where, only: str | None, traffic: float) -> None:
    from rtrec_ray.app.up import PARTS, started  # imports Ray, MLflow and Serve: seconds that --detach spares itself

    parts = PARTS if only is None else tuple(part.strip() for part in only.split(",") if part.strip())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with started(
            load_settings(where.config),
            where.data_dir,
            parts=parts,
            config=where.config,
            on_step=_say,
            traffic=traffic,
        ) as running:
            signal.signal(signal.SIGTERM, _interrupt)  # Ray's driver has put its own in place
            _say("rtrec", "ready; Ctrl-C or `rtrec down` stops it")
            _print_addresses(read_status(running.system))
            while not stop.wait(_LOOK_S):
                running.revive()
    except KeyboardInterrupt:
        _say("rtrec", "stopped")


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _detach(where: Where, only: str | None, traffic: float) -> None:
    state = read_state(where.data_dir)
    if state is not None and state.is_running():
        raise AlreadyRunning(
            f"already running on {where.data_dir}: {', '.join(state.facts.get('parts', state.parts))}",
            mend="`rtrec status` shows it, `rtrec down` stops it",
        )
    claim(where.data_dir).close()  # says in one line why the directory cannot be used
    log = where.data_dir / "up.log"
    words = [sys.executable, "-m", "rtrec_ray.cli", "up", "--data-dir", str(where.data_dir)]
    words += ["--config", str(where.config)] if where.config else []
    words += ["--only", only] if only else []
    words += ["--traffic", str(traffic)] if traffic else []
    words += ["--debug"] if where.debug else []
    with log.open("wb") as out:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    _await_ready(where.data_dir, child, log)
    if not where.json:
        click.echo(log.read_text(), nl=False)


def _await_ready(directory: Path, child: subprocess.Popen[bytes], log: Path) -> None:
    while child.poll() is None:
        state = read_state(directory)
        if state is not None and state.owner.pid == child.pid and state.facts.get("ready"):
            return
        threading.Event().wait(0.2)
    last = (log.read_text().strip().splitlines() or ["no word"])[-1]
    raise EmbeddedFailure(last.removeprefix("rtrec: "), mend=f"the whole story is in {log}")


def _say(part: str, what: str) -> None:
    click.echo(f"{part:>9}  {what}", err=True)


def _print_addresses(found: dict[str, Any]) -> None:
    for part in ("kafka", "postgres", "mlflow", "ray", "serve"):
        if found[part]:
            address = next(value for value in found[part].values() if value)
            click.echo(f"{part:>9}  {_without_password(address) if part == 'postgres' else address}", err=True)


def _without_password(dsn: str) -> str:
    return make_dsn("", **{name: value for name, value in parse_dsn(dsn).items() if name != "password"})


def _print_status(found: dict[str, Any]) -> None:
    _print_addresses(found)
    table = Table(
        "stage", "up", "lag", "behind", "in", "late", "dead", "corrected", "more", box=None, header_style="bold"
    )
    for column in table.columns[2:8]:
        column.justify = "right"
    for name, stage in found["stages"].items():
        table.add_row(name, *_row(stage))
    console = Console()
    console.print(table if found["stages"] else "no stage has run yet")
    models = found["models"]
    console.print(f"champion {models['champion'] or '-'}, serving {models['serving'] or '-'}")


def _row(stage: dict[str, Any]) -> list[str]:
    shown = ("up", "lag", "behind_ms", "in", "late", "dead", "corrected", "watermark_ms", "age_ms", "views")
    more = ", ".join(f"{key} {_number(value)}" for key, value in stage.items() if key not in shown and value)
    behind = stage.get("behind_ms")
    return [
        "yes" if stage["up"] else "[red]no[/red]",
        _number(stage.get("lag")),
        "-" if behind is None else _duration(behind),
        *(_number(stage.get(key)) for key in ("in", "late", "dead", "corrected")),
        more,
    ]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _duration(ms: int) -> str:
    seconds = ms / 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _change_log(where: Where) -> list[Check]:
    """Of the PostgreSQL that runs or is named in --config; none is no fault."""
    system = open_system(where.config, where.data_dir)
    if system.addresses.postgres is None:
        return []
    try:
        means, kept = read_means(system.postgres), list_slots(system.postgres)
    except StoreUnavailable as error:
        return [Check(name="change log", ok=False, detail=error.message, mend=error.mend)]
    behind = ", ".join(f"{slot.name} keeps {(slot.kept_bytes or 0) / 1e6:,.1f} MB" for slot in kept)
    if means.no_stream:
        # Not a fault: training goes on, by commit_seq.
        return [Check(name="change log", ok=True, detail=f"followed by commit_seq: {means.no_stream}")]
    mend = "" if means.bound else "set max_slot_wal_keep_size, or a consumer that stays away fills the server's disk"
    detail = f"logical replication, at most {means.bound or 'all'} kept for a consumer; {behind or 'no slots'}"
    return [Check(name="change log", ok=means.bound is not None, detail=detail, mend=mend)]


def _plain(check: Any) -> dict[str, Any]:
    return {"name": check.name, "ok": check.ok, "detail": check.detail, "mend": check.mend}


def _print_checks(found: list[Any]) -> None:
    for check in found:
        mend = f" - {check.mend}" if check.mend and not check.ok else ""
        click.echo(f"{'ok  ' if check.ok else 'LACK'}  {check.name}: {check.detail}{mend}")
