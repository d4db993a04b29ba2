"""Static features as a user has them: by the system's workflow when a day is over, and by hand when something comes
late.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rtrec_ray.events import BEHAVIOR
from rtrec_ray.features.daily import DAY_MS, start_ms
from rtrec_ray.kafka.base import KafkaOptions
from rtrec_ray.kafka.connect import connect_producer
from tests.conftest import Eventually
from tests.daily_events import Event, day, event, plain_counts, plain_values, random_events
from tests.e2e.commands import ROOT, Installation

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow]

CONFIG = """
pipeline: {history_commit_s: 1.0}
"""
LAST = day(1)


def as_sent(each: Event) -> bytes:
    """The event as a producer writes it."""
    record = {name: value for name, value in each.items() if value is not None}
    return json.dumps(record | ({"retracts": json.loads(each["retracts"])} if "retracts" in each else {})).encode()


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return random_events(2_000, days=3)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> Any:
    directory = tmp_path_factory.mktemp("daily")
    config, log = directory / "rtrec.yaml", directory / "log.jsonl"
    config.write_text(CONFIG)
    log.write_bytes(b"\n".join(map(as_sent, events)))
    made = Installation(directory / "data", config=config)
    made.run("up", "--only", "kafka,postgres,ray,pipeline", "--detach")
    made.run("replay", str(log))
    yield made
    made.end()


def read(installation: Any, events: list[Event], *more: str) -> Any:
    """What `features get` says of every item of the events."""
    items = sorted({each["item_id"] for each in events if each.get("item_id") is not None})
    return installation.json("features", "get", "daily_item", *map(str, items), *more)


def expected(events: list[Event]) -> dict[str, Any]:
    values = plain_values(plain_counts(events), as_of_day=LAST)
    items = sorted({each["item_id"] for each in events if each.get("item_id") is not None})
    return {str(item): values.get(("item", item)) for item in items}


def runs_of_the_rule(installation: Any) -> int:
    """How many runs there were, once all that the rule began have succeeded; 0 before."""
    answer = installation.json("workflow", "why", "features/daily")
    told = [each["type"] for each in installation.json("events", "list", "--key", "daily")["events"]]
    runs = len(told) // 2
    ended = answer["state"] == "succeeded" and told == ["JOB_STARTED", "JOB_SUCCEEDED"] * runs
    return runs if ended and 1 <= runs <= answer["rules"][0]["met"] else 0


def send(installation: Any, late: Event, eventually: Eventually) -> None:
    """Let an event come; returns when the history has it."""
    status = installation.json("status")
    with closing(connect_producer(KafkaOptions(bootstrap=status["kafka"]["bootstrap"]))) as producer:
        producer.send(BEHAVIOR, key=str(late["user_id"]).encode(), value=as_sent(late))
        producer.flush()
    kept = status["stages"]["history"]["out"]
    eventually(lambda: installation.json("status")["stages"]["history"]["out"] == kept + 1, what="kept late")


def test_values_come_by_themselves_when_a_day_is_over_and_are_corrected_by_hand(
    installation: Any, events: list[Event], eventually: Eventually
) -> None:
    end_ms = start_ms(LAST) + DAY_MS
    eventually(lambda: read(installation, events)["as_of_ms"] == end_ms, what="a first run")
    eventually(lambda: runs_of_the_rule(installation), what="each run that the rule began has ended well")
    assert read(installation, events)["values"] == expected(events)

    late = event("late", "click", at_ms=5, user=7, item=1)
    send(installation, late, eventually)
    report = installation.json("features", "daily")
    assert (report["days"], report["as_of_day"], report["beyond_horizon"]) == ([str(day(0))], str(LAST), 1)
    assert read(installation, events)["values"] == expected([*events, late])
    assert read(installation, events, "--as-of", str(end_ms - 1))["as_of_ms"] == end_ms - DAY_MS

    again = installation.json("features", "daily", "--day", str(LAST), "--day", str(day(0)))
    assert again["days"] == [str(day(0)), str(LAST)]
    assert installation.run("features", "daily", "--all").stdout.startswith("counted 2 days from 2026-01-01 to 2026")
    assert read(installation, events)["values"] == expected([*events, late])


def test_a_view_that_is_applied_is_filled_and_verified_by_itself(
    installation: Any, events: list[Event], eventually: Eventually, tmp_path: Path
) -> None:
    begins = {view["complete_from_ms"] for view in installation.json("features", "list")["views"]}
    assert begins == {None}, "the first views have all events"
    shipped = (ROOT / "configs/features.yaml").read_text()
    assert "user_browse_5m\n    version: 1" in shipped
    file = tmp_path / "features.yaml"
    file.write_text(shipped.replace("user_browse_5m\n    version: 1", "user_browse_5m\n    version: 2"))
    for _ in range(2):  # the second time nothing is new
        installation.run("features", "apply", str(file))
    (applied,) = installation.json("events", "list", "--key", "features")["events"]
    assert (applied["type"], applied["value"]) == ("FEATURES_APPLIED", "user_browse_5m@2")

    # Two Ray Jobs, of which the first begins Ray Data.
    eventually(lambda: states(installation)["verify"] == "succeeded", timeout_s=300, what="filled, and then verified")
    assert states(installation)["backfill"] == "succeeded"
    assert "user_browse_5m@2" in installation.json("workflow", "logs", "features/backfill")["log"]
    acted = sorted((each["ts"], each["user_id"]) for each in events if each["event_type"] in ("view", "click", "cart"))
    for ts, user in acted[-4:]:
        at = ("--as-of", str(ts // 10_000 * 10_000 + 10_000))
        old, new = (
            installation.json("features", "get", f"user_browse_5m@{version}", str(user), *at)["values"]
            for version in (1, 2)
        )
        assert new[str(user)] is not None
        assert new == old
    again = installation.run("features", "backfill").stdout
    assert again == "no view lacks anything\n"


def states(installation: Any) -> dict[str, str]:
    (flow,) = installation.json("workflow", "list")["workflows"]
    return {node["name"]: node["state"] for node in flow["nodes"]}


def test_the_views_are_in_the_list(installation: Any) -> None:
    views = {view["name"] for view in installation.json("features", "list")["views"]}
    assert {"daily_user", "daily_item", "daily_category"} < views


def test_a_day_that_is_none_is_refused(installation: Any) -> None:
    done = installation.run("features", "daily", "--day", "yesterday", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "yesterday" in done.stderr
