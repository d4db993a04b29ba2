"""What a workflow reacts to. Times are ms UTC of the system's clock.

An event has the time at which it was sent, also when the clock has been told ahead of it meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurred:
    """An event of the log. `offset`: its place there; each rule sees each offset once."""

    offset: int
    key: str
    value: str
    type: str
    namespace: str
    sender: str
    time_ms: int
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time went on to `time_ms`. `late_ms`: how long ago that was, when the scheduler was away meanwhile."""

    time_ms: int
    late_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkMoved:
    """The watermark of a stage (features, samples, history) moved on to `value_ms`."""

    stage: str
    value_ms: int
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChanged:
    """A node of the same workflow is now in `state`. `offset`: the event that told, if one did."""

    node: str
    state: str
    time_ms: int
    offset: int | None = None


Stimulus = Occurred | Ticked | WatermarkMoved | StatusChanged
