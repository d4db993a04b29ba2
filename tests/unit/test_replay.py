"""Laws of writing a recorded log into the topics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rtrec_ray.clock import ManualClock, ScaledClock, wall_ms
from rtrec_ray.errors import ConfigInvalid, RecordInvalid, RecordTooLarge, ReplayRefused
from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE
from rtrec_ray.kafka.base import record_batch
from rtrec_ray.kafka.codec import decode
from rtrec_ray.kafka.memory import MemoryBroker
from rtrec_ray.simulate.datasets import open_bandit
from rtrec_ray.simulate.recording import ORDER
from rtrec_ray.simulate.replay import Pace, Plan, ReplayOptions, ReplaySummary, prepare, replay, write
from rtrec_ray.simulate.source import read

START_MS = 1_767_225_600_000
NOW = ManualClock(now_ms=START_MS + 3_600_000)
AS_IT_IS = ReplayOptions()


def event(number: int, *, after_ms: int = 0, **fields: Any) -> dict[str, Any]:
    return {"event_id": f"e{number}", "event_type": "view", "ts": START_MS + after_ms, "user_id": number} | fields


def jsonl(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


def replayed(source: Path | str, options: ReplayOptions = AS_IT_IS, **more: Any) -> tuple[MemoryBroker, ReplaySummary]:
    broker = MemoryBroker(partitions=1)
    return broker, replay(source, broker.producer(), options, clock=more.pop("clock", NOW), **more)


def sent(broker: MemoryBroker, topic: str = BEHAVIOR) -> list[dict[str, Any]]:
    return [json.loads(value or b"") for value in broker.records(topic)]


def test_lines_go_to_the_topic_of_their_fields(tmp_path: Path) -> None:
    inference = {"request_id": "r", "user_id": 1, "ts": START_MS, "model_version": "1", "features": {}}
    profile = {"user_id": 1, "ts": START_MS, "city": "Shanghai"}
    item = {"item_id": 9, "ts": START_MS, "title": "Shoe", "colour": "red"}
    broker, summary = replayed(jsonl(tmp_path / "log.jsonl", event(1), inference, profile, item))
    assert summary.records == {ITEM: 1, PROFILE: 1, INFERENCE: 1, BEHAVIOR: 1}
    assert (sent(broker, INFERENCE), sent(broker, PROFILE), sent(broker, ITEM)) == ([inference], [profile], [item])
    assert (broker.keys(BEHAVIOR), broker.keys(ITEM)) == ([b"1"], [b"9"])


def test_records_are_written_in_event_time_order(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", *(event(n, after_ms=after) for n, after in enumerate([5, 3, 9, 3, 0])))
    broker, _ = replayed(log)
    assert [record["event_id"] for record in sent(broker)] == ["e4", "e1", "e3", "e0", "e2"]


def test_at_one_time_what_others_are_joined_to_comes_first(tmp_path: Path) -> None:
    inference = {"request_id": "r", "user_id": 1, "ts": START_MS, "model_version": "1", "features": {}}
    log = jsonl(
        tmp_path / "log.jsonl", event(1), inference, {"user_id": 1, "ts": START_MS}, {"item_id": 1, "ts": START_MS}
    )
    recording = read(log, latest_ms=START_MS)
    assert [ORDER[number] for number in recording.topic] == [ITEM, PROFILE, INFERENCE, BEHAVIOR]


def test_a_line_without_a_time_stays_behind_the_one_before_it(tmp_path: Path) -> None:
    lines = [b"{first", event(1, after_ms=5), b"{second", event(2, after_ms=100), event(3, after_ms=7)]
    broker, _ = replayed(jsonl(tmp_path / "log.jsonl", *lines))
    wanted = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    assert broker.records(BEHAVIOR) == [wanted[place] for place in (0, 1, 2, 4, 3)]


def test_unknown_fields_and_bytes_are_kept(tmp_path: Path) -> None:
    line = b'{ "event_id":"e", "event_type":"view","ts":1767225600000,"user_id":1, "colour" : "r\xc3\xb6t" }'
    broker, _ = replayed(jsonl(tmp_path / "log.jsonl", line))
    assert broker.records(BEHAVIOR) == [line]


def test_a_bad_line_is_sent_where_it_stood_and_named(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1), b"{broken", event(2, after_ms=9), event(3, after_ms=5, ts="x"))
    broker, summary = replayed(log)
    assert [value for value in broker.records(BEHAVIOR) if value is not None][1] == b"{broken"
    assert (summary.bad, summary.bad_lines) == (2, ("line 2: not_json", "line 4: ts: wrong_type"))
    assert summary.records == {BEHAVIOR: 4}


def test_bad_lines_can_be_left_out_or_refused(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1), b"{broken")
    broker, summary = replayed(log, ReplayOptions(bad_lines="skip"))
    assert (len(sent(broker)), summary.bad) == (1, 1)
    with pytest.raises(RecordInvalid, match="line 2: not_json"):
        replayed(log, ReplayOptions(bad_lines="refuse"))


@pytest.mark.parametrize("ts", [0, 4_070_908_800_000])
def test_a_time_that_cannot_be_holds_nothing_up(tmp_path: Path, ts: int) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1), event(2, ts=ts), event(3, after_ms=1))
    for options in (ReplayOptions(), ReplayOptions(shift_to_now=True), ReplayOptions(pace="clock")):
        broker, summary = replayed(log, options, watermark_ms=START_MS)
        assert [record["event_id"] for record in sent(broker)] == ["e1", "e2", "e3"]
        assert sent(broker)[1]["ts"] == ts
        assert summary.bad == 1


def test_an_older_log_is_refused_by_a_system_that_is_ahead(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1))
    with pytest.raises(ReplayRefused, match="2026-01-01T00:00:00") as refused:
        replayed(log, watermark_ms=START_MS + 1)
    assert "--shift-to-now" in refused.value.mend
    assert replayed(log, watermark_ms=START_MS)[1].records == {BEHAVIOR: 1}


def test_shifting_moves_all_times_alike_and_nothing_else(tmp_path: Path) -> None:
    original = event(7, event_type="click")
    retract = event(2, after_ms=10, event_type="retract", user_id=7, retracts=original, extra=[1])
    broker, summary = replayed(jsonl(tmp_path / "log.jsonl", event(1), retract), ReplayOptions(shift_to_now=True))
    by_ms = NOW.now_ms() - START_MS - 10
    assert summary.shift_ms == by_ms
    first, second = sent(broker)
    assert first == event(1, ts=START_MS + by_ms)
    assert second == retract | {"ts": NOW.now_ms(), "retracts": original | {"ts": START_MS + by_ms}}


def test_shifted_behind_a_living_system_the_log_begins_now_and_waits_for_its_times(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1), event(2, after_ms=600_000))
    clock = ManualClock(now_ms=START_MS)
    plan = prepare(log, ReplayOptions(shift_to_now=True), clock=clock, watermark_ms=START_MS - 5_000)
    assert plan.recording.ts_ms.tolist() == [START_MS, START_MS + 600_000]
    assert plan.pace.due_ms() == START_MS
    clock.advance(600_000)
    assert plan.pace.due_ms() == START_MS + 600_000


def test_nothing_is_written_before_it_is_due(tmp_path: Path) -> None:
    clock = ManualClock(now_ms=START_MS)
    broker = MemoryBroker(partitions=1)
    written_at: list[tuple[int, int]] = []

    def sleep(seconds: float) -> None:
        clock.advance(round(seconds * 1000))

    recording = read(
        jsonl(tmp_path / "log.jsonl", *(event(n, after_ms=100 * n) for n in range(20))), latest_ms=START_MS + 10_000
    )
    plan = Plan(recording=recording, pace=Pace(limits=(clock.now_ms,), sleep=sleep))
    write(plan, broker.producer(), progress=lambda done, total: written_at.append((clock.now_ms() - START_MS, done)))
    assert [done for _, done in written_at] == list(range(1, 21))
    for now_ms, done in written_at:
        assert now_ms == 100 * (done - 1)


def test_the_clock_of_the_system_can_set_the_pace(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1), event(2, after_ms=60_000))
    # An hour of the log in a second of ours.
    fast = ScaledClock(origin_event_ms=START_MS, origin_wall_ms=wall_ms(), speed=3_600.0)
    broker, summary = replayed(log, ReplayOptions(pace="clock"), clock=fast)
    assert len(sent(broker)) == 2
    assert fast.now_ms() >= START_MS + 60_000
    assert summary.bad == 0


def test_speed_is_seconds_of_the_log_per_second(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1), event(2, after_ms=10_000))
    _, summary = replayed(log, ReplayOptions(speed=100.0))
    assert 0.1 <= summary.seconds < 5.0
    with pytest.raises(ConfigInvalid, match="speed 0"):
        replayed(log, ReplayOptions(speed=0.0))


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    log = jsonl(tmp_path / "log.jsonl", *(event(n, after_ms=n) for n in range(5_000)))
    replayed(log, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (5_000, 5_000)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("content", [b"", b"\n\n", b"not json\n", b"a,b\n1,2\n"])
def test_a_file_that_is_no_log_is_refused_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(ConfigInvalid):
        replayed(tmp_path / "log.jsonl")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no-such"):
        replayed(tmp_path / "no-such.jsonl")
    with pytest.raises(ConfigInvalid, match=r"no \.jsonl"):
        replayed(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR?")
    with pytest.raises(ConfigInvalid, match="no readable Parquet"):
        replayed(tmp_path / "x.parquet")


def test_a_record_that_kafka_would_refuse_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "log.jsonl", event(1), event(2, after_ms=1, query="x" * (5 << 20)))
    broker = MemoryBroker(partitions=1)
    with pytest.raises(RecordTooLarge, match=r"log\.jsonl"):
        replay(log, broker.producer(), ReplayOptions(), clock=NOW)
    assert broker.records(BEHAVIOR) == []


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    lines = b"\r\n".join(json.dumps(event(n)).encode() for n in range(2))
    (tmp_path / "log.jsonl").write_bytes(b"\xef\xbb\xbf" + lines + b"\r\n")
    assert replayed(tmp_path / "log.jsonl")[1].bad == 0


def test_parquet_columns_become_the_same_records_as_lines(tmp_path: Path) -> None:
    events = [event(1, item_id=3, item_type="ad"), event(2, after_ms=5, query="shoe"), event(3, after_ms=7)]
    pl.DataFrame(events).with_columns(pl.from_epoch("ts", "ms")).write_parquet(tmp_path / "log.parquet")
    from_columns, _ = replayed(tmp_path / "log.parquet")
    from_lines, _ = replayed(jsonl(tmp_path / "log.jsonl", *events))
    frames = [
        decode(record_batch(BEHAVIOR, 0, broker.records(BEHAVIOR)), latest_ms=lambda _wall_ms: 2**62).frame
        for broker in (from_columns, from_lines)
    ]
    assert frames[0].equals(frames[1])


def test_nested_parquet_columns_become_objects(tmp_path: Path) -> None:
    record = {
        "request_id": "r", "user_id": 1, "ts": START_MS, "model_version": "1", "features": {"a": 1, "ids": [1, 2]},
        "items": [{"item_id": 1, "position": 1, "score": 0.5}],
    }  # fmt: skip
    pl.DataFrame([record]).write_parquet(tmp_path / "log.parquet")
    broker, _ = replayed(tmp_path / "log.parquet")
    assert sent(broker, INFERENCE) == [record]


def test_a_folder_is_one_log(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", event(2, after_ms=2), event(0))
    raw = [json.dumps(event(1, after_ms=1)).encode()]
    pl.DataFrame({"raw": pl.Series(raw, dtype=pl.Binary), "offset": [4]}).write_parquet(tmp_path / "b.parquet")
    broker, _ = replayed(tmp_path)
    assert [record["event_id"] for record in sent(broker)] == ["e0", "e1", "e2"]


def test_parquet_without_what_a_record_needs_names_the_column(tmp_path: Path) -> None:
    pl.DataFrame({"event_type": ["view"], "user_id": [1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ConfigInvalid, match="no column ts"):
        replayed(tmp_path / "log.parquet")


def test_the_open_bandit_log_replays_whole_and_alike_each_time(tmp_path: Path) -> None:
    broker, summary = replayed("open-bandit")
    assert summary.records == {ITEM: 160, INFERENCE: 60_000, BEHAVIOR: 60_287}
    assert (summary.bad, summary.shift_ms) == (0, 0)
    open_bandit.load().write_parquet(tmp_path / "any-name.parquet")
    again, _ = replayed(tmp_path / "any-name.parquet")
    assert again.records(BEHAVIOR) == broker.records(BEHAVIOR)
    assert again.records(INFERENCE) == broker.records(INFERENCE)
    times = [record["ts"] for record in sent(broker)]
    assert times == sorted(times)


def test_an_inference_record_is_written_before_its_impression() -> None:
    recording = read("open-bandit", latest_ms=2**62)
    place = {value: index for index, value in enumerate(recording.values)}
    events = [json.loads(value) for value in recording.values]
    asked = {
        record["request_id"]: place[value]
        for value, record in zip(recording.values, events, strict=True)
        if "features" in record
    }
    shown = {
        record["request_id"]: place[value]
        for value, record in zip(recording.values, events, strict=True)
        if record.get("event_type") == "impression"
    }
    assert all(asked[request] < index for request, index in shown.items())
