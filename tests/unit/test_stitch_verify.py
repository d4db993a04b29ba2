"""Stitching from the history gives the stream's samples; what differs is told with its cause."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from actors.history import HistoryOperator, HistoryOptions
from actors.jobs.stitch import StitchOptions, stitch_partition
from actors.sample import SampleOperator
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.memory import MemoryBroker, MemoryProducer
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.samples.columns import KEY
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.timeline import Timeline
from rtrec_ray.samples.verify import LIVE_SCHEMA, RECORD_SCHEMA, STITCHED_SCHEMA, UNEXPLAINED, Standing, compare
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import MemoryHistoryManifest
from rtrec_ray.stores.history.store import History
from rtrec_ray.stores.samples.ledger import MemorySampleLedger, MemorySamples

START_MS, SPAN_MS = 1_767_225_600_000, 600_000
RULES = SampleDefinition(wait_ms=30_000, horizon_ms=7_200_000)


def latest_ms(written_ms: int) -> int:
    return 1 << 60


def traffic(seed: int) -> tuple[list[bytes], list[bytes]]:
    """Behaviour in order of arrival, with late clicks, repeated impressions and clicks; and the inference log, of which
    a tenth is lost."""
    rng = np.random.default_rng(seed)
    events, log = [], []
    for request in range(60):
        asked = START_MS + int(rng.integers(0, SPAN_MS))
        base = {"user_id": request % 7, "request_id": f"r{request}"}
        if rng.random() < 0.9:
            log.append((asked, {**base, "ts": asked, "model_version": "1", "features": {"a": request}}))
        for item in range(3):
            shown = asked + int(rng.integers(0, 500))
            event = {**base, "item_id": item, "page_id": 1}
            at = {"event_type": "impression"}
            copies = 2 if rng.random() < 0.1 else 1
            for copy in range(copies):
                again = {"ts": shown + 300 * copy, "event_id": f"i{request}-{item}-{copy}"}
                events.append((shown + 300 * copy, {**event, **at, **again}))
            if rng.random() < 0.4:
                clicked = shown + int(rng.exponential(30_000))
                click = {**event, "event_type": "click", "ts": clicked, "event_id": f"c{request}-{item}"}
                events.append((clicked - int(rng.integers(0, 1_000)), click))
    events.append((START_MS, {"user_id": 1, "event_type": "search", "ts": START_MS, "event_id": "s", "query": "q"}))
    return [json.dumps(row).encode() for _, row in sorted(events, key=lambda each: each[0])], [
        json.dumps(row).encode() for _, row in sorted(log, key=lambda each: each[0])
    ]


def live(behavior: list[bytes], log: list[bytes], *, seed: int) -> pl.DataFrame:
    """What the stream makes of it in many commits, partition 0."""
    rng = np.random.default_rng(seed)
    kept = MemorySamples()
    operator = SampleOperator(RULES, ledger=MemorySampleLedger(kept, partition=0), latest_ms=latest_ms)
    operator.restore(None, committed={})
    at, mark = {BEHAVIOR: 0, INFERENCE: 0}, START_MS
    while at[BEHAVIOR] < len(behavior) or at[INFERENCE] < len(log):
        for topic, values in ((BEHAVIOR, behavior), (INFERENCE, log)):
            some = values[at[topic] : at[topic] + int(rng.integers(0, 60))]
            if some:
                operator.apply(record_batch(topic, 0, some, first_offset=at[topic], timestamp_ms=1))
                at[topic] += len(some)
        read = json.loads(behavior[at[BEHAVIOR] - 1])["ts"] if at[BEHAVIOR] else START_MS
        mark = max(mark, read - 5_000)
        operator.advance(watermark_ms=mark)
        operator.write(None)
        operator.committed()
    operator.advance(watermark_ms=START_MS + 10 * SPAN_MS)
    operator.write(None)
    return pl.concat(kept.store.current())


def history(tmp_path: Path, behavior: list[bytes], log: list[bytes]) -> History:
    """The same records as the history has them, the other partition's beside them."""
    files, manifest = ArrowHistoryFiles(HistoryFilesOptions(uri=str(tmp_path))), MemoryHistoryManifest()
    for partition in (0, 1):
        operator = HistoryOperator(
            files=files,
            manifest=manifest,
            producer=MemoryProducer(MemoryBroker(), max_record_bytes=1 << 20),
            latest_ms=latest_ms,
            options=HistoryOptions(),
        )
        mine = (behavior, log) if partition == 0 else traffic(99)  # the same requests and items, other clicks
        for topic, values in zip((BEHAVIOR, INFERENCE), mine, strict=True):
            operator.apply(record_batch(topic, partition, values, first_offset=0, timestamp_ms=1))
        operator.prepare([operator])
        operator.write(None)
    return History(files, manifest)


def options(**changes: int) -> StitchOptions:
    asked = {"from_ms": START_MS, "to_ms": START_MS + 2 * SPAN_MS, "timeline": Timeline.of(RULES)} | changes
    return StitchOptions(postgres=PostgresOptions(dsn=""), history_uri="", partitions=1, **asked)


def shape(rows: pl.DataFrame) -> list[dict]:
    wanted = (*KEY, "event_time_ms", "user_id", "label", "features", "page_id", "model_version")
    return rows.sort(KEY).select(wanted).rows(named=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_history_stitched_is_what_the_stream_made_however_it_was_cut(tmp_path, seed):
    behavior, log = traffic(seed)
    streamed = live(behavior, log, seed=seed)
    stitched = stitch_partition(history(tmp_path, behavior, log), options(), partition=0)
    assert streamed["revision"].max() > 0, "no click came late, so nothing was corrected"
    assert shape(stitched) == shape(streamed)
    found = compare(
        stitched.select(STITCHED_SCHEMA.names()),
        streamed.with_columns(source_partition=None, source_offset=None).select(
            pl.col(n).cast(t) for n, t in LIVE_SCHEMA.items()
        ),
        Standing(watermark_ms=None, wait_ms=0),
    )
    assert (found.compared, found.equal, found.causes) == (streamed.height, streamed.height, {})


def test_a_range_has_the_impressions_of_its_time_with_all_their_clicks(tmp_path):
    behavior, log = traffic(1)
    past = history(tmp_path, behavior, log)
    whole = stitch_partition(past, options(), partition=0)
    middle = min(ts for ts in whole["event_time_ms"] if ts > START_MS + SPAN_MS // 2)  # after its request was asked
    first = stitch_partition(past, options(to_ms=middle), partition=0)
    second = stitch_partition(past, options(from_ms=middle), partition=0)
    assert shape(pl.concat([first, second])) == shape(whole)
    assert 0 < first.height < whole.height


NOW = START_MS + 1_000_000


def stitched(*rows) -> pl.DataFrame:
    full = [{"item_id": 1, "event_time_ms": START_MS, "label": 0, "labels": '{"click": 0}'} | row for row in rows]
    return pl.DataFrame([{"source_partition": 0, "source_offset": 5} | row for row in full], schema=STITCHED_SCHEMA)


def stored(*rows) -> pl.DataFrame:
    full = [{"item_id": 1, "event_time_ms": START_MS, "label": 0, "labels": '{"click":0}'} | row for row in rows]
    return pl.DataFrame([{"source_partition": 0, "source_offset": 5} | row for row in full], schema=LIVE_SCHEMA)


A, B = {"request_id": "a"}, {"request_id": "b"}
CLICKED = {"label": 1, "labels": '{"click": 1}'}
READ = {"applied": {0: 9}, "written": {0: 9}}
MISSED = READ | {"misses": stitched(B).select(KEY)}
RECORD = pl.DataFrame([("b", 0, 7), ("b", 0, 9), ("a", 0, 1), ("b", 1, 2)], schema=RECORD_SCHEMA, orient="row")
NOT_READ = "a miss: its inference record is not read by the sample stage yet"
TWO = {"applied": {0: 9, 1: 9}, "written": {0: 9, 1: 9}}


@pytest.mark.parametrize(
    ("mine", "theirs", "standing", "kind", "cause"),
    [
        ([A, B], [A], READ, "missing", UNEXPLAINED),
        ([A, B], [A], READ | {"kept_from_ms": START_MS + 1}, "missing", "dropped by retention"),
        ([A, B], [A], READ | {"applied": {0: 5}}, "missing", "not read by the sample stage yet"),
        ([A, B], [A], READ | {"applied": {1: 9}}, "missing", "not read by the sample stage yet"),
        ([A, B], [A], MISSED | {"records": RECORD, "inferred": {0: 7}}, "missing", NOT_READ),
        ([A, B], [A], MISSED | {"records": RECORD}, "missing", NOT_READ),
        ([A, B], [A], MISSED | {"records": RECORD, "inferred": {0: 8}}, "missing", UNEXPLAINED),
        ([A, B], [A], MISSED, "missing", UNEXPLAINED),
        ([A, B], [A], READ | {"sampled_out": stitched(B).select(KEY)}, "missing", "a negative that was not drawn"),
        ([A, B | CLICKED], [A], READ | {"sampled_out": stitched(B).select(KEY)}, "missing", UNEXPLAINED),
        ([A, B], [A], READ | {"watermark_ms": START_MS + 9}, "missing", "still open: its wait is not over"),
        ([A, B], [A], READ | {"watermark_ms": START_MS + 10}, "missing", UNEXPLAINED),
        ([A], [A, B], READ, "extra", UNEXPLAINED),
        ([A], [A, B], READ | {"written": {0: 5}}, "extra", "not in the history yet"),
        ([A], [A, B], READ | {"written": {0: 6}}, "extra", UNEXPLAINED),
        ([A | CLICKED], [A], READ, "label", UNEXPLAINED),
        ([A], [A | {"labels": '{"click": 0, "cart": 1}'}], READ, "label", UNEXPLAINED),
        ([A | CLICKED], [A], READ | {"applied": {0: 8}}, "label", "actions not read by the sample stage yet"),
        ([A], [A | CLICKED], READ | {"written": {0: 8}}, "label", "actions not in the history yet"),
        ([A | CLICKED], [A], TWO | {"applied": {0: 9, 1: 8}}, "label", UNEXPLAINED),
        ([A], [A | CLICKED], TWO | {"written": {0: 9, 1: 8}}, "label", UNEXPLAINED),
        (
            [A | CLICKED],
            [A],
            TWO | {"applied": {0: 9, 1: 8}, "mixed": True},
            "label",
            "actions not read by the sample stage yet",
        ),
    ],
)
def test_a_difference_is_told_with_its_cause(mine, theirs, standing, kind, cause):
    told = Standing(**{"watermark_ms": NOW, "wait_ms": 10} | standing)
    found = compare(stitched(*mine), stored(*theirs), told)
    assert found.causes == {kind: {cause: 1}}
    assert found.unexplained == (cause == UNEXPLAINED)
    assert found.equal == found.compared - 1
    assert [(row["kind"], row["cause"]) for row in found.examples] == [(kind, cause)]
    json.dumps(found.as_dict())
