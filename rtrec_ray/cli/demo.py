"""`rtrec demo`: the whole loop on a real click log, with a report."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from rtrec_ray.cli.options import Where, command


@click.command()
@click.option("--source", type=click.Choice(["open-bandit"]), default="open-bandit", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the live client and its clicks.")
@click.option("--minutes", type=float, default=5.0, show_default=True, help="Wall time in which the log passes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/demo"),
    show_default=True,
    help="Where the report goes; emptied first.",
)
@command
def demo(where: Where, source: str, seed: int, minutes: float, out: Path) -> int:
    """Run the whole loop on a real click log and write a report.

    Starts a system of its own in a temporary directory, whatever --data-dir says, and stops it at the end.
    """
    # Imported when called: MLflow, Polars and matplotlib take seconds.
    from configs.settings import load_settings
    from rtrec_ray.clock import monotonic_s
    from rtrec_ray.demo.figures import summary
    from rtrec_ray.demo.options import LOGS, DemoOptions, ShowOptions, empty
    from rtrec_ray.demo.run import run_demo
    from rtrec_ray.demo.screen import Screen, print_outcome
    from rtrec_ray.demo.streams import set_aside

    began_s, settings = monotonic_s(), load_settings(where.config)
    options = DemoOptions(out=out.absolute(), show=ShowOptions(seed=seed, minutes=minutes))
    empty(options.out)
    with set_aside(options.out / LOGS / "driver.log") as (stdout, stderr):
        console = Console(file=stderr if where.json else stdout, highlight=False)
        with Screen(console, began_s=began_s) as screen:
            record, page = run_demo(options, settings, screen)
        if not where.json:
            print_outcome(console, record, page=str(page))
    where.answer(summary(record), lambda: None)
    return 0 if record.ok else 1
