"""The report: one record in, a page and an object out."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from rtrec_ray.demo.charts.axes import spread
from rtrec_ray.demo.charts.svg import PALETTE
from rtrec_ray.demo.record import Check, Moment, Phase, ProgressPoint, StageMoment, TimeLine, VersionFacts
from rtrec_ray.demo.replay.charts import charts
from rtrec_ray.demo.replay.figures import Progressive, constant_loss, progressive, summary, switches
from rtrec_ray.demo.replay.record import Call, DemoRecord, LiveFacts, LogFacts, read_record, write_record
from rtrec_ray.demo.replay.report import to_html, write_report

DAY_MS = 86_400_000
LOG = LogFacts(
    source="open-bandit", impressions=60_000, clicks=287, users=337, items=160, first_ms=DAY_MS, last_ms=3 * DAY_MS
)
TIME = TimeLine(clock_s=5.0, event_ms=DAY_MS, speed=2_000.0)


def moment(at_s: float) -> Moment:
    on_log = int(600 * at_s)
    stage = StageMoment(applied=on_log - 20, watermark_ms=TIME.event_at(at_s) - 500_000, counts={"in": on_log})
    return Moment(
        at_s=at_s,
        clock_ms=TIME.event_at(at_s),
        on_log=on_log,
        stages={"features": stage, "samples": stage, "history": replace(stage, applied=on_log // 2)},
    )


def point(index: int, *, better: float = 0.001) -> ProgressPoint:
    return ProgressPoint(
        at_s=50.0 + index,
        event_time_ms=TIME.event_at(50.0 + index),
        rows=400,
        positives=2,
        log_loss=0.030 - better,
        base_log_loss=0.030,
        base="1",
    )


@pytest.fixture
def record() -> DemoRecord:
    answers = [("none", ("no_model",))] * 3 + [("1", ())] * 3 + [("2", ())] * 3
    return DemoRecord(
        seed=7,
        minutes=1.5,
        began_ms=1_700_000_000_000,
        seconds=100.0,
        log=LOG,
        time=TIME,
        phases=(Phase(name="starting", start_s=0, end_s=10), Phase(name="the log", start_s=10, end_s=100)),
        moments=tuple(map(moment, range(10, 100, 10))),
        progress=tuple(map(point, range(20))),
        versions=(
            VersionFacts(
                version="1", kind="base", family="dcn", generated_s=40.0, outcome="validated", decided_s=45.0,
                online_s=46.0, offline_s=70.0, rows=900,
            ),
            VersionFacts(
                version="2", kind="increment", family="dcn", parent="1", generated_s=65.0, outcome="validated",
                decided_s=68.0, online_s=70.0,
            ),
            VersionFacts(
                version="3", kind="increment", family="dcn", parent="2", generated_s=80.0, outcome="rejected",
                decided_s=82.0, reason="its log loss is <above> that of the champion",
            ),
        ),
        calls=tuple(
            Call(at_s=10.0 * index, latency_ms=5.0 + index, status=200, version=version, degraded=lacks,
                 feature_age_ms=4_000_000, model_age_ms=None if lacks else 8_000_000)
            for index, (version, lacks) in enumerate(answers)
        ),
        live=LiveFacts(requests=9, impressions=27, clicks=1, accepted=28),
        checks=(Check(stage="samples", claim="all there", ok=True, figure="60,000 samples"),),
        base_rates={"1": 0.005},
        counts={"samples_log": 60_000, "positives_log": 287},
    )  # fmt: skip


class Page(HTMLParser):
    """What a page refers to, which elements it has, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_but_itself(record):
    page = Page(to_html(record))
    assert "script" not in page.tags
    assert [address for address in page.addresses if not address.startswith("#")] == []
    assert "@import" not in to_html(record)
    assert not re.search(r"url\((?!#)", to_html(record))


def test_every_chart_takes_its_colours_and_font_from_the_page(record):
    drawn = charts(record)
    assert all(drawn.values())
    for name, svg in drawn.items():
        assert "DejaVu" not in svg, name
        assert not any(colour in svg for colour in PALETTE.values()), name
        assert re.findall(r"(?:fill|stroke): (#\w+)", svg) == [], name
        assert "<style" not in svg
        assert "viewBox" in svg
        assert not re.search(r"<svg[^>]* width=", svg)


def test_the_page_says_what_failed_and_why_a_version_was_rejected(record):
    failed = replace(record, checks=(*record.checks, Check(stage="history", claim="whole", ok=False, figure="1 < 2")))
    page = Page(to_html(failed))
    assert "1 of 2 checks failed" in page.text
    assert "1 < 2" in page.text
    assert "its log loss is <above> that of the champion" in page.text
    assert not failed.ok
    assert "checks failed" not in Page(to_html(record)).text


def test_a_run_that_saw_nothing_still_has_a_page(record):
    bare = DemoRecord(seed=0, minutes=5.0, began_ms=0, seconds=3.0, log=LOG, time=TIME)
    assert "No model version went online" in Page(to_html(bare)).text
    assert not bare.ok
    assert summary(bare)["latency_ms"]["recommend_p50"] is None


def test_the_object_has_what_programs_read(record, tmp_path):
    page = write_report(record, tmp_path / "out")
    found = json.loads((page.parent / "report.json").read_bytes())
    assert found["ok"] is True
    assert (found["seed"], found["seconds"], found["speed"]) == (7, 100.0, 2_000.0)
    assert found["counts"]["positives_log"] == 287
    assert [version["outcome"] for version in found["versions"]] == ["validated", "validated", "rejected"]
    assert found["latency_ms"]["recommend_p50"] == 9.0
    assert found["freshness_ms"]["feature_p50"] == 2_000.0
    assert found["freshness_ms"]["model_p50"] == 4_000.0
    assert found["progressive"]["positives"] == 40


def test_a_record_that_was_kept_gives_the_same_page(record, tmp_path):
    write_record(tmp_path / "record.json", record)
    kept = read_record(tmp_path / "record.json")
    assert kept == record
    assert to_html(kept) == to_html(record)


def test_a_constant_that_predicts_the_rate_loses_the_entropy():
    loss = constant_loss(np.array([1_000.0]), np.array([100.0]), rate=0.1)
    assert loss[0] == pytest.approx(-(0.1 * np.log(0.1) + 0.9 * np.log(0.9)))
    assert np.isfinite(constant_loss(np.array([10.0]), np.array([1.0]), rate=0.0))


def test_the_running_mean_weighs_by_samples_and_ends_at_the_whole():
    rows = np.array([100.0, 300.0])
    losses = np.array([0.4, 0.2])
    zeros = np.zeros(2)
    found = Progressive(
        version="1",
        rate=0.1,
        at_s=zeros,
        event_time_ms=zeros,
        rows=rows,
        positives=zeros,
        current=losses,
        base=losses,
        constant=zeros,
    )
    assert found.running(losses).tolist() == pytest.approx([0.4, 0.25])
    assert found.saved(losses).tolist() == pytest.approx([-40.0, -100.0])


def test_a_difference_counts_only_when_its_interval_leaves_out_zero(record):
    clear = progressive(record)
    assert clear.difference(clear.current, clear.base).settled
    few = progressive(replace(record, progress=record.progress[:5]))
    assert few.difference(few.current, few.base).low is None
    noise = replace(record, progress=tuple(point(i, better=0.001 * (-1) ** i) for i in range(20)))
    unclear = progressive(noise)
    assert not unclear.difference(unclear.current, unclear.base).settled


def test_points_without_a_score_are_left_out(record):
    unscored = replace(record.progress[0], log_loss=None)
    assert len(progressive(replace(record, progress=(unscored, *record.progress[1:]))).rows) == 19
    assert progressive(replace(record, progress=(unscored,))) is None


def test_a_failed_call_is_no_change_of_the_model(record):
    broken = Call(at_s=45.0, latency_ms=1.0, status=503)
    assert [call.version for call in switches((*record.calls[:5], broken, *record.calls[5:]))] == ["1", "2"]


@pytest.mark.parametrize("wanted", [[0.5], [0.0, 0.0, 0.0], [0.1, 0.9, 0.11, 0.5, 0.52], [0.0, 0.09, 0.18, 0.27]])
def test_labels_keep_their_order_and_their_distance(wanted):
    placed = spread(wanted, apart=0.1)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gaps = np.diff([placed[index] for index in order])
    assert (gaps >= 0.1 - 1e-9).all()


def test_event_time_and_wall_time_are_one_line():
    for at_s in (0.0, 5.0, 77.5):
        assert TIME.at_s(TIME.event_at(at_s)) == pytest.approx(at_s)
