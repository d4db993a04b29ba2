"""A workflow as the text of a workflow.yaml: `parse_workflow` gives the same workflow back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rtrec_ray import yaml_text
from rtrec_ray.definition_file import duration_text
from rtrec_ray.workflow.conditions import (
    EVENT_FIELDS,
    Absence,
    AllOf,
    AnyOf,
    Condition,
    Count,
    EventIs,
    Schedule,
    StatusIs,
    WatermarkAt,
    Within,
    terms_of,
)
from rtrec_ray.workflow.definition import Action, Node, Rule, Workflow


def to_text(workflow: Workflow) -> str:
    """The file.

    >>> print(to_text(Workflow(name="w", nodes=(Node(name="n", command=("true",)),), rules=())).strip())
    name: w
    nodes:
    - name: n
      command: ['true']
      kind: batch
      if_running: queue
    rules: []
    """
    limit = {} if workflow.concurrency is None else {"concurrency": workflow.concurrency}
    tree = {
        "name": workflow.name,
        **limit,
        "nodes": [*map(_node, workflow.nodes)],
        "rules": [*map(_rule, workflow.rules)],
    }
    return yaml_text.dump(tree, default_flow_style=None, width=200, allow_unicode=True)


def _node(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"name": node.name, "command": list(node.command), "kind": node.kind}
    if node.kind == "batch":
        found["if_running"] = node.if_running
    if node.timeout_ms is not None:
        found["timeout"] = duration_text(node.timeout_ms)
    if node.heartbeat_ms is not None:
        found["heartbeat"] = duration_text(node.heartbeat_ms)
    if node.retries:
        times = {"first": node.backoff_ms, "longest": node.longest_backoff_ms, "steady": node.steady_ms}
        found["retries"] = {"times": node.retries, **{name: duration_text(ms) for name, ms in times.items()}}
    return found


def _rule(rule: Rule) -> dict[str, Any]:
    found: dict[str, Any] = {"name": rule.name, "when": _condition(rule.when), "then": [*map(_action, rule.then)]}
    if rule.once:
        found["once"] = True
    if rule.only_if:
        found["only_if"] = {node: list(states) for node, states in rule.only_if.items()}
    return found


def _action(action: Action) -> dict[str, Any]:
    if action.event is not None:
        return {"send": {name: each for name, each in asdict(action.event).items() if each is not None}}
    return {action.do: action.node if action.workflow is None else {"workflow": action.workflow}}


def _condition(condition: Condition) -> dict[str, Any]:
    names = {"AllOf": "all", "AnyOf": "any", "Sequence": "sequence"}
    match condition:
        case EventIs():
            given = {name: getattr(condition, name) for name in EVENT_FIELDS}
            context = {"context": dict(condition.context)} if condition.context else {}
            return {"event": {**{name: text for name, text in given.items() if text is not None}, **context}}
        case AllOf(terms=terms) | AnyOf(terms=terms):
            return {names[type(condition).__name__]: [*map(_condition, terms)]}
        case Count(n=n, term=term):
            return {"count": n, "of": _condition(term)}
        case Within(ms=ms, term=term):
            return {"within": duration_text(ms), "of": _condition(term)}
        case Absence(ms=ms, term=term):
            return {"absence": duration_text(ms), "of": _condition(term)}
        case StatusIs(node=node, states=states):
            return {"status": {"node": node, "is": list(states)}}
    return _timed(condition) if not terms_of(condition) else {"sequence": [*map(_condition, terms_of(condition))]}


def _timed(condition: Condition) -> dict[str, Any]:
    if isinstance(condition, WatermarkAt):
        when = {"at": condition.at_ms} if condition.every_ms is None else {"every": duration_text(condition.every_ms)}
        after = {"after": duration_text(condition.after_ms)} if condition.after_ms else {}
        return {"watermark": {"stage": condition.stage, **when, **after}}
    assert isinstance(condition, Schedule)
    every = {"every": duration_text(condition.every_ms)} if condition.every_ms is not None else {}
    cron = {"cron": condition.cron.text} if condition.cron is not None else {}
    return {"schedule": {**cron, **every, "missed": condition.missed, "grace": duration_text(condition.grace_ms)}}
