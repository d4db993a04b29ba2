"""The demonstration in the world: what is claimed of a run follows from what was observed, and from nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from configs.settings import load_settings
from rtrec_ray.demo.record import TimeLine, VersionFacts
from rtrec_ray.demo.world.figures import summary
from rtrec_ray.demo.world.options import WorldDemoOptions, world_settings
from rtrec_ray.demo.world.record import Asking, WorldRecord, read_record, write_record
from rtrec_ray.demo.world.report import findings, to_html, write_report
from rtrec_ray.demo.world.verify import Evidence, Stored, checks, settled
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.samples.file import load_definition
from rtrec_ray.simulate.replay import ReplaySummary
from rtrec_ray.simulate.world.experiment import MIDNIGHT_MS, Schedule
from rtrec_ray.simulate.world.live import Answered
from rtrec_ray.simulate.world.worth import Slate, Worth

SPEED = 60.0
SCHEDULE = Schedule(minutes=4.0)
TIME = TimeLine(clock_s=10.0, event_ms=MIDNIGHT_MS, speed=SPEED)
LOSSES = {"static": 0.2, "features": 0.1, "training": 0.04}


def asking(arm: str, at_s: float, *, lost: float, user: int = 1, **more) -> Asking:
    answered = Answered(
        at_s=at_s,
        latency_ms=10.0 + user,
        status=200,
        user_id=user,
        ts_ms=MIDNIGHT_MS + round(at_s * 1_000 * SPEED),
        version="7",
        feature_age_ms=60_000,
        model_age_ms=600_000,
        slate=Slate(user_id=user, page_id=100, intent=1, ts_ms=0, items=(2001, 2002, 2003, 2004, 2005)),
        clicks=1,
    )
    worth = Worth(probability=0.3 - lost, regret=lost, random=0.05)
    return Asking(at_s=10.0 + at_s, arm=arm, answered=replace(answered, **more), worth=worth)


def record(losses=LOSSES, *, drifting=True, seconds=range(240)) -> WorldRecord:
    """A run in which each arm loses the same before the first drift, and afterwards what `losses` says."""
    live = replace(SCHEDULE, drifting=drifting)
    asked = tuple(
        asking(arm, float(second), lost=0.02 if second < 40 else lost, user=1 + second % 50)
        for second in seconds
        for arm, lost in losses.items()
    )
    return WorldRecord(
        seed=0,
        minutes=live.minutes,
        began_ms=1_767_225_600_000,
        seconds=300.0,
        time=TIME,
        live_ms=(live.from_ms, live.to_ms),
        counted_from_ms=live.from_ms + 600_000,
        drifts=live.drifts,
        first_drift_ms=live.first_drift_ms,
        asked=asked,
        checks=checks(evidence()),
        counts=evidence().counts(),
    )


def evidence(**changes) -> Evidence:
    """What is found after a run without a fault."""
    stored = Stored(
        samples=1_050,
        positives=90,
        realtime={("static", "off"): 3, ("features", "on"): 4, ("training", "on"): 3},
        versions={"static": 1, "features": 1, "training": 5},
        history={"behavior": 1_300},
    )
    version = VersionFacts(version="1", kind="base", family="dcn", generated_s=1.0, outcome="validated", online_s=2.0)
    yesterday = ReplaySummary(
        records={"behavior": 1_200, "inference-log": 200},
        first_ts_ms=None,
        last_ts_ms=None,
        shift_ms=0,
        bad=0,
        bad_lines=(),
        seconds=1.0,
    )
    found = Evidence(
        yesterday=yesterday,
        shown_yesterday=1_000,
        stored=stored,
        sent={"impression": 50, "click": 50},
        asked=[asking("static", 1.0, lost=0.0)],
        versions=[version],
    )
    return replace(found, **changes)


def test_the_object_says_what_each_arm_lost_before_and_after():
    found = summary(record())
    assert set(found["arms"]) == set(LOSSES)
    for arm, lost in LOSSES.items():
        assert found["arms"][arm]["regret_before"] == pytest.approx(0.02)
        assert found["arms"][arm]["regret_after"] == pytest.approx(lost)
        low, high = found["arms"][arm]["regret_ci"]
        assert low <= lost + 1e-9
        assert high >= lost - 1e-9
    assert found["training_over_static"] == pytest.approx(0.2)
    assert found["best_possible"]["ctr_after"] == pytest.approx(0.3)
    assert [drift["kind"] for drift in found["drifts"]] == ["trend", "parting", "new_items"]
    assert found["freshness_ms"]["feature_p50"] == pytest.approx(1_000.0)
    assert found["freshness_ms"]["model_p50"] == pytest.approx(10_000.0)


def test_the_warm_up_counts_for_nothing():
    seen = record().observed()
    assert seen["ts_ms"].min() == MIDNIGHT_MS + 600_000
    assert seen.height == 3 * 230


def test_requests_without_an_answer_count_for_no_arm():
    run = record(seconds=range(20, 60))
    failed = replace(run, asked=(*run.asked, asking("static", 30.0, lost=0.9, status=0, slate=None)))
    assert failed.observed().equals(run.observed())
    assert summary(failed)["latency_ms"] == summary(run)["latency_ms"]


def test_a_difference_is_claimed_only_where_the_intervals_do_not_touch():
    apart = [line["text"] for line in findings(summary(record()))]
    assert "the intervals do not touch" in apart[1]
    assert "the intervals do not touch" in apart[2]
    alike = [line["text"] for line in findings(summary(record({"static": 0.1, "features": 0.1, "training": 0.1})))]
    assert "the intervals overlap" in alike[1]
    assert "the intervals overlap" in alike[2]


def test_without_drift_the_report_claims_no_loss():
    (line,) = findings(summary(record({"static": 0.05, "features": 0.02, "training": 0.02}, drifting=False)))
    assert line["claim"] == "Nothing drifted."
    assert "no difference that this run could show" in line["text"]


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = to_html(record())
    assert re.findall(r"<script|<link|<img|src=|https?://(?!www\.w3\.org)", page) == []
    for drawn in ("Click rate of each arm", "Regret of each arm", "Freshness of features"):
        assert f'aria-label="{drawn}' in page
    assert write_report(record(), tmp_path).read_text() == page
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "record.json"}


def test_a_record_that_is_kept_comes_back_whole(tmp_path):
    write_record(tmp_path / "record.json", record())
    assert read_record(tmp_path / "record.json") == record()


def test_a_run_without_a_fault_passes_every_check():
    assert [check.ok for check in checks(evidence())] == [True] * 6
    assert settled(evidence())


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("serving", {"asked": [asking("static", 1.0, lost=0.0, status=500)]}),
        ("samples", {"stored": {"samples": 1_049}}),
        ("samples", {"stored": {"samples": 1_051}}),
        ("samples", {"stored": {"misses": 1}}),
        ("history", {"stored": {"history": {"behavior": 1_299}}}),
        ("history", {"stored": {"history": {"behavior": 1_301}}}),
        ("arms", {"stored": {"realtime": {("static", "on"): 3, ("features", "on"): 4}}}),
        ("arms", {"stored": {"realtime": {("static", "off"): 3, ("features", "off"): 4}}}),
        ("arms", {"stored": {"realtime": {(None, "on"): 3}}}),
        ("arms", {"stored": {"versions": {"static": 2, "features": 1, "training": 5}}}),
        ("arms", {"stored": {"versions": {"static": 1, "features": 1, "training": 1}}}),
        ("models", {"versions": []}),
        ("models", {"versions": [{"outcome": ""}]}),
    ],
)
def test_each_fault_fails_its_own_check_and_no_other(stage, changes):
    sound = evidence()
    if "stored" in changes:
        changes = {"stored": replace(sound.stored, **changes["stored"])}
    if changes.get("versions"):
        changes = {"versions": [replace(sound.versions[0], **changes["versions"][0])]}
    failed = [check.stage for check in checks(replace(sound, **changes)) if not check.ok]
    assert failed == [stage]


def test_a_degraded_answer_may_be_without_real_time_features():
    sound = evidence()
    realtime = {**sound.stored.realtime, ("features", "off"): 1}
    seen = replace(sound, stored=replace(sound.stored, realtime=realtime))
    assert [check.stage for check in checks(seen) if not check.ok] == ["arms"]
    excused = [*seen.asked, asking("features", 2.0, lost=0.0, degraded=("store_unavailable",))]
    assert [check.stage for check in checks(replace(seen, asked=excused)) if not check.ok] == []


def test_the_experiment_has_its_clock_arms_and_labels(tmp_path):
    settings = world_settings(load_settings(), WorldDemoOptions(out=tmp_path), tmp_path)
    assert (settings.clock.origin_event_ms, settings.clock.speed) == (MIDNIGHT_MS, Schedule().speed)
    arms = settings.serving.arms
    assert {name: (arm.model, arm.realtime) for name, arm in arms.items()} == {
        "static": ("base", False),
        "features": ("base", True),
        "training": ("champion", True),
    }
    assert load_definition(Path(str(settings.definitions.samples))).emit == "on_close"
    with pytest.raises(ConfigInvalid, match="not 0"):
        world_settings(load_settings(), WorldDemoOptions(out=tmp_path, schedule=Schedule(minutes=0.5)), tmp_path)
