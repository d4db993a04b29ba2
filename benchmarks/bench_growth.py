"""Whether an event costs the same however many came before, and on however many partitions.

    python benchmarks/bench_growth.py --topic behavior-w50 --plot docs/growth.png \\
        --partitions 1 4 8 16 32 --generator gen_events.py

Drains a long topic (chained runs of the load generator) through `bench_features.py`'s actors into PostgreSQL, whose
tiles are dropped as no window reaches them, and writes down after each commit what was read, the CPU time and memory
of the actors and of the lists, and every 5 s the size of the tiles. `--partitions`: topics with so many partitions
and 2 million events each are made by `--generator` and drained too. Prints one JSON line; `--plot` draws it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
from features_drain import Mark, Way, drain, topic, w1

from rtrec_ray.demo.charts.axes import heading
from rtrec_ray.demo.charts.svg import PALETTE, figure, house_style
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.kafka.base import KafkaOptions, TopicSpec
from rtrec_ray.kafka.connect import connect_admin

POINTS = 60
EVENTS = 2_000_000


def grown(growth: Sequence[Sequence[Mark]]) -> dict[str, list[float]]:
    """What all processes together had done, at moments evenly spread over the run: each stands where it last said.

    `events` millions; `cpu_us` CPU time per event since the moment before, µs; `rss_mb`; `tiles_mb` on disk.
    """
    moments = np.linspace(min(each[0].at_s for each in growth), max(each[-1].at_s for each in growth), POINTS + 1)
    events, cpu_s, rss_mb, disk_mb = (
        sum(_at(each, name, moments) for each in growth) for name in ("events", "cpu_s", "rss_mb", "disk_mb")
    )
    came = np.diff(events)
    steps = came > 0
    return {
        "events": (events[1:][steps] / 1e6).round(2).tolist(),
        "cpu_us": (np.diff(cpu_s)[steps] / came[steps] * 1e6).round(2).tolist(),
        "rss_mb": rss_mb[1:][steps].round().tolist(),
        "tiles_mb": disk_mb[1:][steps].round().tolist(),
    }


def _at(marks: Sequence[Mark], name: str, moments: np.ndarray) -> np.ndarray:
    times = np.array([each.at_s for each in marks])
    values = np.array([float(getattr(each, name)) for each in marks])
    return np.interp(moments, times, values)


def filled(kafka: KafkaOptions, *, partitions: int, generator: Path) -> KafkaOptions:
    """A topic with so many partitions and EVENTS events of the generator, made if it is not there."""
    target = KafkaOptions(bootstrap=kafka.bootstrap, suffix=f"-p{partitions}")
    with connect_admin(target) as admin:
        made = admin.ensure_topics([TopicSpec(topic=each, partitions=partitions) for each in (BEHAVIOR, INFERENCE)])
    if made:
        words = [str(EVENTS), "--keep", "--bootstrap", target.bootstrap, f"--suffix={target.suffix}"]
        subprocess.run([sys.executable, str(generator), *words], check=True, stdout=subprocess.DEVNULL)
    return target


def plot(path: Path, long: dict[str, list[float]]) -> None:
    """Cost, memory and tiles over the events."""
    panels_of = (
        ("cpu_us", "CPU time per event in the actors and the lists' process, µs", "blue"),
        ("rss_mb", "their memory, MB", "green"),
        ("tiles_mb", "tiles in PostgreSQL with their index, MB", "orange"),
    )
    with house_style():
        made, panels = figure(*(1.5 for _ in panels_of))
        for panel, (name, text, colour) in zip(panels, panels_of, strict=True):
            panel.plot(long["events"], long[name], color=PALETTE[colour])
            panel.set_ylim(0, 1.15 * max(long[name]))
            heading(panel, text)
        panels[-1].set_xlabel("million events read")
        made.patch.set_alpha(1.0)
        made.savefig(path, dpi=110)


def main() -> int:
    """Drain the long topic, then those with other numbers of partitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:29092")
    parser.add_argument("--topic", default=BEHAVIOR)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--sink", choices=("none", "postgres"), default="postgres")
    parser.add_argument("--partitions", type=int, nargs="*", default=[])
    parser.add_argument("--generator", type=Path, help="the load generator")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    kafka = topic(options.bootstrap, options.topic)
    how = Way(actors=options.actors, sink=options.sink, expire=True)
    targets = [filled(kafka, partitions=each, generator=options.generator) for each in options.partitions]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    wide = []
    for target in targets:
        found = drain(w1(), target, how)
        names = ("partitions", "events_per_s", "cpu_s", "peak_rss_mb")
        wide.append({name: found[name] for name in names} | {"cpu_us": found["cpu_s"] / found["events"] * 1e6})
    found = drain(w1(), kafka, how)
    ray.shutdown()
    long = grown(found.pop("growth"))
    print(json.dumps({**found, "by_partitions": wide, "growth": long}))
    if options.plot:
        plot(options.plot, long)
    return 0


if __name__ == "__main__":
    sys.exit(main())
