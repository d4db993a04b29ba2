"""What became of each model version, from the events about it and the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from rtrec_ray.demo.record import TimeLine, VersionFacts
from rtrec_ray.notification import MODEL_DEPLOYED, MODEL_GENERATED, MODEL_REJECTED, MODEL_VALIDATED, Event
from rtrec_ray.registry.base import ModelVersion


def version_facts(
    events: Sequence[Event], versions: Sequence[ModelVersion], time: TimeLine
) -> tuple[VersionFacts, ...]:
    """One entry per version of the registry, by number. `events`: about models, in their order."""
    known = {version.version: _begun(version, time) for version in versions}
    for event in events:
        if event.value in known:
            known[event.value] = _after(known[event.value], event, time.at_s(event.time_ms))
    online = sorted((at_s, number) for number, facts in known.items() if (at_s := facts.online_s) is not None)
    for (_, number), (following_s, _) in pairwise(online):
        known[number] = replace(known[number], offline_s=following_s)
    return tuple(sorted(known.values(), key=lambda facts: int(facts.version)))


def _begun(version: ModelVersion, time: TimeLine) -> VersionFacts:
    draft = version.draft
    return VersionFacts(
        version=version.version,
        kind=draft.kind,
        family=draft.model,
        generated_s=time.at_s(draft.created_ms),
        parent=draft.parent,
        rows=draft.to_seq - draft.from_seq + 1,
        trained_to_ms=draft.trained_to_ms,
        run_id=version.run_id,
    )


def _after(facts: VersionFacts, event: Event, at_s: float) -> VersionFacts:
    match event.type:
        case str(kind) if kind == MODEL_GENERATED:
            return replace(facts, generated_s=at_s)
        case str(kind) if kind == MODEL_VALIDATED:
            return replace(facts, outcome="validated", decided_s=at_s)
        case str(kind) if kind == MODEL_REJECTED:
            return replace(facts, outcome="rejected", decided_s=at_s, reason=str(event.context.get("reason", "")))
        case str(kind) if kind == MODEL_DEPLOYED and facts.online_s is None:
            return replace(facts, online_s=at_s)
    return facts
