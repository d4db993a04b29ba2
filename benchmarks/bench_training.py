"""Training and scoring on this machine, one thread: prints one JSON line.

    python benchmarks/bench_training.py [ROWS]

`step`: rows learnt a second; `assemble`: rows of raw features to columns; `score_ms`: 200 candidates by the exported
model, as serving does it; `export_ms`, `load_ms`: a version written and read. On made-up samples with all inputs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import tensorflow as tf

from rtrec_ray.clock import monotonic_s
from rtrec_ray.features.vector import assemble
from rtrec_ray.registry.artifact import ModelCard, write_card
from training.definition import ModelDefinition, load_definition
from training.loop import Learner
from training.publish import Exporter
from training.served import load_served

CANDIDATES = 200


def rows_of(definition: ModelDefinition, count: int) -> list[dict[str, object]]:
    random = np.random.default_rng(0)
    texts = {c.name: random.integers(0, c.bins, count).astype(str).tolist() for c in definition.of("category")}
    numbers = {c.name: random.integers(0, 50, count).tolist() for c in definition.of("number")}
    lists = {c.name: random.integers(0, 9_999, (count, c.length)).tolist() for c in definition.of("ids")}
    columns = texts | numbers | lists
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def milliseconds(action, *, times: int = 200) -> float:
    spent = []
    for _ in range(times):
        start = monotonic_s()
        action()
        spent.append(monotonic_s() - start)
    return round(float(np.median(spent)) * 1_000, 3)


def measure(family: str, count: int) -> dict[str, float]:
    shipped = load_definition(Path(__file__).parents[1] / "configs" / "model.yaml")
    definition = msgspec.structs.replace(shipped, family=family)
    raw = rows_of(definition, count)
    start = monotonic_s()
    columns = assemble(definition.model_inputs, raw)
    assembled_s = monotonic_s() - start
    label = (np.random.default_rng(1).random(count) < 0.005).astype(np.float32)
    learner, size = Learner(definition, base_rate=0.005), definition.batch_rows

    def step(begin: int) -> None:
        part = {name: column[begin : begin + size] for name, column in columns.items()}
        learner.train(part, label[begin : begin + size], np.ones(len(part["user_id"])))

    step(0)  # traces
    start = monotonic_s()
    for begin in range(0, count, size):
        step(begin)
    stepped_s = monotonic_s() - start
    exporter = Exporter(definition, base_rate=0.005)
    with tempfile.TemporaryDirectory() as folder:
        exported = milliseconds(lambda: exporter.write(Path(folder), learner.state()), times=5)
        card = ModelCard(
            model=family,
            kind="base",
            inputs=definition.model_inputs,
            base_rate=0.005,
            created_ms=0,
            trained_to_ms=0,
            to_seq=count,
            configuration=definition.to_json(),
        )
        write_card(Path(folder), card)
        loaded = milliseconds(lambda: load_served(Path(folder)), times=5)
        served = load_served(Path(folder))
    few = {name: column[:CANDIDATES] for name, column in columns.items()}
    served.score(few)
    return {
        "step_rows_per_s": round(count / stepped_s),
        "assemble_rows_per_s": round(count / assembled_s),
        "score_ms": milliseconds(lambda: served.score(few)),
        "export_ms": exported,
        "load_ms": loaded,
        "weights": learner.model.count_params(),
    }


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_480
    print(json.dumps({"rows": count, **{family: measure(family, count) for family in ("dcn", "fm", "logistic")}}))


if __name__ == "__main__":
    main()
