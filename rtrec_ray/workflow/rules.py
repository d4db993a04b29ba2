"""A rule's state, and the index that tells which rules an event may touch."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from rtrec_ray.workflow.conditions import EventIs, StatusIs, WatermarkAt, is_pattern, leaves
from rtrec_ray.workflow.definition import Rule
from rtrec_ray.workflow.evaluate import Met, handle, initial
from rtrec_ray.workflow.stimuli import Occurred, StatusChanged, Stimulus, WatermarkMoved

Place = tuple[str, str]  # workflow, rule


class RuleState(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule has seen (`state`, see evaluate), how often it was met, and its last meeting.

    `digest`: of the condition that the state belongs to. `acted`: what came of the last meeting, for people.
    """

    digest: str
    state: Any
    met: int = 0
    last_ms: int | None = None
    last_by: tuple[int, ...] = ()
    acted: str = ""


def begin(rule: Rule, time_ms: int, states: Iterable[StatusChanged]) -> RuleState:
    """The state of a rule that begins to look at `time_ms`, when the nodes are in `states`; those meet nothing."""
    state = initial(rule.when, time_ms)
    for each in states:
        state, _ = handle(rule.when, state, each)
    return RuleState(digest=rule.digest, state=state)


def take(rule: Rule, state: RuleState, stimulus: Stimulus) -> tuple[RuleState, Met | None]:
    """The rule sees a stimulus; one that is met `once` sees no more."""
    if rule.once and state.met:
        return state, None
    inner, met = handle(rule.when, state.state, stimulus)
    if met is None:
        return (state if inner == state.state else msgspec.structs.replace(state, state=inner)), None
    after = msgspec.structs.replace(
        state, state=inner, met=state.met + 1, last_ms=stimulus.time_ms, last_by=met.by, acted=""
    )
    return after, met


class Index:
    """Which rules a stimulus may touch. A rule that a stimulus does not touch would ignore it."""

    def __init__(self) -> None:
        self._by: defaultdict[tuple[str, str], set[Place]] = defaultdict(set)
        self._keys: dict[Place, set[tuple[str, str]]] = {}

    def put(self, workflow: str, rule: Rule) -> None:
        """Look out for the rule from now on."""
        place = (workflow, rule.name)
        self._keys[place] = {_key(workflow, leaf) for leaf in leaves(rule.when) if _looks(leaf)}
        for key in self._keys[place]:
            self._by[key].add(place)

    def drop(self, workflow: str) -> None:
        """Forget the workflow's rules."""
        for place in [place for place in self._keys if place[0] == workflow]:
            for key in self._keys.pop(place):
                self._by[key].discard(place)

    def touched(self, stimulus: Stimulus, *, workflow: str = "") -> list[Place]:
        """The rules in question, in a fixed order. `workflow`: whose node changed its status."""
        found: set[Place] = set()
        for key in _keys_of(stimulus, workflow):
            found |= self._by.get(key, set())
        return sorted(found)


class Alarms:
    """When each rule next wants to be told the time."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Place]] = []
        self._at: dict[Place, int] = {}

    def put(self, place: Place, time_ms: int | None) -> None:
        """Tell the rule the time at `time_ms`, and not before; None is never."""
        if self._at.get(place) == time_ms:
            return
        if time_ms is None:
            self._at.pop(place, None)
        else:
            self._at[place] = time_ms
            heapq.heappush(self._heap, (time_ms, place))

    def next_ms(self) -> int | None:
        """The next such time."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> Place:
        """The rule whose time is next; it is then without one."""
        _, place = heapq.heappop(self._heap)
        del self._at[place]
        return place


def _looks(leaf: Any) -> bool:
    return isinstance(leaf, EventIs | StatusIs | WatermarkAt)


def _key(workflow: str, leaf: Any) -> tuple[str, str]:
    if isinstance(leaf, StatusIs):
        return "status", f"{workflow}/{leaf.node}"
    if isinstance(leaf, WatermarkAt):
        return "watermark", leaf.stage
    # Events share few types, many keys: the key tells rules apart better where both are given.
    if leaf.key is not None and not is_pattern(leaf.key):
        return "key", leaf.key
    if leaf.type is not None and not is_pattern(leaf.type):
        return "type", leaf.type
    return "any", ""


def _keys_of(stimulus: Stimulus, workflow: str) -> list[tuple[str, str]]:
    match stimulus:
        case Occurred(key=key, type=kind):
            return [("key", key), ("type", kind), ("any", "")]
        case StatusChanged(node=node):
            return [("status", f"{workflow}/{node}")]
        case WatermarkMoved(stage=stage):
            return [("watermark", stage)]
    return []
