"""`rtrec workflow`: what runs when, and why. Imported when one of its commands is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from actors.workflow_job import run_job
from actors.workflow_log import occurred
from rtrec_ray.app.find import join_environment, open_system
from rtrec_ray.app.snapshot import entering, leave_workflow
from rtrec_ray.app.workflow import Desk, find_node, open_desk, runner
from rtrec_ray.cli.options import Where, command
from rtrec_ray.cli.workflow_text import print_list, print_orders, print_why, print_workflow, some
from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import UnknownNode
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.notification.base import Event, EventFilter
from rtrec_ray.notification.since import events_since
from rtrec_ray.stores.workflow.store import Loaded
from rtrec_ray.workflow.definition import Rule
from rtrec_ray.workflow.dryrun import dry_run
from rtrec_ray.workflow.events import NODE_REQUESTED, WHOLE, WORKFLOW_REQUESTED, Announcement
from rtrec_ray.workflow.explain import Term, describe, explain, waits_for
from rtrec_ray.workflow.file import load_workflow
from rtrec_ray.workflow.graph import mermaid, svg
from rtrec_ray.workflow.rules import RuleState
from rtrec_ray.workflow.state import Saved

_TAKEN_WITHIN_S = 10.0
_RUNS = 1_000
_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@click.group()
def workflow() -> None:
    """Define, see and steer what runs when."""


@workflow.command()
@click.argument("file", type=click.Path(path_type=Path))
@command
def apply(where: Where, file: Path) -> None:
    """Check a workflow.yaml and let the scheduler go by it."""
    definition = load_workflow(file)
    system = open_system(where.config, where.data_dir)
    with open_desk(system) as desk:
        others = [saved.definition for saved in desk.workflows.load().workflows.values()]
        definition = load_workflow(file, beside=others)
        version = desk.workflows.apply(definition, also=entering(system, definition, by_hand=True))
        taken = _taken(desk, lambda now: _digest(now, definition.name) == definition.digest)
    answer = {"name": definition.name, "version": version, "digest": definition.digest, "in_force": taken}
    later = "" if taken else "; no scheduler has taken it yet"
    where.answer(answer, lambda: click.echo(f"{definition.name} version {version} ({definition.digest}){later}"))


@workflow.command()
@click.argument("name")
@command
def remove(where: Where, name: str) -> None:
    """Take a workflow out: its jobs are stopped, its rules forgotten. What ran stays in the metadata."""
    with open_desk(open_system(where.config, where.data_dir)) as desk:
        _workflow(desk.workflows.load(), name)
        what = Announcement(type=WORKFLOW_REQUESTED, key=WHOLE, value="remove", workflow=name)
        desk.workflows.request(what, also=lambda cursor: leave_workflow(PostgresMetadataStore(cursor), name))
        taken = _taken(desk, lambda now: name not in now.workflows)
    later = "" if taken else "; no scheduler has taken it yet"
    where.answer({"name": name, "removed": taken}, lambda: click.echo(f"{name} is removed{later}"))


@workflow.command(name="list")
@command
def list_workflows(where: Where) -> None:
    """List workflows and the states of their nodes."""
    with open_desk(open_system(where.config, where.data_dir)) as desk:
        loaded = desk.workflows.load()
    found = [_listed(name, saved) for name, saved in sorted(loaded.workflows.items())]
    where.answer({"workflows": found}, lambda: print_list(found))


@workflow.command()
@click.argument("name")
@command
def show(where: Where, name: str) -> None:
    """Show a workflow: its nodes, their runs, its rules."""
    with open_desk(open_system(where.config, where.data_dir)) as desk:
        saved = _workflow(desk.workflows.load(), name)
        nodes = [
            {**each, "runs": [asdict(run) for run in desk.workflows.runs_of(name, each["name"], limit=5)]}
            for each in _listed(name, saved)["nodes"]
        ]
    rules = [_rule(rule, saved.rules[rule.name]) for rule in saved.definition.rules]
    answer = {**_listed(name, saved), "digest": saved.state.digest, "nodes": nodes, "rules": rules}
    where.answer(answer, lambda: print_workflow(answer))


def _request(do: str, help_text: str, *, nodes: bool) -> Callable[..., Any]:
    """A command that asks the scheduler for something: of a node, or of a workflow."""

    @command
    def call(where: Where, name: str) -> None:
        with open_desk(open_system(where.config, where.data_dir)) as desk:
            loaded = desk.workflows.load()
            if nodes and name not in loaded.workflows:
                flow, key = find_node(loaded, name)
                desk.workflows.request(Announcement(type=NODE_REQUESTED, key=key, value=do, workflow=flow))
            else:
                _workflow(loaded, name)
                what = Announcement(type=WORKFLOW_REQUESTED, key=WHOLE, value=do, workflow=name)
                desk.workflows.request(what)
        where.answer({"requested": do, "name": name}, lambda: click.echo(f"asked to {do} {name}"))

    label = "NODE|WORKFLOW" if nodes else "WORKFLOW"
    return workflow.command(name=do, help=help_text)(click.argument("name", metavar=label)(call))


start = _request("start", "Ask for a start of a node, or of a workflow's rules.", nodes=True)
stop = _request("stop", "Ask for the end of a node's run, or of a workflow.", nodes=True)
restart = _request("restart", "Ask for a new run in place of the one that goes on.", nodes=True)
pause = _request("pause", "Let starts wait; what happens meanwhile is kept.", nodes=False)
resume = _request("resume", "Let the starts that wait go.", nodes=False)


@workflow.command()
@click.argument("node")
@command
def why(where: Where, node: str) -> None:
    """Say why a node runs or does not: the terms of its rules, met or missing, and the events that met them."""
    with open_desk(open_system(where.config, where.data_dir)) as desk:
        loaded = desk.workflows.load()
        flow, name = find_node(loaded, node)
        saved = loaded.workflows[flow]
        about = [rule for rule in saved.definition.rules if any(act.node == name for act in rule.then)]
        rules = [_reason(desk, rule, saved.rules[rule.name]) for rule in about]
        runs = [asdict(run) for run in desk.workflows.runs_of(flow, name, limit=1)]
    state = saved.nodes[name]
    answer = {
        "workflow": flow,
        "node": name,
        "state": state.state,
        "waiting": [{"rule": cause.rule, "by": list(cause.by)} for cause in state.waiting],
        "waits_for": waits_for(saved, name),
        "retry_wall_ms": state.retry_wall_ms,
        "paused": saved.state.paused,
        "active": saved.state.active,
        "last_run": runs[0] if runs else None,
        "rules": rules,
    }
    where.answer(answer, lambda: print_why(answer))


@workflow.command(name="dry-run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--since", required=True, help="A time in ms UTC, or how long ago, such as 2h or 7d.")
@command
def dry_run_file(where: Where, file: Path, since: str) -> None:
    """Say what a workflow.yaml would have done over the event log, had each of its jobs succeeded at once."""
    definition, system = load_workflow(file), open_system(where.config, where.data_dir)
    now_ms = system.clock.now_ms()
    since_ms = _since(since, now_ms)
    with open_desk(system) as desk:
        read: Counter[str] = Counter()
        log = map(occurred, _counted(events_since(desk.events, since_ms), read))
        found = dry_run(definition, log, since_ms=since_ms, until_ms=now_ms)
    orders = list(map(asdict, found))
    answer = {"name": definition.name, "since_ms": since_ms, "events": read.total(), "orders": orders}
    where.answer(answer, lambda: print_orders(answer))


@workflow.command()
@click.argument("name")
@click.option("--svg", "svg_file", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture to a file.")
@command
def graph(where: Where, name: str, svg_file: Path | None) -> None:
    """Draw a workflow with the states of its nodes, as Mermaid text or as SVG."""
    with open_desk(open_system(where.config, where.data_dir)) as desk:
        saved = _workflow(desk.workflows.load(), name)
    states = {node: state.state for node, state in saved.nodes.items()}
    text = mermaid(saved.definition, states)
    if svg_file is not None:
        svg_file.write_text(svg(saved.definition, states), encoding="utf-8")
    answer = {"name": name, "mermaid": text, "svg": None if svg_file is None else str(svg_file)}
    where.answer(answer, lambda: click.echo(text if svg_file is None else f"wrote {svg_file}", nl=svg_file is not None))


@workflow.command()
@click.argument("node")
@click.option(
    "--run", "run_id", help="An earlier run, as `rtrec workflow show` lists them; a retry is a run of its own."
)
@command
def logs(where: Where, node: str, run_id: str | None) -> None:
    """Print what a node's newest run wrote, as long as the Ray that ran it is there."""
    system = open_system(where.config, where.data_dir)
    join_environment(system)
    with open_desk(system) as desk:
        runs = desk.workflows.runs_of(*find_node(desk.workflows.load(), node), limit=_RUNS)
    if not runs:
        raise UnknownNode(f'"{node}" has not run yet', mend="`rtrec workflow why` tells what it waits for")
    known = [run.run_id for run in runs]
    if run_id not in (None, *known):
        raise UnknownNode(f'"{node}" has no run "{run_id}"', mend=f"its newest are {', '.join(known[:5])}")
    run = run_id or known[0]
    text = runner(system).log(run)
    where.answer({"run": run, "log": text}, lambda: click.echo(text, nl=False))


@workflow.command(name="run-node", hidden=True)
@click.argument("run_id")
@command
def run_node(where: Where, run_id: str) -> int:
    """Do the work of a run, as the scheduler ordered it; nothing when another does."""
    with open_desk(open_system(where.config, where.data_dir)) as desk:
        return run_job(desk.workflows, run_id)


def _taken(desk: Desk, done: Callable[[Loaded], bool]) -> bool:
    """Wait for the scheduler, which is told by the event log."""
    deadline, position = monotonic_s() + _TAKEN_WITHIN_S, desk.events.end_offset()
    while monotonic_s() < deadline:
        if done(desk.workflows.load()):
            return True
        # Nothing tells when the scheduler commits; the log's next event or this time is soon enough for a person.
        desk.events.step(EventFilter(), after_offset=position, timeout_s=0.2)
    return False


def _digest(loaded: Loaded, name: str) -> str | None:
    return loaded.workflows[name].state.digest if name in loaded.workflows else None


def _workflow(loaded: Loaded, name: str) -> Saved:
    if name not in loaded.workflows:
        known = ", ".join(loaded.workflows) or "none; apply one first"
        raise UnknownNode(f'no workflow is called "{name}"', mend=f"there are {known}")
    return loaded.workflows[name]


def _counted(events: Iterable[Event], read: Counter[str]) -> Iterator[Event]:
    for event in events:
        read["events"] += 1
        yield event


def _since(text: str, now_ms: int) -> int:
    if text.isdigit():
        return int(text)
    if text[-1:] in _UNITS and text[:-1].isdigit():
        return now_ms - int(text[:-1]) * _UNITS[text[-1]]
    raise click.BadParameter(f'"{text}" is neither a time in ms nor a span like 2h', param_hint="--since")


def _listed(name: str, saved: Saved) -> dict[str, Any]:
    kinds = {node.name: node.kind for node in saved.definition.nodes}
    nodes = [
        {"name": node, "state": saved.nodes[node].state, "kind": kind, "run": saved.nodes[node].run}
        for node, kind in kinds.items()
    ]
    return {"name": name, "active": saved.state.active, "paused": saved.state.paused, "nodes": nodes}


def _rule(rule: Rule, state: RuleState) -> dict[str, Any]:
    return {
        "name": rule.name,
        "when": describe(rule.when),
        "then": [action.text for action in rule.then],
        "met": state.met,
        "last_ms": state.last_ms,
        "last_by": list(state.last_by),
        "acted": state.acted,
    }


def _reason(desk: Desk, rule: Rule, state: RuleState) -> dict[str, Any]:
    term = explain(rule.when, state.state)
    wanted = sorted({*some(state.last_by), *_offsets(term)})
    found = [event for offset in wanted for event in desk.events.list(after_offset=offset - 1, limit=1)]
    events = {event.offset: event for event in found if event.offset in wanted}
    only_if = {node: list(states) for node, states in rule.only_if.items()}
    return {
        **_rule(rule, state),
        "only_if": only_if,
        "terms": asdict(term),
        "events": [asdict(event) for event in events.values()],
        "trimmed": [offset for offset in wanted if offset not in events],
    }


def _offsets(term: Term) -> set[int]:
    return set(some(term.by)).union(*map(_offsets, term.terms))
