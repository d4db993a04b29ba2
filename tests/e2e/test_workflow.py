"""A workflow on a running system: jobs are Ray Jobs, retried when they fail, their logs within reach."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from rtrec_ray.embedded.state import read_state
from rtrec_ray.notification import EventFilter, NewEvent, PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from tests.conftest import Eventually
from tests.e2e.commands import Installation

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow]

SAYS = "rtrec events send --key model --value 1 --type"
LONG = "import time; time.sleep(4000)"
FILE = f"""\
name: talk
nodes:
  - {{name: train, command: {SAYS} MODEL_GENERATED}}
  - {{name: validate, command: {SAYS} MODEL_VALIDATED}}
  - {{name: reload, command: [{json.dumps(sys.executable)}, -c, "print('reloaded')"]}}
  - name: serve
    kind: endless
    command: [{json.dumps(sys.executable)}, -c, "import time; print('serving', flush=True); time.sleep(3600)"]
  - name: broken
    command: [{json.dumps(sys.executable)}, -c, "raise SystemExit(3)"]
    retries: {{times: 1, first: 1s}}
  - name: long
    command: [{json.dumps(sys.executable)}, -c, {json.dumps(LONG)}]
    retries: {{times: 1, first: 1s}}
rules:
  - {{name: train, when: {{event: {{type: GO}}}}, then: [{{start: train}}]}}
  - {{name: validate, when: {{event: {{type: MODEL_GENERATED, key: model}}}}, then: [{{start: validate}}]}}
  - name: serve
    when: {{event: {{type: MODEL_VALIDATED, key: model}}}}
    then: [{{start: serve}}]
    only_if: {{serve: [idle, stopped, failed]}}
  - name: reload
    when: {{event: {{type: MODEL_VALIDATED, key: model}}}}
    then: [{{start: reload}}]
    only_if: {{serve: [starting, running]}}
"""
EACH = 40
COUNTING = f"""\
name: counting-KILLS
nodes: [{{name: one, command: "true"}}]
rules:
  - {{name: often, when: {{count: {EACH}, of: {{event: {{type: "TICK-KILLS"}}}}}}, then: [{{start: one}}]}}
"""
TRIED_AGAIN = ["JOB_STARTED", "JOB_FAILED", "JOB_STARTED"]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("flow") / "data")
    made.run("up", "--only", "kafka,postgres,ray,pipeline", "--detach")
    yield made
    made.end()


def _states(installation: Installation) -> dict[str, str]:
    flows = installation.json("workflow", "list")["workflows"]
    return {node["name"]: node["state"] for flow in flows for node in flow["nodes"]}


def test_a_validated_model_starts_serving_and_the_next_one_only_reloads_it(
    installation: Installation, tmp_path: Path, eventually: Eventually
) -> None:
    file = tmp_path / "workflow.yaml"
    file.write_text(FILE)
    assert installation.json("workflow", "apply", str(file))["in_force"]
    installation.run("events", "send", "--key", "k", "--value", "v", "--type", "GO")
    begun = {"train": "succeeded", "validate": "succeeded", "serve": "running", "reload": "idle"}
    eventually(lambda: begun.items() <= _states(installation).items(), what="it serves, and is not reloaded")
    eventually(lambda: "serving" in installation.json("workflow", "logs", "serve")["log"])
    installation.run("events", "send", "--key", "k", "--value", "v", "--type", "GO")
    eventually(lambda: _states(installation)["reload"] == "succeeded")
    assert "reloaded" in installation.json("workflow", "logs", "reload")["log"]
    assert _told(installation, "serve") == ["JOB_STARTED"], "it was started once, and runs still"
    assert [event["type"] for event in installation.json("events", "list", "--key", "model")["events"]] == [
        *["MODEL_GENERATED", "MODEL_VALIDATED"] * 2
    ]
    installation.run("workflow", "start", "broken")
    eventually(lambda: _states(installation)["broken"] == "failed")
    events = installation.json("events", "list", "--key", "broken")["events"]
    assert [event["type"] for event in events][1:] == [*["JOB_STARTED", "JOB_FAILED"] * 2, "NODE_FAILED"]
    installation.run("workflow", "stop", "serve")
    eventually(lambda: _states(installation)["serve"] == "stopped")


@pytest.mark.parametrize(
    ("kills", "count"), [pytest.param(3, 240, id="3"), pytest.param(50, 2_000, id="50", marks=pytest.mark.soak)]
)
def test_each_expected_ray_job_runs_once_however_often_the_scheduler_is_killed(
    installation: Installation, kills: int, count: int, tmp_path: Path, eventually: Eventually
) -> None:
    file = tmp_path / "workflow.yaml"
    file.write_text(COUNTING.replace("KILLS", str(kills)))
    assert installation.json("workflow", "apply", str(file))["in_force"]
    options = PostgresOptions(dsn=installation.json("status")["postgres"]["dsn"])
    killed: set[int] = set()
    with closing(PostgresNotificationStore(options)) as log:
        for number in range(count):
            log.send(NewEvent(key="k", value=str(number), type=f"TICK-{kills}"))
            if (number + 1) % (count // kills) == 0:
                scheduler = eventually(lambda: _scheduler(options, killed), what="a scheduler that was not killed")
                killed.add(scheduler.pid)
                scheduler.kill()
        succeeded = EventFilter(key="one", namespace=f"counting-{kills}", type="JOB_SUCCEEDED")
        eventually(lambda: len(log.list(succeeded, limit=1_000)) == count // EACH, timeout_s=1_200, what="all have run")
        told = log.list(EventFilter(key="one", namespace=f"counting-{kills}"), limit=1_000)
    assert len(killed) == kills
    assert [event.type for event in told] == ["JOB_STARTED", "JOB_SUCCEEDED"] * (count // EACH)
    assert len({event.value for event in told}) == count // EACH


def _scheduler(options: PostgresOptions, killed: set[int]) -> psutil.Process | None:
    """The process behind the session that has the scheduler's lease."""
    with closing(connect(options)) as connection, transaction(connection) as cursor:
        cursor.execute(
            "SELECT a.client_port FROM meta.leases l JOIN pg_stat_activity a USING (pid, backend_start)"
            " WHERE l.task = 'workflow'"
        )
        found = cursor.fetchone()
    if found is None:
        return None
    ours = [each for each in psutil.net_connections("tcp") if each.laddr and each.laddr.port == found[0] and each.pid]
    processes = [psutil.Process(each.pid) for each in ours if each.raddr and each.pid not in killed]
    return processes[0] if processes and "StageActor" in processes[0].cmdline()[0] else None


def test_a_job_that_dies_with_the_ray_head_is_tried_again_and_failed_in_the_end(
    installation: Installation, eventually: Eventually
) -> None:
    installation.run("workflow", "start", "long")
    eventually(lambda: _states(installation)["long"] == "running", what="it runs")
    os.kill(read_state(installation.directory).processes["ray"].pid, signal.SIGKILL)
    eventually(lambda: _told(installation, "long")[1:] == TRIED_AGAIN, what="it runs again")
    (job,) = [each for each in installation.processes() if each.info["cmdline"][-1] == LONG]
    job.kill()
    eventually(lambda: _states(installation)["long"] == "failed", what="it is given up")
    assert _told(installation, "long")[1:] == [*TRIED_AGAIN, "JOB_FAILED", "NODE_FAILED"]


def _told(installation: Installation, node: str) -> list[str]:
    return [event["type"] for event in installation.json("events", "list", "--key", node)["events"]]
