"""How much real-time features and real-time training are worth, measured on many seeds of the off-line twin.

    python -m benchmarks.effect --seeds 20

prints a table to stderr and one JSON object to stdout. `--null` plays a world in which nothing drifts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # a process a core: more threads only wait for each other
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import polars as pl
import tensorflow as tf

from benchmarks.twin import Models, Outcome, TwinOptions, run
from rtrec_ray.features.file import load_definitions as load_features
from rtrec_ray.samples.file import load_definition as load_samples
from rtrec_ray.simulate.world.effect import OBSERVED, effect, mean_interval
from rtrec_ray.simulate.world.experiment import (
    ARMS,
    EXPLORATION,
    PUBLISH_S,
    Schedule,
    unskewed,
    world_options,
    yesterday,
)
from rtrec_ray.simulate.world.world import World, make_world
from serving.retrieve import arm_of
from training.definition import load_definition as load_model

ROOT: Final = Path(__file__).parents[1]
MODEL: Final = ROOT / "rtrec_ray" / "simulate" / "world" / "model.yaml"
# From publishing an increment to its first answer. Live the newest sample of a model was 6.6, 7.5 and 9.0 s old then
# (medians of three seeds; the first one alone was quiet), of which 2 are the sample's own: wait, disorder, a commit.
ONLINE_WALL_S: Final = 5.0


def main() -> None:
    """Play the seeds, two at a time, and say what came of it."""
    options = _arguments()
    began_s = time.monotonic()
    jobs = [(seed, options) for seed in range(options.first_seed, options.first_seed + options.seeds)]
    with ProcessPoolExecutor(max_workers=min(options.processes, len(jobs)), initializer=_begin) as pool:
        found = []
        for result in pool.map(_one, jobs):
            found.append(result)
            _tell(result)
    summary = _summary(found) | {"seconds": round(time.monotonic() - began_s, 1)}
    sys.stdout.write(json.dumps({**summary, "seeds": found}) + "\n")
    for arm, of_arm in summary["arms"].items():
        mean, low, high = of_arm["regret_after"]
        bounds = "one seed has no interval" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        sys.stderr.write(f"{arm:>9}: regret after drift {mean:.4f} ({bounds})\n")
    sys.stderr.write(f"training loses {summary['training_over_static']:.0%} of what static loses\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=Schedule().minutes)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--null", action="store_true", help="a world in which nothing drifts")
    return parser.parse_args()


def _begin() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


_MODELS: dict[Path, Models] = {}  # of this process: tracing takes longer than a run


def _one(job: tuple[int, argparse.Namespace]) -> dict[str, Any]:
    seed, options = job
    began_s = time.monotonic()
    if options.model not in _MODELS:
        _MODELS[options.model] = Models(load_model(options.model))
    schedule = Schedule(minutes=options.minutes, drifting=not options.null)
    world = make_world(world_options(schedule, seed=seed))
    features = load_features(ROOT / "configs" / "features.yaml")
    definitions = features, unskewed(load_samples(ROOT / "configs" / "samples.yaml"))
    outcome = run(world, _MODELS[options.model], _twin_options(schedule), definitions)
    seen = observed(world, outcome)
    arms = {arm: asdict(found) for arm, found in effect(seen, drift_ms=schedule.first_drift_ms).items()}
    return {
        "seed": seed,
        "increments": outcome.increments,
        "seconds": round(time.monotonic() - began_s, 1),
        "arms": arms,
        "by_part": _by_part(seen, schedule),
    }


def _twin_options(schedule: Schedule) -> TwinOptions:
    wall_s = 1_000 * schedule.speed
    return TwinOptions(
        day=yesterday(schedule, arm_of=lambda user_id: str(arm_of(user_id, ARMS))),
        live_to_ms=schedule.to_ms,
        publish_ms=round(PUBLISH_S * wall_s),
        online_ms=round(ONLINE_WALL_S * wall_s),
        exploration=EXPLORATION,
    )


def observed(world: World, outcome: Outcome) -> pl.DataFrame:
    """The live part as rows of OBSERVED."""
    clicked = {
        (event["request_id"], event["item_id"])
        for step in outcome.steps
        for event in step.events
        if event["event_type"] == "click" and "request_id" in event
    }
    rows = []
    for step in outcome.steps:
        chance = world.truth.random(step.asked, places=step.shown.shape[1]) if len(step.asked) else ()
        for index, record in enumerate(step.records):
            items = [item.item_id for item in record.items or ()]
            clicks = sum((record.request_id, item) in clicked for item in items)
            true = (float(step.probability[index]), float(step.regret[index]), float(chance[index]))
            rows.append((record.ts, record.user_id, record.arm, len(items), clicks, *true))
    return pl.DataFrame(rows, schema=OBSERVED, orient="row")


def _by_part(seen: pl.DataFrame, schedule: Schedule) -> dict[str, dict[str, float]]:
    """Mean regret per arm in each part between two drifts."""
    ends = [schedule.from_ms, *(drift.at_ms for drift in schedule.drifts), schedule.to_ms]
    names = ["before", *(drift.kind for drift in schedule.drifts)]
    parts = {}
    for name, start, end in zip(names, ends[:-1], ends[1:], strict=True):
        of_part = seen.filter(pl.col("ts_ms").is_between(start, end, closed="left"))
        parts[name] = {
            arm: round(value, 4) for arm, value in of_part.group_by("arm").agg(pl.col("regret").mean()).iter_rows()
        }
    return parts


def _tell(result: dict[str, Any]) -> None:
    after = {arm: f"{found['regret_after']:.4f}" for arm, found in result["arms"].items()}
    sys.stderr.write(f"seed {result['seed']}: {after}, {result['increments']} increments, {result['seconds']} s\n")


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    arms = {
        arm: {
            name: _finite(mean_interval([result["arms"][arm][name] for result in found]))
            for name in ("regret_before", "regret_after", "ctr_before", "ctr_after")
        }
        for arm in ARMS
    }
    ratio = arms["training"]["regret_after"][0] / arms["static"]["regret_after"][0]
    return {"arms": arms, "training_over_static": round(ratio, 4)}


def _finite(values: tuple[float, ...]) -> list[float | None]:
    """JSON knows no infinity, which is the interval of a single seed."""
    return [value if math.isfinite(value) else None for value in values]


if __name__ == "__main__":
    main()
