"""Beside a running system: the pipeline as a job on its Ray cluster, as the README says, and a second system."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rtrec_ray.embedded.ray import client_environment
from tests.e2e.commands import ROOT, Installation

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow]

SERVERS = ("kafka", "postgres", "ray")
STAGES = ("features", "history", "samples")
CONFIG = """
servers:
  kafka: {bootstrap: "${KAFKA_BOOTSTRAP}"}
  postgres: {dsn: "${POSTGRES_DSN}"}
  ray: {address: auto}
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("servers") / "data")
    installation.run("up", "--only", "kafka,postgres,ray", "--detach")
    yield installation
    installation.end()


def ray_job(status, *words):
    ray = status["ray"]
    environment = client_environment(
        address=ray["address"], dashboard=ray["dashboard"], token_path=Path(ray["token_path"])
    )
    command = [str(Path(sys.executable).parent / "ray"), "job", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_submitted_job_runs_the_pipeline_and_its_stop_ends_it_in_order(servers, tmp_path, eventually):
    status = servers.json("status")
    working_dir = tmp_path / "work"
    working_dir.mkdir()
    (working_dir / "rtrec.yaml").write_text(CONFIG)
    variables = {
        "KAFKA_BOOTSTRAP": status["kafka"]["bootstrap"],
        "POSTGRES_DSN": status["postgres"]["dsn"],
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }
    for package in ("rtrec_ray", "actors", "training", "serving", "configs"):
        shutil.copytree(ROOT / package, working_dir / package, ignore=shutil.ignore_patterns("__pycache__"))
    ray_job(
        status,
        "submit",
        *("--submission-id", "pipeline", "--no-wait", "--working-dir", str(working_dir)),
        *("--runtime-env-json", json.dumps({"env_vars": variables})),
        *("--", "rtrec", "up", "--only", "pipeline", "--config", "rtrec.yaml", "--data-dir", str(tmp_path / "job")),
    )
    eventually(lambda: up(servers) == ["features", "history", "samples"], what="every stage is up")
    servers.run("workflow", "start", "features/daily")
    eventually(
        lambda: state_of_daily(servers) == "succeeded", what="a node's job finds the servers that the file names"
    )
    ray_job(status, "stop", "pipeline")
    eventually(lambda: up(servers) == [], what="every lease is given back")


def test_a_second_system_with_shoppers_runs_beside_the_first_and_ends_alone(servers, tmp_path, eventually):
    second, before = Installation(tmp_path / "second"), servers.json("status")
    second.run("up", "--only", "kafka,postgres,mlflow,ray,pipeline,serve", "--traffic", "5", "--detach")
    try:
        eventually(lambda: shoppers_came(second), what="features, samples and history of shoppers")
        there = second.json("status")
        assert [there[part] != before[part] for part in SERVERS] == [True] * 3
    finally:
        second.run("down")
    assert second.processes() == []
    after = servers.json("status")
    assert [after[part] for part in SERVERS] == [before[part] for part in SERVERS]
    assert [taken(after, name) for name in STAGES] == [0] * 3


def shoppers_came(installation):
    status = installation.json("status")
    return all(taken(status, name) > 100 and status["stages"][name]["dead"] == 0 for name in STAGES)


def taken(status, name):
    return status["stages"].get(name, {"in": 0})["in"]


def state_of_daily(servers):
    return servers.json("workflow", "why", "features/daily")["state"]


def up(servers):
    return sorted(name for name, stage in servers.json("status")["stages"].items() if stage["up"])
