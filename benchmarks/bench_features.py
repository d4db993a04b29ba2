"""How fast the feature stage drains a topic: workload W1 from Kafka to values, through the stage's own loop and actors.

    python benchmarks/bench_features.py --bootstrap HOST:PORT --topic behavior --actors 2 --sink postgres

The topic was filled by the load generator (45 % impressions, 35 % views, 10 % searches, 5 % clicks, 5 % others). Three
views: `user_browse_5m` (a row a user and 10 s; merged on read, so nothing is emitted), `category_top_items_10m` and
`top_queries_30m` (lists that changed, every 10 s of event time, as soon as all partitions have come that far, by a
process of their own). `--sink none`: what the actors compute is dropped, but for the lists' tiles, which go to the
process that makes the lists; positions are committed all the same, each second. `--sink postgres`: tiles and lists are
written, to `--dsn` or to a durable server of its own; of a list that changes several times in one transaction the last
state, as any sink that buffers upserts does.

Time runs from the first record taken to the last list: starting actors is left out. Prints one JSON line: `cpu_s` and
`peak_rss_mb` are those of the actors and the lists' process together; `values` are the rows and sums over all windows,
to be compared with the generator's `--truth` (`--expect FILE` does, and fails when they differ).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import ray
from features_drain import W1, Way, drain, topic, w1

from rtrec_ray.events import BEHAVIOR


def differences(values: Mapping[str, int], truth: Mapping[str, Any]) -> list[str]:
    """What differs from the generator's own sums."""
    expected = {
        f"{W1[1]} rows": truth["w1a"]["rows"],
        f"{W1[1]} total": truth["w1a"]["clicks"],
        f"{W1[2]} rows": truth["w1c"]["rows"],
        f"{W1[2]} total": truth["w1c"]["searches"],
        f"{W1[0]} rows": truth["w1b_10s"]["rows"],
        f"{W1[0]} total": truth["w1b_10s"]["events"],
    }
    return [f"{name}: {n}, not {expected[name]}" for name, n in values.items() if n != expected[name]]


def main() -> int:
    """Run as often as asked, each time on new tables."""
    options = _arguments()
    definitions, kafka = w1(), topic(options.bootstrap, options.topic)
    truth = json.loads(options.expect.read_text()) if options.expect else None
    wrong: list[str] = []
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=options.debug, logging_level="ERROR")
    for actors, sink in product(options.actors * options.runs, options.sink):
        way = Way(actors=actors, sink=sink, dsn=options.dsn, commit_every_s=options.commit_every_s)
        found = drain(definitions, kafka, way)
        if sink == "postgres":
            found["values"] |= found.pop("user_values")
        del found["growth"]
        print(json.dumps(found), flush=True)
        wrong += differences(found["values"], truth) if truth else []
    ray.shutdown()
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:29092")
    parser.add_argument("--topic", default=BEHAVIOR)
    parser.add_argument("--actors", type=int, nargs="+", default=[2])
    parser.add_argument("--sink", nargs="+", choices=("none", "postgres"), default=["postgres"])
    parser.add_argument("--dsn", help="an empty database; by default a durable server is started for each run")
    parser.add_argument("--commit-every-s", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--expect", type=Path, help="what the generator's --truth printed")
    parser.add_argument("--debug", action="store_true", help="show what the actors print")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
