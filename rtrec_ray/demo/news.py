"""What a watcher of any run is told of its models."""

from __future__ import annotations

from rtrec_ray.notification import MODEL_DEPLOYED, MODEL_GENERATED, MODEL_REJECTED, MODEL_VALIDATED, Event


def of_model(event: Event) -> str:
    """A line about an event of a model; empty for one that nobody need know of."""
    name = f"model v{event.value}"
    kind = str(event.context.get("kind", ""))
    return {
        MODEL_GENERATED: f"{name}: trained{f' ({kind})' if kind else ''}, in MLflow",
        MODEL_VALIDATED: f"{name}: validated",
        MODEL_REJECTED: f"{name}: rejected: {event.context.get('reason', '')}",
        MODEL_DEPLOYED: f"{name}: online",
    }.get(event.type, "")
