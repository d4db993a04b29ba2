"""What the benchmarks of the running feature stage share: a system of which only that stage runs, and events of now.

python benchmarks/live_stage.py BOOTSTRAP RATE [HOT_USER [HOT_ITEM]]      # writes events until it is ended
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import ray

from configs.settings import KafkaServer as KafkaSettings
from configs.settings import Pipeline, Servers, Settings
from rtrec_ray.app.prepare import prepare
from rtrec_ray.app.system import Addresses, System
from rtrec_ray.clock import monotonic_s, wall_ms
from rtrec_ray.embedded.kafka import KafkaServer, KafkaServerOptions
from rtrec_ray.embedded.postgres import PostgresServer, PostgresServerOptions
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.file import load_definitions
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.codec import encode
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.file import load_definition

CONFIGS = Path(__file__).parents[1] / "configs"
SUFFIX = "-live"
KINDS = ("impression", "view", "search", "click", "favorite", "cart")
SHARES = (0.45, 0.35, 0.10, 0.05, 0.03, 0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hot:
    """Share of all events that is of one user, and of one item (and so of its category and type), in [0, 1]."""

    user: float = 0.0
    item: float = 0.0


def produce(bootstrap: str, rate: int, hot: Hot) -> None:
    """Write events of now until the process is ended."""
    random, written, begun_s = np.random.default_rng(7), 0, monotonic_s()
    with closing(connect_producer(KafkaOptions(bootstrap=bootstrap, suffix=SUFFIX))) as producer:
        while True:
            due = int((monotonic_s() - begun_s) * rate) - written
            if due:
                producer.send_many(BEHAVIOR, *encode(BEHAVIOR, events(random, written, due, hot=hot)))
                written += due
            threading.Event().wait(0.05)


def events(random: np.random.Generator, first: int, n: int, *, hot: Hot) -> pl.DataFrame:
    """(n, ...) events of now, up to 2 s out of order: 50,000 users, 20,000 items, 100 categories, 1,000 words."""
    item = np.where(random.random(n) < hot.item, 0, random.integers(0, 20_000, n))
    return pl.DataFrame(
        {
            "event_id": [f"e{number}" for number in range(first, first + n)],
            "event_type": random.choice(KINDS, n, p=SHARES),
            "ts": wall_ms() - random.integers(0, 2_000, n),
            "user_id": np.where(random.random(n) < hot.user, 0, random.integers(0, 50_000, n)),
            "item_id": item,
            "item_type": np.array(["product", "article", "video", "ad"])[item % 4],
            "category_id": item % 100,
            "page_id": random.integers(1, 21, n),
            "dwell_ms": random.integers(0, 60_000, n),
            "query": np.char.add("word", random.integers(0, 1_000, n).astype(str)),
        }
    )


@contextmanager
def running_system(pipeline: Pipeline, *, samples: SampleDefinition | None = None) -> Iterator[System]:
    """A system with nothing but the actors of `pipeline`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rtrec-bench-")))
        kafka = KafkaServer(KafkaServerOptions(directory=folder / "kafka"))
        postgres = PostgresServer(PostgresServerOptions(directory=folder / "postgres"))
        for server in (kafka, postgres):
            stack.callback(server.stop)
            server.start()
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        yield prepare(
            System(
                settings=Settings(
                    servers=Servers(kafka=KafkaSettings(suffix=SUFFIX)),
                    pipeline=pipeline,
                ),
                directory=folder,
                addresses=Addresses(kafka=kafka.bootstrap, postgres=postgres.dsn(), ray="local"),
                features=load_definitions(CONFIGS / "features.yaml"),
                samples=samples or load_definition(CONFIGS / "samples.yaml"),
            )
        )


@contextmanager
def load(system: System, *, rate: int, generator: Path | None, hot: Hot | None = None) -> Iterator[None]:
    """Events come during the block, written by a process of their own."""
    if generator is None:
        hot = hot or Hot()
        words = [__file__, system.kafka.bootstrap, str(rate), str(hot.user), str(hot.item)]
    else:
        n = 150 * rate  # enough for the whole measurement; its event time must not run ahead of the clock
        start_ms = wall_ms() - 3_600_000
        words = [str(generator), str(n), "--rate", str(rate), "--bootstrap", system.kafka.bootstrap]
        words += ["--suffix", SUFFIX, "--start-ms", str(start_ms - n * 18 // 10), "--keep"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    user, item, *_ = [*map(float, sys.argv[3:]), 0.0, 0.0]
    produce(sys.argv[1], int(sys.argv[2]), Hot(user=user, item=item))
