"""The events by which workflows are told what happened, and told what to do. The namespace is the workflow's name.

What the scheduler decides is a function of the log and of time alone, so requests of people are events too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# Of a run: the key is the node, the value the run's id. Sent in the transaction that changes the run's row.
JOB_STARTED: Final = "JOB_STARTED"
JOB_SUCCEEDED: Final = "JOB_SUCCEEDED"
JOB_FAILED: Final = "JOB_FAILED"
JOB_STOPPED: Final = "JOB_STOPPED"
JOB_EVENTS: Final = (JOB_STARTED, JOB_SUCCEEDED, JOB_FAILED, JOB_STOPPED)

# Of a node, when its last retry has failed; the value is the run's id.
NODE_FAILED: Final = "NODE_FAILED"

# Requests. Of a node: the key is the node, the value start, stop or restart. Of a workflow: the key is empty-handed
# ("*"), the value start, stop, pause, resume or, with the hash of the content in the context, apply.
NODE_REQUESTED: Final = "NODE_REQUESTED"
WORKFLOW_REQUESTED: Final = "WORKFLOW_REQUESTED"

CONTROL_EVENTS: Final = (*JOB_EVENTS, NODE_FAILED, NODE_REQUESTED, WORKFLOW_REQUESTED)

SENDER: Final = "workflow"
WHOLE: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """An event to send in the transaction of what it tells."""

    type: str
    key: str
    value: str
    workflow: str
    context: Mapping[str, Any] = field(default_factory=dict)
