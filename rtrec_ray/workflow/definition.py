"""A workflow as a value: nodes, and rules that start, stop and restart them. `file` reads it from YAML, `check` says
whether it makes sense.

>>> from rtrec_ray.workflow.conditions import EventIs
>>> talk = Workflow(
...     name="talk",
...     nodes=(Node(name="train", command=("train.py",)), Node(name="serve", kind="endless", command=("serve",))),
...     rules=(Rule(name="online", when=EventIs(type="MODEL_VALIDATED"), then=(Action(do="start", node="serve"),)),),
... )
>>> talk.rules[0].then[0].text
'start serve'
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import orjson

from rtrec_ray.workflow.conditions import Condition, terms_of
from rtrec_ray.workflow.cron import Cron

Kind = Literal["batch", "endless"]
Do = Literal["start", "stop", "restart"]
Act = Literal["start", "stop", "restart", "send"]
IfRunning = Literal["queue", "again", "skip"]

NODE_STATES: Final = ("idle", "queued", "starting", "running", "stopping", "waiting", "succeeded", "failed", "stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A job. Durations in ms of wall time; None is no limit.

    `retries`: how often a failed run is started again, after `backoff_ms`, doubling up to `longest_backoff_ms`; a
    success, or `steady_ms` of running, makes them available again. `heartbeat_ms`: an endless job that is silent for
    longer is stopped and counts as failed. `if_running`: each start while a run goes on waits for its end, or all of
    them are one more run after it (again), or they are let go; an endless job that runs needs no start.
    """

    name: str
    command: tuple[str, ...]
    kind: Kind = "batch"
    timeout_ms: int | None = None
    heartbeat_ms: int | None = None
    retries: int = 0
    backoff_ms: int = 1_000
    longest_backoff_ms: int = 60_000
    steady_ms: int = 600_000
    if_running: IfRunning = "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """An event that a rule sends, in its workflow's namespace. `value`: None is that of the event that met the rule."""

    type: str
    key: str
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a rule does: to a node of its workflow, or to a workflow by name, or it sends an event; one of the three."""

    do: Act
    node: str | None = None
    workflow: str | None = None
    event: Sending | None = None

    @property
    def text(self) -> str:
        """For people."""
        if self.event is not None:
            return f"send {self.event.type}"
        return f"{self.do} {self.node or f'workflow {self.workflow}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When the condition is met, act. `once`: the first time only.

    `only_if`: node → states that it must be in at that moment; otherwise the meeting is used up without an act.
    """

    name: str
    when: Condition
    then: tuple[Action, ...]
    once: bool = False
    only_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the condition and how often it counts: a rule that keeps it keeps what it has seen, when it is applied."""
        return _digest([canonical(self.when), self.once])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow. `concurrency`: how many batch runs go on at a time; None is no limit. Others wait in a queue."""

    name: str
    nodes: tuple[Node, ...]
    rules: tuple[Rule, ...]
    concurrency: int | None = None

    @property
    def digest(self) -> str:
        """The content's hash: a version."""
        rules = [[rule.name, rule.digest, [_plain(a) for a in rule.then], dict(rule.only_if)] for rule in self.rules]
        return _digest([self.name, self.concurrency, [asdict(node) for node in self.nodes], rules])


def canonical(condition: Condition) -> Any:
    """A JSON value that is equal for equal conditions.

    >>> from rtrec_ray.workflow.conditions import EventIs
    >>> canonical(EventIs(key="model"))
    ['EventIs', {'key': 'model', 'value': None, 'type': None, 'namespace': None, 'sender': None}]
    """
    inner = [canonical(term) for term in terms_of(condition)]
    fields = {name: getattr(condition, name) for name in type(condition).__dataclass_fields__}
    plain = {name: each.text if isinstance(each, Cron) else each for name, each in fields.items()}
    # What no condition had when the first ones were stored must not change theirs: it is left out where it is not used.
    left_out = {"term", "terms", *(name for name in ("context", "after_ms") if not fields.get(name))}
    own = {name: each for name, each in plain.items() if name not in left_out}
    return [type(condition).__name__, own, *([inner] if inner else [])]


def _plain(action: Action) -> dict[str, Any]:
    """As in `canonical`: an act that sends nothing is what it was before any could."""
    return {name: each for name, each in asdict(action).items() if name != "event" or each is not None}


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
