"""The scheduler's decisions: events and time in, orders out. One door (`handle`, `tick`), no I/O.

All that happens comes by the event log: what jobs report, what people request. So the state is a function of the log,
of the times told, and of the watermarks; `changes` hands over what must be stored in one transaction with the position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from rtrec_ray.workflow import nodes as node_machine
from rtrec_ray.workflow.definition import Do, Node, Rule, Sending, Workflow
from rtrec_ray.workflow.evaluate import Met, wake_ms
from rtrec_ray.workflow.events import (
    JOB_EVENTS,
    NODE_FAILED,
    NODE_REQUESTED,
    SENDER,
    WHOLE,
    WORKFLOW_REQUESTED,
    Announcement,
)
from rtrec_ray.workflow.nodes import Cause, Decided, NodeState, Order
from rtrec_ray.workflow.rules import Alarms, Index, Place, RuleState, take
from rtrec_ray.workflow.state import Changes, Held, Running, Saved, WorkflowState, applied, hold_of
from rtrec_ray.workflow.stimuli import Occurred, StatusChanged, Stimulus, Ticked, WatermarkMoved


class Scheduler:
    """Decides for all workflows. `indexed=False` asks every rule about everything: slower, and no different."""

    def __init__(
        self, *, position: int = 0, time_ms: int = 0, workflows: Mapping[str, Saved] | None = None, indexed: bool = True
    ) -> None:
        self.position = position
        self.time_ms = time_ms
        self._known: dict[str, Workflow] = {}
        self._flows: dict[str, Running] = {}
        self._index, self._alarms, self._indexed = Index(), Alarms(), indexed
        self._derived: deque[tuple[str, Stimulus]] = deque()
        self._ready: set[Place] = set()
        self._live: set[Place] = set()
        self._begin_changes()
        for saved in (workflows or {}).values():
            self._install(Running(saved))

    def know(self, definition: Workflow) -> None:
        """Have a definition at hand, for the event that applies it."""
        self._known[definition.digest] = definition

    def handle(self, event: Occurred, *, now_ms: int, wall_ms: int) -> None:
        """Take the next event of the log. `now_ms`: the system's clock, which is ahead of it after an absence."""
        if event.offset <= self.position:
            return
        # It keeps its own time, though the clock may have been told ahead of it: what lay within a time still does.
        self._wake(event.time_ms, now_ms=now_ms)
        self.position, self.time_ms = event.offset, max(event.time_ms, self.time_ms)
        if event.type == WORKFLOW_REQUESTED:
            self._on_workflow(event)
        elif event.type == NODE_REQUESTED:
            self._on_node(event)
        elif event.type in JOB_EVENTS and event.sender == SENDER:  # anybody may send an event of that type
            self._on_job(event, wall_ms=wall_ms)
        self._offer("", event)
        self._settle(wall_ms=wall_ms)

    def tick(self, *, now_ms: int, wall_ms: int) -> None:
        """Tell the time: schedules, silences, timeouts and retries are due."""
        time_ms = max(now_ms, self.time_ms)
        self._wake(time_ms, now_ms=now_ms)
        self.time_ms = time_ms
        for name, at in sorted(self._live):
            node, state = self._flows[name].node_by_name[at], self._flows[name].nodes[at]
            self._put(name, node, node_machine.look(node, state, workflow=name, wall_ms=wall_ms))
        self._settle(wall_ms=wall_ms)

    def move_watermark(self, stage: str, value_ms: int, *, now_ms: int, wall_ms: int) -> None:
        """Tell a stage's watermark."""
        self._wake(max(now_ms, self.time_ms), now_ms=now_ms)
        self.time_ms = max(now_ms, self.time_ms)
        self._offer("", WatermarkMoved(stage=stage, value_ms=value_ms, time_ms=self.time_ms))
        self._settle(wall_ms=wall_ms)

    def silent(self, workflow: str, node: str, run: str, *, wall_ms: int) -> None:
        """Tell that a run's heartbeat is overdue."""
        flow = self._flows.get(workflow)
        if flow is not None and node in flow.node_by_name:
            of = flow.node_by_name[node]
            self._put(workflow, of, node_machine.silent(of, flow.nodes[node], run, workflow=workflow))
            self._settle(wall_ms=wall_ms)

    def next_ms(self) -> int | None:
        """The next time at which a condition may be met by time alone."""
        return self._alarms.next_ms()

    def changes(self) -> Changes:
        """What changed since the last call."""
        done = Changes(
            position=self.position,
            time_ms=self.time_ms,
            workflows=self._workflows,
            rules=self._rules,
            nodes=self._nodes,
            orders=tuple(self._orders),
            announcements=tuple(self._announcements),
        )
        self._begin_changes()
        return done

    def saved(self) -> dict[str, Saved]:
        """All workflows as they stand."""
        return {
            name: Saved(definition=flow.definition, state=flow.state, rules=dict(flow.rules), nodes=dict(flow.nodes))
            for name, flow in self._flows.items()
        }

    def _begin_changes(self) -> None:
        self._workflows: dict[str, WorkflowState | None] = {}
        self._rules: dict[Place, RuleState | None] = {}
        self._nodes: dict[Place, NodeState | None] = {}
        self._orders: list[Order] = []
        self._announcements: list[Announcement] = []

    def _install(self, flow: Running) -> None:
        name = flow.definition.name
        self._take_out(name)
        self._flows[name] = flow
        for node, state in flow.nodes.items():
            self._note((name, node), state)
        for rule in flow.definition.rules:
            self._index.put(name, rule)
            self._set_alarm(name, rule, flow.rules[rule.name])

    def _take_out(self, name: str) -> None:
        old = self._flows.pop(name, None)
        self._index.drop(name)
        for rule in () if old is None else old.definition.rules:
            self._alarms.put((name, rule.name), None)
        self._ready = {place for place in self._ready if place[0] != name}
        self._live = {place for place in self._live if place[0] != name}

    def _set_alarm(self, workflow: str, rule: Rule, state: RuleState) -> None:
        done = rule.once and state.met > 0
        self._alarms.put((workflow, rule.name), None if done else wake_ms(rule.when, state.state))

    # --- requests and reports

    def _on_workflow(self, event: Occurred) -> None:
        if event.value == "apply":
            self._apply(event)
        flow = self._flows.get(event.namespace)
        if flow is None:
            return
        if event.value == "remove":
            self._remove(flow)
        elif event.value == "pause":
            self._put_flow(flow, paused=True)
        elif event.value == "resume":
            held = flow.state.held if flow.state.active else ()
            self._announcements += [each.announcement(event.namespace) for each in held]
            self._put_flow(flow, paused=False, held=())
        elif event.value in ("start", "stop"):
            self._activate(flow, event)

    def _activate(self, flow: Running, event: Occurred) -> None:
        self._put_flow(flow, active=event.value == "start")
        for node in flow.definition.nodes if event.value == "stop" else ():
            self._ask(flow, "stop", node.name, Cause(rule="stop", by=(event.offset,)))

    def _on_node(self, event: Occurred) -> None:
        flow = self._flows.get(event.namespace)
        if flow is None or event.key not in flow.node_by_name or event.value not in ("start", "stop", "restart"):
            return
        cause = Cause(rule="request", by=(event.offset,), manual=True)
        self._ask(flow, event.value, event.key, cause)  # type: ignore[arg-type]

    def _on_job(self, event: Occurred, *, wall_ms: int) -> None:
        flow = self._flows.get(event.namespace)
        if flow is not None and event.key in flow.node_by_name:
            node = flow.node_by_name[event.key]
            done = node_machine.report(node, flow.nodes[node.name], event.type, event.value, wall_ms=wall_ms)
            self._put(event.namespace, node, done, offset=event.offset)

    def _apply(self, event: Occurred) -> None:
        definition = self._known.get(str(event.context.get("digest")))
        if definition is None or definition.name != event.namespace:
            return
        old = self._flows.get(definition.name)
        # A node that was there once may be defined again. Each of its runs was an event, so none has a number as high.
        fresh = NodeState(number=0 if event.context.get("first") else event.offset)
        if old is not None:
            self._retire(old, definition)
        flow = applied(definition, old, fresh=fresh, time_ms=self.time_ms)
        self._install(flow)
        self._workflows[definition.name] = flow.state
        self._rules.update({(definition.name, name): each for name, each in flow.rules.items()})
        self._nodes.update({(definition.name, name): each for name, each in flow.nodes.items()})

    def _remove(self, flow: Running) -> None:
        name = flow.definition.name
        self._retire(flow, Workflow(name=name, nodes=(), rules=()))
        self._take_out(name)
        self._workflows[name] = None

    def _retire(self, old: Running, new: Workflow) -> None:
        """Nodes and rules that are no longer defined: what runs is stopped."""
        name, left = new.name, {node.name for node in new.nodes}
        for node in old.definition.nodes:
            if node.name not in left:
                self._ask(old, "stop", node.name, Cause(rule="apply"))
                self._nodes[name, node.name] = None
        gone = set(old.rules) - {rule.name for rule in new.rules}
        self._rules.update({(name, rule): None for rule in gone})

    # --- rules

    def _wake(self, until_ms: int, *, now_ms: int) -> None:
        """Tell each rule the very times it asked for: what is decided does not depend on how often time is told."""
        while (due := self._alarms.next_ms()) is not None and due <= until_ms:
            place = self._alarms.pop()
            self.time_ms = max(self.time_ms, due)
            self._see(place, Ticked(time_ms=due, late_ms=max(0, now_ms - due)))
            self._cascade()

    def _offer(self, workflow: str, stimulus: Stimulus) -> None:
        self._derived.append((workflow, stimulus))
        self._cascade()

    def _cascade(self) -> None:
        while self._derived:
            workflow, stimulus = self._derived.popleft()
            for place in self._places(workflow, stimulus):
                self._see(place, stimulus)

    def _places(self, workflow: str, stimulus: Stimulus) -> list[Place]:
        if self._indexed:
            return self._index.touched(stimulus, workflow=workflow)
        own = isinstance(stimulus, StatusChanged)
        return sorted((n, r) for n, flow in self._flows.items() for r in flow.rules if not own or n == workflow)

    def _see(self, place: Place, stimulus: Stimulus) -> None:
        flow = self._flows[place[0]]
        rule, before = flow.rule_by_name[place[1]], flow.rules[place[1]]
        after, met = take(rule, before, stimulus)
        if met is not None:
            after = msgspec.structs.replace(after, acted=self._act(flow, rule, met, stimulus))
        if after is not before:
            flow.rules[rule.name] = self._rules[place] = after
        self._set_alarm(place[0], rule, after)

    def _act(self, flow: Running, rule: Rule, met: Met, stimulus: Stimulus) -> str:
        """Do what a met rule says; answers that, for people."""
        for node, states in rule.only_if.items():
            if flow.nodes[node].state not in states:
                return f"nothing, as {node} was {flow.nodes[node].state}"
        told = []
        for action in rule.then:
            if action.workflow is not None:
                context = {"rule": rule.name, "by": list(met.by)}
                request = Announcement(
                    type=WORKFLOW_REQUESTED, key=WHOLE, value=action.do, workflow=action.workflow, context=context
                )
                self._announcements.append(request)
            elif not flow.state.active:
                told.append(f"not {action.text}, as the workflow is stopped")
                continue
            elif action.event is not None:
                self._send(flow, _filled(action.event, rule, met, stimulus))
            elif action.node is not None and action.do != "send":
                self._ask(flow, action.do, action.node, Cause(rule=rule.name, by=met.by))
            told.append(action.text)
        return ", ".join(told)

    def _send(self, flow: Running, event: Held) -> None:
        if flow.state.paused:
            self._put_flow(flow, held=(*(each for each in flow.state.held if each.kind != event.kind), event))
        else:
            self._announcements.append(event.announcement(flow.definition.name))

    # --- nodes

    def _ask(self, flow: Running, do: Do, of: str, cause: Cause) -> None:
        name = flow.definition.name
        node = flow.node_by_name[of]
        self._put_flow(flow, turn=flow.state.turn + 1)
        cause = msgspec.structs.replace(cause, turn=flow.state.turn)
        self._put(name, node, node_machine.ask(node, flow.nodes[of], do, cause, workflow=name))

    def _settle(self, *, wall_ms: int) -> None:
        """Give the starts that wait and may go, first come first served; each may meet further rules."""
        self._cascade()
        while (following := self._next_start()) is not None:
            flow, node = following
            name = flow.definition.name
            self._put(name, node, node_machine.give(node, flow.nodes[node.name], workflow=name, wall_ms=wall_ms))
            self._cascade()

    def _next_start(self) -> tuple[Running, Node] | None:
        waiting = [(name, self._turn(name, at), at) for name, at in self._ready]
        free = [(name, turn, at) for name, turn, at in waiting if turn is not None]
        if not free:
            return None
        name, _, at = min(free)
        return self._flows[name], self._flows[name].node_by_name[at]

    def _turn(self, workflow: str, at: str) -> int | None:
        """The place in line of a node that waits; None while it may not start."""
        flow = self._flows[workflow]
        return None if hold_of(flow, at) is not None else flow.nodes[at].waiting[0].turn

    def _note(self, place: Place, state: NodeState) -> None:
        """Keep who waits and who runs at hand: looking through all nodes at each event took most of the time."""
        ready, live = node_machine.ready(state) is not None, state.run is not None or state.retry_wall_ms is not None
        (self._ready.add if ready else self._ready.discard)(place)
        (self._live.add if live else self._live.discard)(place)

    def _put(self, workflow: str, node: Node, done: Decided, *, offset: int | None = None) -> None:
        flow = self._flows[workflow]
        before = flow.nodes[node.name]
        state = done.state
        if node_machine.ready(state) is not None and state.state != "queued":
            state = msgspec.structs.replace(state, state="queued")
        if done.order is not None:
            self._orders.append(done.order)
        if done.failed is not None:
            context = {"run": done.failed}
            self._announcements.append(
                Announcement(type=NODE_FAILED, key=node.name, value=done.failed, workflow=workflow, context=context)
            )
        if state == before:
            return
        flow.nodes[node.name] = self._nodes[workflow, node.name] = state
        self._note((workflow, node.name), state)
        for passed in dict.fromkeys((done.state.state, state.state)):
            if passed != before.state:
                changed = StatusChanged(node=node.name, state=passed, time_ms=self.time_ms, offset=offset)
                self._derived.append((workflow, changed))

    def _put_flow(self, flow: Running, **changed: Any) -> None:
        flow.state = msgspec.structs.replace(flow.state, **changed)
        self._workflows[flow.definition.name] = flow.state


def _filled(event: Sending, rule: Rule, met: Met, stimulus: Stimulus) -> Held:
    """The event that the rule sends now."""
    value = event.value
    if value is None:
        value = stimulus.value if isinstance(stimulus, Occurred) else ""
    return Held(rule=rule.name, type=event.type, key=event.key, value=value, by=met.by)
