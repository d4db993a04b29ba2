"""What the sample stage holds while one of its topics stalls and the other goes on.

    python benchmarks/bench_stall.py --bootstrap HOST:PORT --suffix -w2 --expect truth.json

The topics behaviorX and inference-logX were filled by the load generator. They are copied to behaviorX-stall and
inference-logX-stall, of the latter a `--share` alone. The stage drains these into a durable PostgreSQL of its own, in
one actor that may hold `--open-rows`, until it stands still for `--still-s`: it must not guess the outcome of what has
no record yet, and must not hold all that it could read. Then the rest of the inference log comes, and the stage goes
on to the end.

Prints one JSON line: `peak_rss_mb` of the actor at the end, `stalled_rss_mb` and `stalled_records` as it stood still,
of `events` in all. Fails when rows, positives and misses in the end are not the generator's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import confluent_kafka as rdkafka
import ray
from bench_samples import WAIT_MS, Bench, Share, differences
from growth import Mark
from stages import database, ends_of

from rtrec_ray.clock import monotonic_s
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_admin
from rtrec_ray.kafka.topics import ensure_topics
from rtrec_ray.postgres.connection import connect
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.stores.samples.live import enter_definition, enter_partitions
from rtrec_ray.stores.samples.postgres import PostgresSampleStore

STALLED: Final = "-stall"
_PATIENCE_S: Final = 600.0
_MANY: Final = 10_000

Span = Mapping[int, tuple[int, int]]


def copy(kafka: KafkaOptions, topic: str, span: Span) -> None:
    """Copy offsets [from, to) of each partition of a topic to the stalled one, key by key."""
    source, target = kafka.physical(topic), replace(kafka, suffix=kafka.suffix + STALLED).physical(topic)
    ends = {partition: end for partition, (first, end) in span.items() if end > first}
    consumer = rdkafka.Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "copy", "enable.auto.commit": False})
    producer = rdkafka.Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 50})
    consumer.assign([rdkafka.TopicPartition(source, partition, span[partition][0]) for partition in ends])
    while ends:
        for message in consumer.consume(_MANY, timeout=1.0):
            partition, offset = message.partition(), message.offset()
            if message.error() is None and partition in ends and offset < ends[partition]:
                producer.produce(target, message.value(), message.key(), partition)
                if offset + 1 == ends[partition]:
                    del ends[partition]
        producer.flush()
    consumer.close()


def stand_still(share: Any, *, still_s: float) -> Mark:
    """Wait until the actor has read nothing for so long; answers what it had done."""
    changed_s, before, deadline_s = monotonic_s(), -1, monotonic_s() + _PATIENCE_S
    while monotonic_s() < deadline_s:
        marks: Sequence[Mark] = ray.get(share.marks.remote())
        now = marks[-1].events if marks else 0
        if now != before:
            changed_s, before = monotonic_s(), now
        elif marks and monotonic_s() - changed_s >= still_s:
            return marks[-1]
    raise SystemExit("the stage does not stand still")


def run(options: argparse.Namespace, kafka: KafkaOptions) -> dict[str, Any]:
    """Stall, and go on."""
    ends = {topic: ends_of(kafka, topic) for topic in (BEHAVIOR, INFERENCE)}
    some = {partition: int(end * options.share) for partition, end in ends[INFERENCE].items()}
    stalled = replace(kafka, suffix=kafka.suffix + STALLED)
    with connect_admin(stalled) as admin:
        ensure_topics(admin, partitions=len(some))
    copy(kafka, BEHAVIOR, {partition: (0, end) for partition, end in ends[BEHAVIOR].items()})
    copy(kafka, INFERENCE, {partition: (0, end) for partition, end in some.items()})
    with database(None) as (postgres, _):
        bench = Bench(
            definition=SampleDefinition(wait_ms=WAIT_MS),
            sink="postgres",
            kafka=stalled,
            postgres=postgres,
            ends=ends,
            commit_every_s=1.0,
            poll=20_000,
            profile=None,
            open_rows=options.open_rows,
        )
        with closing(connect(postgres)) as connection, connection, connection.cursor() as cursor:
            enter_definition(cursor, bench.definition)
            enter_partitions(cursor, len(some))
        share = Share.options(max_concurrency=2).remote(bench, sorted(some))
        drained = share.drain.remote()
        stood = stand_still(share, still_s=options.still_s)
        copy(kafka, INFERENCE, {partition: (end, ends[INFERENCE][partition]) for partition, end in some.items()})
        found = ray.get(drained)
        stats = PostgresSampleStore(postgres).stats()
    return {
        "events": sum(sum(each.values()) for each in ends.values()),
        "open_rows": options.open_rows,
        "stalled_records": stood.events,
        "stalled_rss_mb": round(stood.rss_mb),
        "peak_rss_mb": round(found["peak_rss_mb"]),
        "sink": "postgres",
        "samples": stats.rows,
        "positives": stats.positives,
        "misses": sum(stats.misses.values()),
    }


def main() -> int:
    """Run once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:29092")
    parser.add_argument("--suffix", default="", help="of the topics that the generator filled")
    parser.add_argument("--share", type=float, default=0.02, help="of the inference log that comes before the stall")
    parser.add_argument("--open-rows", type=int, default=100_000)
    parser.add_argument("--still-s", type=float, default=20.0)
    parser.add_argument("--expect", type=Path, required=True, help="what the generator's --truth printed")
    options = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    found = run(options, KafkaOptions(bootstrap=options.bootstrap, suffix=options.suffix))
    ray.shutdown()
    print(json.dumps(found), flush=True)
    wrong = differences(found, json.loads(options.expect.read_text()))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
