"""A workflow as a picture with the states of its nodes: Mermaid text, or SVG that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from xml.sax.saxutils import escape

from rtrec_ray.workflow.conditions import StatusIs, leaves
from rtrec_ray.workflow.definition import Action, Rule, Workflow
from rtrec_ray.workflow.explain import describe

COLOURS: Final = {
    "running": "#b7e1b0",
    "starting": "#dcefc8",
    "queued": "#f6ecb5",
    "waiting": "#f6d9a8",
    "stopping": "#e5d0f0",
    "failed": "#f2b3ae",
    "succeeded": "#c3dcf5",
}
_PLAIN: Final = "#eeeeee"
_ROW, _BOX, _WIDE, _GAP = 64, 44, 430, 140


def mermaid(workflow: Workflow, states: Mapping[str, str]) -> str:
    """A flowchart: conditions lead to nodes; a dotted line is a node whose status a condition looks at."""
    lines = ["flowchart LR"]
    for node in workflow.nodes:
        state = states.get(node.name, "idle")
        shape = ("([", "])") if node.kind == "endless" else ("[", "]")
        lines.append(f'  {_id("n", node.name)}{shape[0]}"{node.name}<br/>{state}"{shape[1]}:::{state}')
    for rule in workflow.rules:
        lines.append(f'  {_id("r", rule.name)}{{{{"{_quoted(describe(rule.when))}"}}}}')
        lines += [f"  {_id('n', name)} -.-> {_id('r', rule.name)}" for name in _looked_at(rule)]
        lines += [f"  {_id('r', rule.name)} -->|{action.do}| {_target(action)}" for action in rule.then]
    lines += [f"  classDef {state} fill:{colour}" for state, colour in COLOURS.items()]
    return "\n".join(lines) + "\n"


def _target(action: Action) -> str:
    if action.event is not None:
        return f'{_id("e", action.event.type)}>"{_quoted(action.event.type)}"]'
    return _id("n", action.node) if action.node is not None else f'w_{action.workflow}[["{action.workflow}"]]'


def svg(workflow: Workflow, states: Mapping[str, str]) -> str:
    """Conditions on the left, nodes on the right, a line for each act."""
    rows = max(len(workflow.rules), len(workflow.nodes), 1)
    width, height = 2 * _WIDE + _GAP + 20, rows * _ROW + 20
    node_y = {node.name: 10 + at * _ROW for at, node in enumerate(workflow.nodes)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        f' font-size="12"><title>{escape(workflow.name)}</title>'
    ]
    for at, rule in enumerate(workflow.rules):
        parts += _lines(rule, 10 + at * _ROW, node_y)
        sent = ", ".join(action.text for action in rule.then if action.event is not None)
        title = f"{rule.name}: {sent}" if sent else rule.name
        parts.append(_box(10, 10 + at * _ROW, title, describe(rule.when), _PLAIN))
    for node in workflow.nodes:
        state = states.get(node.name, "idle")
        colour = COLOURS.get(state, _PLAIN)
        parts.append(_box(10 + _WIDE + _GAP, node_y[node.name], f"{node.name} ({node.kind})", state, colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _lines(rule: Rule, y: int, node_y: Mapping[str, int]) -> list[str]:
    found, left, right = [], 10 + _WIDE, 10 + _WIDE + _GAP
    for action in rule.then:
        if action.node is None:  # an event or another workflow has no box
            continue
        target = node_y[action.node] + _BOX // 2
        found.append(f'<line x1="{left}" y1="{y + _BOX // 2}" x2="{right}" y2="{target}" stroke="#555555"/>')
        middle = (y + _BOX // 2 + target) // 2
        found.append(f'<text x="{left + _GAP // 2}" y="{middle - 3}" text-anchor="middle">{action.do}</text>')
    for name in _looked_at(rule):
        target = node_y[name] + _BOX - 8
        dotted = 'stroke="#999999" stroke-dasharray="3 3"'
        found.append(f'<line x1="{left}" y1="{y + _BOX - 8}" x2="{right}" y2="{target}" {dotted}/>')
    return found


def _box(x: int, y: int, first: str, second: str, colour: str) -> str:
    cut = second if len(second) <= 66 else f"{second[:65]}…"
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_BOX}" rx="5" fill="{colour}" stroke="#888888"/>'
        f'<text x="{x + 8}" y="{y + 17}" font-weight="bold">{escape(first)}</text>'
        f'<text x="{x + 8}" y="{y + 35}">{escape(cut)}<title>{escape(second)}</title></text>'
    )


def _looked_at(rule: Rule) -> list[str]:
    named = [leaf.node for leaf in leaves(rule.when) if isinstance(leaf, StatusIs)]
    return list(dict.fromkeys([*named, *rule.only_if]))


def _id(kind: str, name: str) -> str:
    plain = re.sub(r"\W", "_", name)
    return f"{kind}_{plain}"


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")
