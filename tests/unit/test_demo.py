"""What the demonstration claims, and what it tells while it runs."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from configs.settings import load_settings
from rtrec_ray.cli.main import main
from rtrec_ray.clock import monotonic_s
from rtrec_ray.demo.background import Background, wait_until
from rtrec_ray.demo.directory import empty
from rtrec_ray.demo.lineage import version_facts
from rtrec_ray.demo.record import Moment, StageMoment, TimeLine, VersionFacts
from rtrec_ray.demo.replay.log import load_log
from rtrec_ray.demo.replay.news import News
from rtrec_ray.demo.replay.options import DemoOptions, ShowOptions, compressed, roomy
from rtrec_ray.demo.replay.record import Call, LiveFacts, LogFacts, SpotFacts
from rtrec_ray.demo.replay.verify import Evidence, Stored, checks, settled
from rtrec_ray.demo.screen import Screen
from rtrec_ray.demo.timeline import Seen
from rtrec_ray.errors import ConfigInvalid, DemoFailed, DirectoryUnusable
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.features.file import load_definitions
from rtrec_ray.notification import MODEL_DEPLOYED, MODEL_GENERATED, MODEL_REJECTED, MODEL_VALIDATED, Event
from rtrec_ray.registry.base import Draft, ModelVersion

TIME = TimeLine(clock_s=0.0, event_ms=0, speed=1_000.0)
LOG = LogFacts(source="x", impressions=100, clicks=2, users=5, items=9, first_ms=0, last_ms=3 * 86_400_000)
LIVE = LiveFacts(requests=4, impressions=12, clicks=1, accepted=13)
SPOT = SpotFacts(view="user_browse_5m", key="1", as_of_ms=300_000, found='{"click":1}', expected='{"click":1}')


def call(version: str, status: int = 200) -> Call:
    return Call(at_s=1.0, latency_ms=5.0, status=status, version=version)


@pytest.fixture
def good() -> Evidence:
    stage = StageMoment(applied=115, watermark_ms=0, counts={"in": 115})
    online = VersionFacts(
        version="1", kind="base", family="dcn", generated_s=1.0, outcome="validated", decided_s=2.0, online_s=3.0
    )
    return Evidence(
        log=LOG,
        live=LIVE,
        calls=[call("none"), call("1"), call("2"), call("2")],
        last=Moment(at_s=9.0, clock_ms=9_000, on_log=115, stages={"features": stage}),
        stored=Stored(
            samples_log=100,
            positives_log=2,
            samples_live=12,
            positives_live=1,
            joined_samples=12,
            joined_requests=4,
            joined_versions=frozenset({"none", "1", "2"}),
            history={BEHAVIOR: 115, INFERENCE: 104},
            history_files=3,
        ),
        versions=[online, replace(online, version="2", kind="increment")],
        spots=[SPOT, replace(SPOT, found="", expected="", skipped="status 410")],
    )


def failing(evidence: Evidence) -> list[str]:
    return [check.stage for check in checks(evidence) if not check.ok]


def test_a_whole_run_passes_every_check(good):
    assert failing(good) == []
    assert settled(good.stored, good.log, good.live)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("input", {"last": Moment(at_s=9.0, clock_ms=0, on_log=114)}),
        ("features", {"spots": []}),
        ("features", {"spots": [SPOT, replace(SPOT, found="null")]}),
        ("features", {"spots": [replace(SPOT, skipped="live clicks")]}),
        ("training", {"versions": []}),
        ("serving", {"calls": [call("none"), call("1")]}),
        ("serving", {"live": replace(LIVE, failed=1)}),
    ],
)
def test_a_stage_that_did_not_do_its_work_fails_its_check(good, stage, change):
    assert stage in failing(replace(good, **change))


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("samples", {"samples_log": 99}),
        ("samples", {"samples_log": 101}),
        ("samples", {"positives_log": 3}),
        ("samples", {"samples_live": 11}),
        ("samples", {"positives_live": 0}),
        ("inference log", {"joined_samples": 11}),
        ("inference log", {"joined_versions": frozenset({"9"})}),
        ("history", {"history": {BEHAVIOR: 116, INFERENCE: 104}}),
        ("history", {"history": {BEHAVIOR: 115}}),
        ("outcomes", {"misses": 1}),
    ],
)
def test_a_store_that_holds_one_row_too_few_or_too_many_fails_its_check(good, stage, change):
    assert stage in failing(replace(good, stored=replace(good.stored, **change)))


@pytest.mark.parametrize(("more", "fails"), [(0, False), (2, False), (3, True)])
def test_an_event_without_an_answer_may_be_there_or_not_but_only_once(good, more, fails):
    stored = replace(
        good.stored,
        samples_live=good.stored.samples_live + more,
        joined_samples=good.stored.joined_samples + more,
        history={BEHAVIOR: 115 + more, INFERENCE: 104},
    )
    live = replace(good.live, unknown=2)
    seen = replace(good, live=live, stored=stored, last=replace(good.last, on_log=115 + more))
    assert failing(seen) == (["input", "samples"] if fails else [])


def test_a_version_that_went_online_unexamined_fails_the_check(good):
    assert failing(replace(good, versions=[replace(good.versions[0], outcome=""), good.versions[1]])) == ["validation"]


def test_a_run_is_not_settled_before_the_last_file_is_written(good):
    assert not settled(replace(good.stored, history={BEHAVIOR: 114}), good.log, good.live)
    assert not settled(replace(good.stored, samples_live=11), good.log, good.live)


def event(offset: int, kind: str, version: str, *, at_s: float, **context: str) -> Event:
    return Event(
        offset=offset,
        key="model",
        value=version,
        type=kind,
        namespace="default",
        sender="",
        version=offset,
        time_ms=TIME.event_at(at_s),
        context=context,
    )


def version(number: str, *, kind: str = "increment", parent: str | None = None) -> ModelVersion:
    draft = Draft(kind=kind, model="dcn", from_seq=1, to_seq=10, trained_to_ms=5, created_ms=0, parent=parent)
    return ModelVersion(version=number, run_id=f"run{number}", status="generated", draft=draft)


def test_the_events_tell_what_became_of_each_version():
    events = [
        event(1, MODEL_GENERATED, "9", at_s=1),
        event(2, MODEL_VALIDATED, "9", at_s=2),
        event(3, MODEL_DEPLOYED, "9", at_s=3),
        event(4, MODEL_GENERATED, "10", at_s=4),
        event(5, MODEL_REJECTED, "10", at_s=5, reason="too bold"),
        event(6, MODEL_GENERATED, "11", at_s=6),
        event(7, MODEL_VALIDATED, "11", at_s=7),
        event(8, MODEL_DEPLOYED, "11", at_s=8),
        event(9, MODEL_DEPLOYED, "11", at_s=9),  # a second replica
        event(10, MODEL_DEPLOYED, "77", at_s=9),  # not in the registry
    ]
    facts = version_facts(events, [version("11"), version("10"), version("9", kind="base"), version("12")], TIME)
    assert [fact.version for fact in facts] == ["9", "10", "11", "12"]
    assert [(fact.online_s, fact.offline_s) for fact in facts] == [(3.0, 8.0), (None, None), (8.0, None), (None, None)]
    assert [fact.outcome for fact in facts] == ["validated", "rejected", "validated", ""]
    assert facts[1].reason == "too bold"
    assert facts[0].rows == 10


def test_news_are_told_once():
    news = News(LOG, lambda: [call("1")])
    stage = StageMoment(applied=5)
    first = Seen(
        moment=Moment(at_s=1.0, clock_ms=1_000, on_log=6, stages={"features": stage}),
        events=[event(1, MODEL_VALIDATED, "4", at_s=1)],
    )
    lines = news.lines(first)
    assert len(lines) == 2
    assert "v4: validated" in lines[1]
    assert news.lines(replace(first, events=[])) == []
    later = replace(first, moment=replace(first.moment, clock_ms=86_400_000), events=[])
    assert [line[:16] for line in news.lines(later)] == ["Thu 1 Jan is ove"]
    assert news.lines(later) == []


def test_waiting_ends_by_the_deadline_and_says_what_did_not_happen():
    with pytest.raises(DemoFailed, match="it never came within 0 s") as failed:
        wait_until(lambda: False, timeout_s=0.0, what="it never came", mend="look there")
    assert failed.value.mend == "look there"


def test_waiting_notices_a_failure_in_the_background(eventually):
    def work() -> None:
        raise ConfigInvalid("broken")

    background = Background(work, name="broken")
    background.start()
    eventually(background.done)
    with pytest.raises(ConfigInvalid, match="broken"):
        wait_until(lambda: False, timeout_s=5.0, what="never", mend="", checked=[background.check])


def test_the_week_passes_in_the_minutes_asked_for():
    log = load_log()
    options = DemoOptions(out=Path("x"), show=ShowOptions(minutes=5.0), lead_s=10.0, publish_every_s=7.0)
    settings = compressed(load_settings(), log.facts, options)
    span_ms = log.facts.last_ms - log.facts.first_ms
    assert settings.clock.speed * 300_000 == pytest.approx(span_ms)
    assert settings.clock.origin_event_ms == log.facts.first_ms - round(10_000 * settings.clock.speed)
    assert settings.training.publish_every_s == 7.0
    with pytest.raises(ConfigInvalid, match=r"not 0\.01 minutes"):
        compressed(load_settings(), log.facts, replace(options, show=ShowOptions(minutes=0.01)))


def test_only_a_directory_of_reports_is_emptied(tmp_path):
    default = tmp_path / "out" / "demo"
    empty(default)
    (default / "old").mkdir()
    (default / "old" / "file").write_text("x")
    empty(default)
    assert list(default.iterdir()) == []
    mine = tmp_path / "documents"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(DirectoryUnusable):
        empty(mine)
    assert (mine / "thesis.txt").exists()
    (mine / "report.json").write_text("{}")
    empty(mine)
    assert list(mine.iterdir()) == []


def test_foreign_words_go_into_the_log_and_ours_to_the_terminal(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from rtrec_ray.demo.streams import set_aside\n"
        "print('before')\n"
        "with set_aside(Path(sys.argv[1]) / 'logs' / 'x.log') as (out, err):\n"
        "    print('ray says'); os.write(2, b'tensorflow says'); out.write('ours\\n')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "ours", "after"]
    assert done.stderr == ""
    log = (tmp_path / "logs" / "x.log").read_text()
    assert "ray says" in log
    assert "tensorflow says" in log


def test_the_packaged_definitions_keep_tiles_long_enough_to_be_read(tmp_path):
    packaged = Path(__file__).parents[2] / "configs" / "features.yaml"
    own = tmp_path / "features.yaml"
    own.write_text(roomy(packaged.read_text(), speed=2_000.0))
    assert load_definitions(own).retention_ms == 2_000 * 60_000
    assert load_definitions(own).views == load_definitions(packaged).views
    assert roomy(packaged.read_text(), speed=1.0) == packaged.read_text()


@pytest.mark.parametrize(("shortest_s", "kept"), [(0.0, ["starting"]), (60.0, [])])
def test_the_screen_keeps_the_phases_that_took_time(shortest_s, kept):
    console = Console(file=io.StringIO(), width=40)
    with Screen(console, began_s=monotonic_s() - 65.0, shortest_s=shortest_s) as screen, screen.phase("starting"):
        screen.say("[red] and a line that is longer than the terminal is wide")
    assert [phase.name for phase in screen.phases] == kept
    assert " 1:05  [red] and a line that is longer than the terminal is wide\n" in console.file.getvalue()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--minutes", "0.5"], "not 0.5 minutes"),
        (["--source", "open-bandit", "--null"], "--null is for the world"),
        ([], "no report of ours"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line_before_anything_starts(tmp_path, capsys, words, told):
    out = tmp_path / "documents"
    out.mkdir()
    if not words:
        (out / "thesis.txt").write_text("x")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(out), *words])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert len(lines) == 1
    assert told in lines[0]
