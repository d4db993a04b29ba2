"""How long after a late click is sent its sample is revised, while others come at a rate.

    python benchmarks/bench_corrected.py [--rate 10000] [--seconds 30]

Kafka, PostgreSQL and Ray are of its own, two actors stitch samples; the wait is 5 s. Requests come with ten impressions
each, one in twenty of which is clicked. Ten times a second a new user is shown an item; 12 s later, when the sample has
long been written as a negative, its click is sent: from then until `samples.current` has the label, read every 5 ms, is
one measurement. Prints one JSON line, ms.

    python benchmarks/bench_corrected.py --produce BOOTSTRAP     # writes requests until it is ended
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import orjson
from live_stage import SUFFIX, running_system

from configs.settings import Pipeline
from rtrec_ray.app.cluster import end_actors, stop_actors
from rtrec_ray.app.pipeline import shares, start_pipeline
from rtrec_ray.app.system import System
from rtrec_ray.clock import monotonic_s, wall_ms
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.kafka.base import KafkaOptions, Producer
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.postgres.connection import connect
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.stores.samples.postgres import PostgresSampleStore

SHOWN = 10
CLICKED = 0.05
EVENTS_A_REQUEST = SHOWN * (1 + CLICKED) + 1
NOBODY = 1_000_000_000
EACH_S, LOOK_S, LATE_S, PATIENCE_S = 0.1, 0.005, 12.0, 60.0
WAIT_MS = 5_000
CORRECTED = """SELECT request_id FROM samples.revisions
WHERE request_id = ANY (%s) AND revision > 0 AND label = 1 AND old_label = 0"""


def show(producer: Producer, name: str, user: int, items: list[int]) -> None:
    """Send the record of a request and its impressions."""
    key, at = str(user).encode(), {"request_id": name, "user_id": user, "ts": wall_ms()}
    record = at | {"model_version": "1", "features": {"user_5m_click": 3, "city": "Oslo"}}
    record["items"] = [{"item_id": item, "position": place, "score": 0.1} for place, item in enumerate(items)]
    producer.send(INFERENCE, key=key, value=orjson.dumps(record))
    for place, item in enumerate(items):
        event = at | {"event_id": f"{name}-{item}", "event_type": "impression", "item_id": item, "position": place}
        producer.send(BEHAVIOR, key=key, value=orjson.dumps(event | {"page_id": 1}))


def click(producer: Producer, name: str, user: int, item: int) -> None:
    """Send a click on it."""
    event = {"event_id": f"c{name}-{item}", "event_type": "click", "ts": wall_ms(), "user_id": user}
    value = orjson.dumps(event | {"request_id": name, "item_id": item})
    producer.send(BEHAVIOR, key=str(user).encode(), value=value)


def produce(bootstrap: str, rate: int) -> None:
    """Write requests of now, and clicks some seconds later, until the process is ended."""
    random, number, begun_s = np.random.default_rng(7), 0, monotonic_s()
    waiting: deque[tuple[float, str, int, int]] = deque()
    with closing(connect_producer(KafkaOptions(bootstrap=bootstrap, suffix=SUFFIX))) as producer:
        while True:
            due = int((monotonic_s() - begun_s) * rate / EVENTS_A_REQUEST) - number
            for _ in range(due):
                number += 1
                items, user = random.choice(20_000, SHOWN, replace=False).tolist(), int(random.integers(50_000))
                show(producer, f"r{number}", user, items)
                for item in items:
                    if random.random() < CLICKED:
                        waiting.append((monotonic_s() + 3.0, f"r{number}", user, item))
            while waiting and waiting[0][0] <= monotonic_s():
                click(producer, *waiting.popleft()[1:])
            threading.Event().wait(0.02)


@contextmanager
def load(system: System, rate: int) -> Iterator[None]:
    """Requests come during the block, written by a process of their own."""
    words = [sys.executable, __file__, "--produce", system.kafka.bootstrap, "--rate", str(rate)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def latencies_ms(system: System, *, seconds: float) -> list[float]:
    """Of each late click, ms until its sample was revised; infinite if not within the patience."""
    shown: deque[tuple[float, str, int]] = deque()
    sent: dict[str, float] = {}
    found: list[float] = []
    until_s, next_s, user = monotonic_s() + seconds, monotonic_s(), NOBODY
    with closing(connect(system.postgres)) as connection, closing(connect_producer(system.kafka)) as producer:
        connection.autocommit = True
        cursor = connection.cursor()
        while shown or sent or monotonic_s() < until_s:
            if monotonic_s() > until_s + PATIENCE_S:
                return found + [float("inf")] * (len(sent) + len(shown))
            if next_s <= monotonic_s() < until_s:
                next_s += EACH_S
                user += 1
                show(producer, f"probe{user}", user, [1])
                shown.append((monotonic_s() + LATE_S, f"probe{user}", user))
            while shown and shown[0][0] <= monotonic_s():
                _, name, whose = shown.popleft()
                sent[name] = monotonic_s()
                click(producer, name, whose, 1)
            if sent:
                cursor.execute(CORRECTED, (list(sent),))
                now_s = monotonic_s()
                found += [1_000 * (now_s - sent.pop(name)) for (name,) in cursor.fetchall()]
            threading.Event().wait(LOOK_S)
    return found


def main() -> None:
    """Start everything, measure, stop everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--produce", metavar="BOOTSTRAP")
    arguments = parser.parse_args()
    if arguments.produce:
        produce(arguments.produce, arguments.rate)
    pipeline = Pipeline(feature_actors=0, sample_actors=2, history_actors=0)
    with running_system(pipeline, samples=SampleDefinition(wait_ms=WAIT_MS)) as system:
        actors = start_pipeline(system)
        names = [share.name for share in shares(system)]
        try:
            with load(system, arguments.rate):
                found = latencies_ms(system, seconds=arguments.seconds)
        finally:
            del actors
            stop_actors(names)
            end_actors(names)
        rows = PostgresSampleStore(system.postgres).stats().rows
    p50, p99 = np.percentile(found, [50, 99])
    head = {"rate": arguments.rate, "clicks": len(found), "p50": round(p50), "p99": round(p99)}
    print(json.dumps({**head, "max": round(max(found)), "samples": rows}))


if __name__ == "__main__":
    main()
