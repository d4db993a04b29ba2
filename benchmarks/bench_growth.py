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
from pathlib import Path

import ray
from features_drain import Way, drain, topic, w1
from growth import grown, plot

from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.kafka.base import KafkaOptions, TopicSpec
from rtrec_ray.kafka.connect import connect_admin

EVENTS = 2_000_000
PANELS = (
    ("cpu_us", "CPU time per event in the actors and the lists' process, µs", "blue"),
    ("rss_mb", "their memory, MB", "green"),
    ("disk_mb", "tiles in PostgreSQL with their index, MB", "orange"),
)


def filled(kafka: KafkaOptions, *, partitions: int, generator: Path) -> KafkaOptions:
    """A topic with so many partitions and EVENTS events of the generator, made if it is not there."""
    target = KafkaOptions(bootstrap=kafka.bootstrap, suffix=f"-p{partitions}")
    with connect_admin(target) as admin:
        made = admin.ensure_topics([TopicSpec(topic=each, partitions=partitions) for each in (BEHAVIOR, INFERENCE)])
    if made:
        words = [str(EVENTS), "--keep", "--bootstrap", target.bootstrap, f"--suffix={target.suffix}"]
        subprocess.run([sys.executable, str(generator), *words], check=True, stdout=subprocess.DEVNULL)
    return target


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
        plot(options.plot, long, PANELS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
