"""A workflow on a running system: jobs are Ray Jobs, retried when they fail, their logs within reach."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtrec_ray.embedded.state import read_state
from tests.conftest import Eventually
from tests.e2e.commands import Installation

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow]

LONG = "import time; time.sleep(4000)"
FILE = f"""\
name: talk
nodes:
  - name: train
    command: [{json.dumps(sys.executable)}, -c, "print('trained')"]
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
  - {{name: serve, when: {{status: {{node: train, is: succeeded}}}}, then: [{{start: serve}}]}}
"""
TRIED_AGAIN = ["JOB_STARTED", "JOB_FAILED", "JOB_STARTED"]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("flow") / "data")
    made.run("up", "--only", "kafka,postgres,ray,pipeline", "--detach")
    yield made
    made.run("down", check=False)
    assert made.processes() == []


def _states(installation: Installation) -> dict[str, str]:
    flows = installation.json("workflow", "list")["workflows"]
    return {node["name"]: node["state"] for flow in flows for node in flow["nodes"]}


def test_an_event_starts_a_batch_job_whose_end_starts_an_endless_one(
    installation: Installation, tmp_path: Path, eventually: Eventually
) -> None:
    file = tmp_path / "workflow.yaml"
    file.write_text(FILE)
    assert installation.json("workflow", "apply", str(file))["in_force"]
    installation.run("events", "send", "--key", "k", "--value", "v", "--type", "GO")
    eventually(lambda: _states(installation)["serve"] == "running")
    assert _states(installation)["train"] == "succeeded"
    eventually(lambda: "serving" in installation.json("workflow", "logs", "serve")["log"])
    installation.run("workflow", "start", "broken")
    eventually(lambda: _states(installation)["broken"] == "failed")
    events = installation.json("events", "list", "--key", "broken")["events"]
    assert [event["type"] for event in events][1:] == [*["JOB_STARTED", "JOB_FAILED"] * 2, "NODE_FAILED"]
    installation.run("workflow", "stop", "serve")
    eventually(lambda: _states(installation)["serve"] == "stopped")


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
