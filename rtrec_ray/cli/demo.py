"""`rtrec demo`: what real time is worth in a drifting world, or the whole loop on a real click log; with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from rtrec_ray.cli.options import Where, command
from rtrec_ray.errors import ConfigInvalid

if TYPE_CHECKING:
    from rtrec_ray.demo.scene import Scene


@click.command()
@click.option("--source", type=click.Choice(["world", "open-bandit"]), default="world", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the world and its shoppers, or of the client.")
@click.option("--minutes", type=float, help="Wall time of the live part (6), or in which the log passes (5).")
@click.option("--null", is_flag=True, help="A world in which nothing drifts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/demo"),
    show_default=True,
    help="Where the report goes; emptied first.",
)
@command
def demo(where: Where, source: str, seed: int, minutes: float | None, out: Path, *, null: bool) -> int:
    """Show what real-time features and training win back when behaviour drifts, and write a report.

    Starts a system of its own in a temporary directory, whatever --data-dir says, and stops it at the end.
    """
    # Imported when called: MLflow, Polars and matplotlib take seconds.
    from configs.settings import load_settings
    from rtrec_ray.clock import monotonic_s
    from rtrec_ray.demo.directory import LOGS, empty
    from rtrec_ray.demo.run import run_demo
    from rtrec_ray.demo.screen import Screen, print_outcome
    from rtrec_ray.demo.streams import set_aside
    from rtrec_ray.demo.words import outcome

    began_s, settings = monotonic_s(), load_settings(where.config)
    scene = _scene(source, seed=seed, minutes=minutes, out=out.absolute(), drifting=not null)
    empty(scene.out)
    with set_aside(scene.out / LOGS / "driver.log") as (stdout, stderr):
        console = Console(file=stderr if where.json else stdout, highlight=False)
        with Screen(console, began_s=began_s) as screen:
            record, page = run_demo(scene, settings, screen)
        found = scene.summary(record)
        if not where.json:
            print_outcome(console, record.checks, lines=outcome(found), page=str(page))
    where.answer(found, lambda: None)
    return 0 if record.ok else 1


def _scene(source: str, *, seed: int, minutes: float | None, out: Path, drifting: bool) -> Scene:
    from rtrec_ray.demo.replay.options import DemoOptions, ShowOptions
    from rtrec_ray.demo.scene import DriftingWorld, OpenBandit
    from rtrec_ray.demo.world.options import WorldDemoOptions
    from rtrec_ray.simulate.world.experiment import Schedule

    if source == "open-bandit":
        if not drifting:
            raise ConfigInvalid("a click log drifts as it does: --null is for the world", mend="leave --source out")
        show = ShowOptions(seed=seed) if minutes is None else ShowOptions(seed=seed, minutes=minutes)
        return OpenBandit(DemoOptions(out=out, show=show))
    schedule = Schedule(drifting=drifting) if minutes is None else Schedule(drifting=drifting, minutes=minutes)
    return DriftingWorld(WorldDemoOptions(out=out, seed=seed, schedule=schedule))
