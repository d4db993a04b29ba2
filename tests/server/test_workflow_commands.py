"""`rtrec workflow` as a user has it, on a real PostgreSQL with a scheduler beside it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from actors.job_runner import MemoryJobRunner
from actors.scheduler import SchedulerLoop, SchedulerOptions
from actors.workflow_log import sending
from rtrec_ray.cli.main import root
from rtrec_ray.clock import REAL
from rtrec_ray.errors import DefinitionInvalid, UnknownNode
from rtrec_ray.metadata import PostgresMetadataStore
from rtrec_ray.notification import EventFilter, NewEvent, PostgresNotificationStore
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.workflow.postgres import PostgresWorkflowStore
from tests.conftest import Eventually

pytestmark = pytest.mark.server

FILE = """\
name: talk
nodes:
  - {name: train, command: "true"}
  - {name: serve, command: serve, kind: endless}
rules:
  - name: both
    when: {all: [{event: {type: SAMPLES_COMPLETE}}, {event: {key: go}}]}
    then: [{start: train}]
  - name: after
    when: {status: {node: train, is: succeeded}}
    then: [{start: serve}]
"""


AFTER = """\
name: {}
nodes: [{{name: n, command: "true"}}]
rules:
  - {{name: r, when: {{event: {{type: JOB_SUCCEEDED, namespace: {}}}}}, then: [{{start: n}}]}}
"""


class Shell:
    """The command, in this process, on a system of which only PostgreSQL runs."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.config = directory / "config.yaml"
        self.config.write_text(f'servers: {{postgres: {{dsn: "{dsn}"}}}}\n')
        self.file = directory / "workflow.yaml"
        self.file.write_text(FILE)
        self.directory = directory

    def __call__(self, *words: str) -> str:
        arguments = ["workflow", *words, "--config", str(self.config), "--data-dir", str(self.directory / "data")]
        done = CliRunner().invoke(root, arguments, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.output

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def states(self) -> dict[str, str]:
        return {node["name"]: node["state"] for flow in self.json("list")["workflows"] for node in flow["nodes"]}


@pytest.fixture
def log(dsn: str) -> Iterator[PostgresNotificationStore]:
    with closing(PostgresNotificationStore(PostgresOptions(dsn=dsn))) as made:
        yield made


@pytest.fixture
def shell(dsn: str, tmp_path: Path, log: PostgresNotificationStore) -> Iterator[Shell]:
    stop = threading.Event()
    with closing(PostgresWorkflowStore(PostgresOptions(dsn=dsn), sending(log))) as store:
        runner = MemoryJobRunner(store, ends={"train": "succeeded"})
        options = SchedulerOptions(tick_every_s=0.05, look_every_s=0.05)
        thread = threading.Thread(
            target=SchedulerLoop(store, log, runner, clock=REAL, options=options).run, args=(stop,)
        )
        thread.start()
        yield Shell(tmp_path, dsn)
        stop.set()
        thread.join()


def test_a_workflow_is_applied_explained_and_steered(
    shell: Shell, log: PostgresNotificationStore, eventually: Eventually
) -> None:
    assert shell.json("list") == {"workflows": []}
    applied = shell.json("apply", str(shell.file))
    assert (applied["name"], applied["version"], applied["in_force"]) == ("talk", 1, True)
    assert shell.states() == {"train": "idle", "serve": "idle"}
    sent = log.send(NewEvent(key="go", value="now"))
    said = eventually(lambda: _half_met(shell.json("why", "train")))
    terms = said["rules"][0]["terms"]["terms"]
    assert [(term["met"], term["by"]) for term in terms] == [(False, []), (True, [sent.offset])]
    assert f"met     event key=go by event {sent.offset} (go now)" in shell("why", "talk/train")
    assert shell.json("dry-run", str(shell.file), "--since", "1h")["orders"] == []
    log.send(NewEvent(key="samples", value="1", type="SAMPLES_COMPLETE"))
    eventually(lambda: shell.states() == {"train": "succeeded", "serve": "running"})
    would = shell.json("dry-run", str(shell.file), "--since", "1h")["orders"]
    assert [(order["node"], order["rule"]) for order in would] == [("train", "both"), ("serve", "after")]
    shell("stop", "serve")
    eventually(lambda: shell.states()["serve"] == "stopped")
    shell("pause", "talk")
    eventually(lambda: shell.json("list")["workflows"][0]["paused"])
    shell("start", "serve")
    eventually(lambda: shell.states()["serve"] == "running")
    shell("resume", "talk")
    shell("show", "talk")
    assert "n_serve" in shell.json("graph", "talk")["mermaid"]
    shell("graph", "talk", "--svg", str(shell.directory / "g.svg"))
    assert "serve (endless)" in (shell.directory / "g.svg").read_text()


def test_runs_of_nodes_are_among_all_runs(
    shell: Shell, dsn: str, log: PostgresNotificationStore, eventually: Eventually
) -> None:
    shell("apply", str(shell.file))
    shell("start", "train")
    eventually(lambda: shell.states() == {"train": "succeeded", "serve": "running"})
    with closing(PostgresMetadataStore(PostgresOptions(dsn=dsn))) as metadata:
        runs = {run.job: run for run in metadata.runs()}
        train, serve = runs["talk/train"], metadata.run("talk.serve.1")
        assert (train.run_id, train.kind, train.state) == ("talk.train.1", "batch", "succeeded")
        assert train.context == {"command": ["true"], "attempt": 0}
        told = {event.type: event.time_ms for event in log.list(EventFilter(key="train", namespace="talk"))}
        ended_ms = train.ended_ms
        assert ended_ms is not None
        # An event is sent in the transaction of its run's change, after it.
        assert train.started_ms <= told["JOB_STARTED"] <= ended_ms <= told["JOB_SUCCEEDED"]
        assert serve is not None
        assert (serve.kind, serve.state, serve.ended_ms) == ("endless", "running", None)


def test_a_workflow_is_removed_with_its_jobs_and_comes_back_as_a_new_one(
    shell: Shell, dsn: str, eventually: Eventually
) -> None:
    shell("apply", str(shell.file))
    shell("start", "train")
    eventually(lambda: shell.states() == {"train": "succeeded", "serve": "running"})
    with closing(PostgresMetadataStore(PostgresOptions(dsn=dsn))) as metadata:
        assert {entity.name for entity in metadata.entities("jobs")} >= {"talk/train", "talk/serve"}
        assert shell.json("remove", "talk") == {"name": "talk", "removed": True}
        assert shell.json("list") == {"workflows": []}
        assert metadata.entities("workflows", name="talk") == metadata.entities("jobs", name="talk/train") == ()
        eventually(lambda: metadata.run("talk.serve.1").state == "stopped")  # type: ignore[union-attr]
    shell("apply", str(shell.file))
    shell("start", "train")
    eventually(lambda: shell.states()["train"] == "succeeded")
    runs = shell.json("show", "talk")["nodes"][0]["runs"]
    assert [run["run_id"] == "talk.train.1" for run in runs] == [False, True]
    with pytest.raises(UnknownNode, match='"train" has no run "none"'):
        shell("logs", "train", "--run", "none")


def test_a_workflow_that_would_go_round_with_another_for_ever_is_refused(shell: Shell) -> None:
    one, two = shell.directory / "one.yaml", shell.directory / "two.yaml"
    one.write_text(AFTER.format("one", "two"))
    two.write_text(AFTER.format("two", "one"))
    shell("apply", str(one))
    with pytest.raises(DefinitionInvalid, match=r'two.yaml, line 4: starting "n" leads .* by way of workflow one$'):
        shell("apply", str(two))
    assert [flow["name"] for flow in shell.json("list")["workflows"]] == ["one"]


def test_what_is_not_there_is_refused_with_what_is(shell: Shell) -> None:
    shell("apply", str(shell.file))
    with pytest.raises(UnknownNode, match='no node is called "nobody"') as refused:
        shell("why", "nobody")
    assert "talk/train" in refused.value.mend
    shell.file.write_text(FILE.replace("start: serve", "start: server"))
    with pytest.raises(DefinitionInvalid, match='line 9: unknown node "server"'):
        shell("apply", str(shell.file))


def _half_met(said: Any) -> Any:
    return said if any(term["met"] for term in said["rules"][0]["terms"]["terms"]) else None
