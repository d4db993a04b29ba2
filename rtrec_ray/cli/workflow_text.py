"""What the commands about workflows print for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from rtrec_ray.workflow.explain import time

_NAMED_AT_ENDS: Final = 3


def some(offsets: Sequence[int]) -> tuple[int, ...]:
    """Those that are named: of many the first and the last ones."""
    most = 2 * _NAMED_AT_ENDS
    return tuple(offsets if len(offsets) <= most else (*offsets[:_NAMED_AT_ENDS], *offsets[-_NAMED_AT_ENDS:]))


def print_list(found: list[dict[str, Any]]) -> None:
    """Workflows, and below each the states of its nodes."""
    for each in found:
        marks = [mark for mark, is_so in (("paused", each["paused"]), ("stopped", not each["active"])) if is_so]
        click.echo(" ".join([each["name"], *(f"({mark})" for mark in marks)]))
        for node in each["nodes"]:
            click.echo(f"  {node['name']:<24} {node['kind']:<8} {node['state']}")


def print_workflow(answer: Mapping[str, Any]) -> None:
    """One workflow, with what its rules have met."""
    print_list([dict(answer)])
    for rule in answer["rules"]:
        last = "" if rule["last_ms"] is None else f"; last {time(rule['last_ms'])}: {rule['acted']}"
        click.echo(f"  {rule['name']}: {rule['when']} → {', '.join(rule['then'])}; met {rule['met']} times{last}")


def print_why(answer: Mapping[str, Any]) -> None:
    """A node: what holds it up, its last run, and each term of its rules."""
    click.echo(f"{answer['workflow']}/{answer['node']} is {answer['state']}")
    for is_so, what in ((answer["paused"], "is paused: starts wait"), (not answer["active"], "is stopped")):
        if is_so:
            click.echo(f"  workflow {answer['workflow']} {what}")
    if answer["waits_for"]:
        click.echo(f"  waits: {answer['waits_for']}")
    if answer["last_run"] is not None:
        run = answer["last_run"]
        click.echo(f"  last run {run['run_id']}: {run['state']} {run['reason']}".rstrip())
    for rule in answer["rules"]:
        events = {event["offset"]: event for event in rule["events"]}
        click.echo(f"  rule {rule['name']} ({', '.join(rule['then'])}), met {rule['met']} times")
        if rule["last_ms"] is not None:
            click.echo(f"    last at {time(rule['last_ms'])} by {_named(rule['last_by'], events)}: {rule['acted']}")
        _print_term(rule["terms"], events, depth=2)


def _print_term(term: Mapping[str, Any], events: Mapping[int, Any], *, depth: int) -> None:
    by = f" by {_named(term['by'], events)}" if term["by"] else ""
    click.echo(f"{'  ' * depth}{'met    ' if term['met'] else 'missing'} {term['text']}{by}")
    for inner in term["terms"]:
        _print_term(inner, events, depth=depth + 1)


def _named(offsets: Sequence[int], events: Mapping[int, Any]) -> str:
    named = []
    for offset in some(offsets):
        event = events.get(offset)
        said = f"{event['type'] or event['key']} {event['value']}" if event else "trimmed"
        named.append(f"event {offset} ({said})")
    if left_out := len(offsets) - len(named):
        named.insert(_NAMED_AT_ENDS, f"{left_out:,} more")
    return ", ".join(named) or "time"


def print_orders(answer: Mapping[str, Any]) -> None:
    """What a workflow would have done."""
    click.echo(f"{answer['events']} events since {datetime.fromtimestamp(answer['since_ms'] / 1000, tz=UTC):%F %T}")
    for order in answer["orders"]:
        by = f" by events {', '.join(map(str, order['by']))}" if order["by"] else ""
        click.echo(f"{time(order['time_ms'])}  {order['do']} {order['node']}  rule {order['rule']}{by}")
