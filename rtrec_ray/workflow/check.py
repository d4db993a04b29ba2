"""Whether a workflow makes sense as a whole: names, contradictions, circles.

>>> from rtrec_ray.workflow.definition import Sending
>>> echo = Action(do="send", event=Sending(type="PING", key="k"))
>>> [fault.what for fault in check(Workflow(name="w", nodes=(), rules=(
...     Rule(name="again", when=EventIs(type="PING"), then=(echo,)),)))]
['sending PING leads to sending it again without an event from outside']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rtrec_ray.workflow.conditions import (
    Absence,
    AllOf,
    AnyOf,
    Condition,
    Count,
    EventIs,
    Sequence,
    StatusIs,
    leaves,
    terms_of,
)
from rtrec_ray.workflow.definition import Action, Rule, Sending, Workflow, canonical
from rtrec_ray.workflow.events import CONTROL_EVENTS, JOB_EVENTS, NODE_FAILED, SENDER, WHOLE, WORKFLOW_REQUESTED
from rtrec_ray.workflow.stimuli import Occurred

_ANY = "\0"  # no event has it


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a rule brings about in a workflow: the start of a node, or else an event in that workflow's namespace."""

    workflow: str
    node: str | None = None
    event: Sending | None = None


_Leads = dict[_Effect, set[_Effect]]  # to what else


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong, and with which rule or node, by its place in the list."""

    what: str
    rule: int | None = None
    node: int | None = None


def check(workflow: Workflow, *, beside: Iterable[Workflow] = ()) -> list[Fault]:
    """What is wrong with a workflow as a whole: names, contradictions, circles, also those through others `beside`."""
    circles = _circles(workflow, [other for other in beside if other.name != workflow.name])
    return [*_names(workflow), *_sendings(workflow), *_contradictions(workflow), *circles]


def _names(workflow: Workflow) -> list[Fault]:
    faults, nodes = [], [node.name for node in workflow.nodes]
    for at, name in enumerate(nodes):
        if name in nodes[:at]:
            faults.append(Fault(what=f'a second node "{name}"', node=at))
    for at, rule in enumerate(workflow.rules):
        if rule.name in [earlier.name for earlier in workflow.rules[:at]]:
            faults.append(Fault(what=f'a second rule "{rule.name}"', rule=at))
        named = [action.node for action in rule.then if action.node is not None]
        named += [leaf.node for leaf in leaves(rule.when) if isinstance(leaf, StatusIs)]
        faults += [Fault(what=f'unknown node "{n}"', rule=at) for n in (*named, *rule.only_if) if n not in nodes]
    return faults


def _sendings(workflow: Workflow) -> list[Fault]:
    """Events that nobody could send, or that would speak for the scheduler."""
    faults: list[Fault] = []
    for at, rule, action in _acts(workflow):
        if (event := action.event) is not None:
            if not event.type or not event.key or "\0" in f"{event.type}{event.key}{event.value}":
                faults.append(Fault(what=f'rule "{rule.name}" sends an event without type or key', rule=at))
            if event.type in CONTROL_EVENTS:
                faults.append(Fault(what=f'rule "{rule.name}" sends {event.type}, which is the scheduler\'s', rule=at))
    return faults


def _contradictions(workflow: Workflow) -> list[Fault]:
    """The same condition, under overlapping `only_if`, starts and stops the same node or workflow.

    One that is narrower than another may: so a rule for some events can go against one for all.
    """
    faults: list[Fault] = []
    acts: list[tuple[Any, Rule, Action]] = []
    for at, rule in enumerate(workflow.rules):
        own = _normal(rule.when)
        for action in rule.then:
            for when, other, earlier in acts:
                if when == own and _opposed(action, earlier) and _overlap(rule, other):
                    what = f'rule "{rule.name}" would {action.text} and rule "{other.name}" {earlier.text}'
                    faults.append(Fault(what=f"{what} by the same condition", rule=at))
            acts.append((own, rule, action))
    return faults


def _opposed(one: Action, other: Action) -> bool:
    same = (one.node, one.workflow, one.event) == (other.node, other.workflow, other.event)
    return same and one.do != other.do


def _overlap(one: Rule, other: Rule) -> bool:
    shared = set(one.only_if) & set(other.only_if)
    return all(set(one.only_if[node]) & set(other.only_if[node]) for node in shared)


def _circles(workflow: Workflow, beside: list[Workflow]) -> list[Fault]:
    """Starts and events that lead to themselves by what nodes and rules do alone: they would never end."""
    told = [each for flow in (workflow, *beside) for each in _told_by(flow)]
    own = list(_steps(workflow, told))
    leads: _Leads = {}
    for _, effect, causes in (*own, *(step for flow in beside for step in _steps(flow, told))):
        for cause in causes:
            leads.setdefault(cause, set()).add(effect)
    found: dict[int, Fault] = {}
    for at, effect, causes in own:
        reached = _reached(effect, leads)
        if causes & reached:
            doing, what = ("sending", effect.event.type) if effect.event else ("starting", f'"{effect.node}"')
            others = sorted({each.workflow for each in reached & _reaching(effect, leads)} - {workflow.name})
            by = f", by way of workflow {', '.join(others)}" if others else ""
            again = f"{doing} it again without an event from outside{by}"
            found.setdefault(at, Fault(what=f"{doing} {what} leads to {again}", rule=at))
    return list(found.values())


def _steps(workflow: Workflow, told: list[tuple[_Effect, Occurred]]) -> Iterator[tuple[int, _Effect, set[_Effect]]]:
    """Each effect of a rule that may act again, with the place of the rule, and what alone can cause it."""
    for at, rule, action in _acts(workflow):
        effect = _effect(action, workflow)
        if effect is not None and not rule.once:
            yield at, effect, _causes(rule.when, workflow, told) or set()


def _acts(workflow: Workflow) -> Iterator[tuple[int, Rule, Action]]:
    return ((at, rule, action) for at, rule in enumerate(workflow.rules) for action in rule.then)


def _told_by(workflow: Workflow) -> Iterator[tuple[_Effect, Occurred]]:
    """What the workflow itself may let happen: an effect, and an event that comes of it."""
    for node in workflow.nodes:
        for kind in (*JOB_EVENTS, NODE_FAILED):
            yield _Effect(workflow.name, node=node.name), _example(workflow.name, Sending(type=kind, key=node.name))
    for _, _, action in _acts(workflow):
        effect = _effect(action, workflow)
        if effect is not None and effect.event is not None:
            yield effect, _example(effect.workflow, effect.event)


def _example(namespace: str, event: Sending) -> Occurred:
    return Occurred(
        offset=0,
        key=event.key,
        value=event.value or _ANY,
        type=event.type,
        namespace=namespace,
        sender=SENDER,
        time_ms=0,
    )


def _effect(action: Action, workflow: Workflow) -> _Effect | None:
    """What may be the cause of something else."""
    if action.workflow is not None:
        return _Effect(action.workflow, event=Sending(type=WORKFLOW_REQUESTED, key=WHOLE, value=action.do))
    if action.event is not None:
        return _Effect(workflow.name, event=action.event)
    return _Effect(workflow.name, node=action.node) if action.do != "stop" else None


def _reaching(effect: _Effect, leads: _Leads) -> set[_Effect]:
    return {cause for cause in leads if effect in _reached(cause, leads)}


def _reached(effect: _Effect, leads: _Leads) -> set[_Effect]:
    reached, waiting = {effect}, [effect]
    while waiting:
        for target in leads.get(waiting.pop(), ()):
            if target not in reached:
                reached.add(target)
                waiting.append(target)
    return reached


def _causes(condition: Condition, of: Workflow, told: list[tuple[_Effect, Occurred]]) -> set[_Effect] | None:
    """The nodes and sent events that alone can meet the condition; None when something else is needed."""
    if isinstance(condition, StatusIs):
        return {_Effect(of.name, node=condition.node)}
    if isinstance(condition, EventIs):
        return {effect for effect, event in told if _may_match(condition, event)} or None
    if isinstance(condition, Absence):  # a silence passes by itself, but as slowly as it says
        return None
    inner = [_causes(term, of, told) for term in terms_of(condition)]
    known = [causes for causes in inner if causes is not None]
    if not known or (isinstance(condition, AllOf | Sequence) and len(known) < len(inner)):
        return None
    return set().union(*known)


def _may_match(condition: EventIs, event: Occurred) -> bool:
    """Whether such an event may be meant; a value that is not fixed, and what is in the context, may be anything."""
    value = None if event.value == _ANY else condition.value
    return replace(condition, value=value, context=()).matches(event)


def _normal(condition: Condition) -> Any:
    """As `canonical`, but a condition around a single one, which says no more than that one, is left out."""
    alone = isinstance(condition, AnyOf | Sequence) and len(condition.terms) == 1
    once = isinstance(condition, Count) and condition.n == 1
    return _normal(terms_of(condition)[0]) if alone or once else canonical(condition)
